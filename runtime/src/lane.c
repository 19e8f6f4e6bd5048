/* One IO lane: take the next request in load order, wait until its place is free, read it, check what is complete. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "crc.h"
#include "io.h"
#include "tied.h"

typedef struct {
  bool rows;           /* else an extent */
  uint32_t first, end; /* rows: in `tokens` */
  uint32_t extent, offset;
  uint32_t bytes;
} request;

/* Where reading an extent goes on from `offset`: behind what is present of it. */
static uint32_t next_missing(const stic_io *io, uint32_t extent, uint32_t offset) {
  const stic_present present = stic_io_present(io, extent);
  return offset == present.begin ? present.end : offset;
}

/* Small reads anywhere gain from many at once. Extents do not, and the one that is needed first would come later. */
static bool take(stic_io *io, uint32_t lane, request *r) {
  const stic_package *p = io->package;
  bool found = true;
  pthread_mutex_lock(&io->mutex);
  if (io->row < io->rows) {
    *r = (request){true, io->row, stic_io_row_group_end(io, io->row), 0, 0, 0};
    io->row = r->end;
  } else if (lane < io->lanes && io->extent < io->ordered) {
    const uint32_t e = io->order[io->extent], offset = next_missing(io, e, io->offset);
    const stic_present present = stic_io_present(io, e);
    const uint32_t left = (offset < present.begin ? present.begin : p->extents[e].bytes) - offset;
    const uint32_t bytes = left < p->header->request_bytes ? left : p->header->request_bytes;
    *r = (request){false, 0, 0, e, offset, bytes};
    io->offset = next_missing(io, e, offset + bytes);
    if (io->offset == p->extents[e].bytes) {
      io->extent++;
      io->offset = 0;
    }
  } else {
    found = false;
  }
  pthread_mutex_unlock(&io->mutex);
  return found;
}

void stic_io_fail(stic_io *io, const stic_error *error) {
  pthread_mutex_lock(&io->mutex);
  if (!atomic_load(&io->failed)) {
    io->error = *error;
    atomic_store(&io->failed, true);
  }
  pthread_mutex_unlock(&io->mutex);
  stic_signal(&io->progress);
  stic_signal(&io->gate);
}

enum { BURST_NS = 1000000 }; /* what emulated storage may have saved up */

/* What emulated storage takes for a request: as flash and the kernel's limiter have it, either of two limits binds. */
static uint64_t emulated_ns(const stic_io *io, uint32_t bytes) {
  const uint64_t moving = io->bytes_per_s ? (uint64_t)bytes * 1000000000u / io->bytes_per_s : 0;
  const uint64_t serving = io->requests_per_s ? 1000000000u / io->requests_per_s : 0;
  return moving > serving ? moving : serving;
}

/* Read as fast as the storage, or as the storage that is emulated: one that serves one request at a time. */
static stic_status read_paced(stic_io *io, const stic_source *source, const char *name, uint64_t offset, uint32_t bytes,
                              uint8_t *to, stic_error *error) {
  const uint64_t takes_ns = emulated_ns(io, bytes);
  uint64_t done_ns = 0;
  if (takes_ns) {
    pthread_mutex_lock(&io->mutex);
    const uint64_t now = stic_now_ns();
    /* A token bucket: a lane that wakes late may catch up, or each short read would take its time and the lateness. */
    if (!io->device_free_ns || io->device_free_ns + BURST_NS < now)
      io->device_free_ns = io->device_free_ns ? now - BURST_NS : now;
    io->device_free_ns += takes_ns;
    done_ns = io->device_free_ns;
    pthread_mutex_unlock(&io->mutex);
  }
  const stic_status status = stic_files_read(source, name, offset, bytes, to, error);
  if (!source->direct) stic_forget_cached(source->file, offset, bytes);
  if (done_ns) stic_sleep_until_ns(done_ns);
  atomic_fetch_add(&io->bytes, bytes);
  atomic_fetch_add(&io->requests, 1);
  return status;
}

static stic_event rows_event(const stic_io *io, const request *r, uint32_t lane) {
  const uint64_t now = stic_trace_now(io->trace);
  return (stic_event){STIC_EVENT_ROWS, -1, (int32_t)lane, 0, 0, (uint16_t)(r->end - r->first), 0, 0, now, now, 0};
}

/* Read a row of the vocabulary, part by part, for all tokens that have its id. */
static stic_status read_tied(stic_io *io, const request *r, uint32_t lane, stic_error *error) {
  const stic_package *p = io->package;
  uint8_t *staging = io->arena + p->regions[STIC_REGION_STAGING].offset + (size_t)lane * p->staging_bytes;
  uint8_t *found = staging, *to = staging + (p->staging_bytes - STIC_BLOCK) / 2;
  const stic_tied_row row = stic_tied_find(p, io->ids[io->tokens[r->first]]);
  stic_event event = rows_event(io, r, lane);
  for (uint32_t i = 0; i < row.parts; i++) {
    const uint64_t at = p->records[row.part[i].record].offset + row.part[i].at, offset = at / STIC_BLOCK * STIC_BLOCK;
    const uint32_t bytes = (uint32_t)(stic_pad(at + row.part[i].bytes, STIC_BLOCK) - offset);
    const stic_status status = read_paced(io, &io->shards, "shards.bin", offset, bytes, to, error);
    if (status) return status;
    stic_tied_take(p, &row, i, to + (at - offset), found);
    event.bytes += bytes;
  }
  event.end_ns = stic_trace_now(io->trace);
  stic_trace_add(io->trace, event);
  for (uint32_t t = r->first; t < r->end; t++) stic_tied_put(p, &row, found, io->arena, io->tokens[t]);
  return STIC_OK;
}

