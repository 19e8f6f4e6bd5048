#define _POSIX_C_SOURCE 200809L
#include "io.h"

#include <string.h>

#include "pool.h"

enum { SPIN_NS = 20000 };

static void merge_order(stic_io *io, uint32_t blocks) {
  const stic_plan_entry *plan = &io->package->plan;
  const stic_extent *extents = io->package->extents;
  uint32_t next = 0; /* in by_block */
  io->ordered = 0;
  for (uint32_t i = plan->resident_extents; i < plan->extents; i++) {
    if (extents[i].block >= blocks) continue;
    for (; next < plan->resident_extents && extents[io->by_block[next]].block <= extents[i].block; next++)
      if (stic_io_missing_bytes(io, io->by_block[next])) io->order[io->ordered++] = io->by_block[next];
    io->order[io->ordered++] = i;
  }
  for (; next < plan->resident_extents; next++)
    if (stic_io_missing_bytes(io, io->by_block[next])) io->order[io->ordered++] = io->by_block[next];
}

uint32_t stic_io_row_group_end(const stic_io *io, uint32_t begin) {
  const uint64_t stride = io->package->header->row_stride, first = (uint64_t)io->ids[io->tokens[begin]];
  const uint64_t room = first * stride / STIC_BLOCK * STIC_BLOCK + io->package->staging_bytes;
  uint32_t end = begin + 1;
  for (; end < io->rows; end++) {
    const uint64_t id = (uint64_t)io->ids[io->tokens[end]];
    if (stride ? (id + 1) * stride > room : id != first) break;
  }
  return end;
}

static void sort_tokens(stic_io *io, uint32_t n) {
  static const uint32_t gaps[] = {1577, 701, 301, 132, 57, 23, 10, 4, 1}; /* Ciura 2001, extended */
  for (uint32_t i = 0; i < n; i++) io->tokens[i] = i;
  for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
    for (uint32_t i = gaps[g]; i < n; i++) {
      const uint32_t token = io->tokens[i];
      uint32_t j = i;
      for (; j >= gaps[g] && io->ids[io->tokens[j - gaps[g]]] > io->ids[token]; j -= gaps[g])
        io->tokens[j] = io->tokens[j - gaps[g]];
      io->tokens[j] = token;
    }
}

void stic_io_begin(stic_io *io, const int32_t *ids, uint32_t n, uint32_t blocks) {
  const stic_extent *extents = io->package->extents;
  io->ids = ids;
  io->rows = n;
  io->row = io->extent = io->offset = 0;
  io->device_free_ns = 0;
  atomic_store(&io->failed, false);
  atomic_store(&io->computed, 0);
  atomic_store(&io->bytes, 0);
  atomic_store(&io->requests, 0);
  sort_tokens(io, n);
  while (io->row < n && ids[io->tokens[io->row]] < 0) io->row++;
  uint32_t groups = 0;
  for (uint32_t t = io->row; t < n; t = stic_io_row_group_end(io, t)) groups++;
  atomic_store(&io->rows_pending, groups);
  for (uint32_t l = 0; l < io->package->header->blocks; l++) atomic_store(&io->pending[l], 0);
  merge_order(io, blocks);
  for (uint32_t i = 0; i < io->ordered; i++) {
    const uint32_t e = io->order[i];
    atomic_store(&io->left[e], stic_io_missing_bytes(io, e));
    stic_io_reading(io, e);
    atomic_fetch_add(&io->pending[extents[e].block], 1);
  }
  if (groups == 0 && io->ordered == 0) return;
  atomic_store(&io->active, io->row_lanes);
  stic_signal(&io->pass);
}

/* Wait until the counter is zero; the pass failed, was cancelled, or is done. */
static stic_status wait_zero(stic_io *io, const _Atomic uint32_t *counter) {
  const uint64_t start = atomic_load(counter) ? stic_now_ns() : 0;
  for (;;) {
    const uint32_t seen = atomic_load(&io->progress);
    if (atomic_load(&io->failed) || atomic_load(&io->cancelled)) return STIC_IO;
    if (atomic_load(counter) == 0) return STIC_OK;
    if (stic_now_ns() - start < SPIN_NS)
      stic_relax();
    else
      stic_wait(&io->progress, seen);
  }
}

stic_status stic_io_wait_rows(stic_io *io) { return wait_zero(io, &io->rows_pending); }

stic_status stic_io_wait_block(stic_io *io, uint32_t block) { return wait_zero(io, &io->pending[block]); }

void stic_io_computed(stic_io *io, uint32_t blocks) {
  uint32_t before = atomic_load(&io->computed);
  while (before < blocks && !atomic_compare_exchange_weak(&io->computed, &before, blocks)) continue;
  if (atomic_load(&io->active)) stic_signal(&io->gate);
}

stic_status stic_io_end(stic_io *io, stic_error *error) {
  for (;;) {
    const uint32_t seen = atomic_load(&io->progress);
    if (atomic_load(&io->active) == 0) break;
    stic_wait(&io->progress, seen);
  }
  if (!atomic_load(&io->failed)) return STIC_OK;
  *error = io->error;
  return io->error.status;
}

stic_status stic_io_start(stic_io *io, uint32_t stack_bytes, stic_error *error) {
  stic_io_sort_resident(io);
  pthread_mutex_init(&io->mutex, NULL);
  for (uint32_t i = 0; i < io->row_lanes; i++) {
    io->contexts[i] = (struct stic_lane){io, i};
    const stic_status status = stic_thread_start(&io->handles[i], stack_bytes, stic_lane_body, &io->contexts[i], error);
    if (status) return status;
    io->started++;
  }
  return STIC_OK;
}

void stic_io_stop(stic_io *io) {
  atomic_store(&io->stop, true);
  stic_signal(&io->pass);
  for (uint32_t i = 0; i < io->started; i++) pthread_join(io->handles[i], NULL);
  if (io->package) pthread_mutex_destroy(&io->mutex);
  io->started = 0;
}