static stic_status read_rows(stic_io *io, const request *r, uint32_t lane, stic_error *error) {
  const stic_package *p = io->package;
  const uint32_t stride = p->header->row_stride;
  uint8_t *staging = io->arena + p->regions[STIC_REGION_STAGING].offset + (size_t)lane * p->staging_bytes;
  uint8_t *rows = io->arena + p->regions[STIC_REGION_ROWS].offset;
  const uint64_t offset = (uint64_t)io->ids[io->tokens[r->first]] * stride / STIC_BLOCK * STIC_BLOCK;
  const uint64_t end = ((uint64_t)io->ids[io->tokens[r->end - 1]] + 1) * stride;
  stic_event event = rows_event(io, r, lane);
  event.bytes = (uint32_t)(stic_pad(end, STIC_BLOCK) - offset);
  stic_status status = read_paced(io, &io->embeddings, "embeddings.bin", offset, event.bytes, staging, error);
  event.end_ns = stic_trace_now(io->trace);
  stic_trace_add(io->trace, event);
  for (uint32_t t = r->first; t < r->end && !status; t++) {
    const uint32_t token = io->tokens[t];
    const int32_t id = io->ids[token];
    const uint8_t *row = staging + ((uint64_t)id * stride - offset);
    status = stic_row_check(p, row, id, error);
    memcpy(rows + (size_t)token * stride, row, stride);
  }
  return status;
}

/* Check the records of an extent, but for those inside of what is present, which are checked. */
static stic_status check_extent(const stic_io *io, const stic_extent *e, stic_present present, stic_error *error) {
  const stic_package *p = io->package;
  for (uint32_t s = e->first; s < (uint32_t)e->first + e->count; s++) {
    const stic_record *r = &p->records[stic_record_index(p, e->block, e->level, s)];
    const uint64_t at = r->offset - e->file_offset;
    const uint8_t *record = io->weights + e->destination + at;
    if (at >= present.begin && at + r->bytes <= present.end) continue;
    STIC_REQUIRE(record_checksum, stic_crc32(0, record, r->bytes) == r->crc,
                 "shards.bin is corrupt at block %u, slice %u, level %u (checksum): copy the package again", e->block,
                 s, e->level);
    if (stic_record_check(p, e->block, e->level, record, r->bytes, error)) {
      stic_error_prefix(error, "shards.bin");
      return STIC_PACKAGE_CORRUPT;
    }
  }
  return STIC_OK;
}

static bool wait_for_place(stic_io *io, int32_t wait_block) {
  for (;;) {
    const uint32_t seen = atomic_load(&io->gate);
    if (atomic_load(&io->failed)) return false;
    if ((int64_t)atomic_load(&io->computed) > wait_block) return true;
    stic_wait(&io->gate, seen);
  }
}

static stic_status read_extent(stic_io *io, const request *r, uint32_t lane, stic_error *error) {
  const stic_extent *e = &io->package->extents[r->extent];
  stic_event event = {STIC_EVENT_READ,
                      e->block,
                      (int32_t)lane,
                      e->level,
                      e->first,
                      e->count,
                      0,
                      r->bytes,
                      stic_trace_now(io->trace),
                      0,
                      0};
  if (!wait_for_place(io, e->wait_block)) return STIC_OK;
  event.begin_ns = stic_trace_now(io->trace);
  stic_status status = io->gpu->on ? stic_gpu_open_extent(io->gpu, r->extent, error) : STIC_OK;
  if (status) return status;
  status = read_paced(io, &io->shards, "shards.bin", e->file_offset + r->offset, r->bytes,
                      io->weights + e->destination + r->offset, error);
  event.end_ns = stic_trace_now(io->trace);
  stic_trace_add(io->trace, event);
  if (status) return status;
  if (atomic_fetch_sub(&io->left[r->extent], r->bytes) != r->bytes) return STIC_OK;
  event.kind = STIC_EVENT_CHECK;
  event.submit_ns = event.begin_ns = event.end_ns;
  event.bytes = stic_io_missing_bytes(io, r->extent);
  status = check_extent(io, e, stic_io_present(io, r->extent), error);
  event.end_ns = stic_trace_now(io->trace);
  stic_trace_add(io->trace, event);
  if (!status && io->gpu->on) status = stic_gpu_close_extent(io->gpu, r->extent, error);
  if (status) return status;
  stic_io_complete(io, r->extent);
  if (atomic_fetch_sub(&io->pending[e->block], 1) == 1) stic_signal(&io->progress);
  return STIC_OK;
}

void *stic_lane_body(void *argument) {
  const struct stic_lane *lane = argument;
  stic_io *io = lane->io;
  stic_error error;
  for (uint32_t seen = 0;; seen++) {
    while (atomic_load(&io->pass) == seen) stic_wait(&io->pass, seen);
    if (atomic_load(&io->stop)) return NULL;
    request r;
    while (!atomic_load(&io->failed) && take(io, lane->number, &r)) {
      const stic_status status = (!r.rows                  ? read_extent
                                  : stic_tied(io->package) ? read_tied
                                                           : read_rows)(io, &r, lane->number, &error);
      if (status)
        stic_io_fail(io, &error);
      else if (r.rows && atomic_fetch_sub(&io->rows_pending, 1) == 1)
        stic_signal(&io->progress);
    }
    if (atomic_fetch_sub(&io->active, 1) == 1) stic_signal(&io->progress);
  }
}
