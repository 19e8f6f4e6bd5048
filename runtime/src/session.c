#define _POSIX_C_SOURCE 200809L
#include "session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache.h"
#include "sample.h"

static _Thread_local stic_error without_session;

stic_error *stic_error_without_session(void) { return &without_session; }

void *stic_session_take(stic_session *s, uint64_t count, size_t size) {
  void *memory = NULL;
  const uint64_t bytes = stic_pad((count ? count : 1) * size, STIC_ALIGN);
  if (posix_memalign(&memory, STIC_ALIGN, (size_t)bytes)) return NULL;
  memset(memory, 0, (size_t)bytes);
  s->bookkeeping_bytes += bytes;
  return memory;
}

stic_status stic_session_enter(stic_session *s, const char *name) {
  if (!s) return stic_fail(&without_session, STIC_INVALID_ARGUMENT, "%s was given a null pointer", name);
  if (atomic_exchange(&s->busy, true)) return STIC_BUSY;
  if (s->process == getpid()) return STIC_OK;
  const stic_status status =
      stic_fail(&s->error, STIC_WRONG_PROCESS, "the session was opened by another process: open one after the fork");
  stic_session_leave(s);
  return status;
}

void stic_session_leave(stic_session *s) { atomic_store(&s->busy, false); }

/* What bookkeeping has to have room for, whichever plan is active. */
typedef struct {
  uint32_t extents, resident;
  uint64_t requests; /* and checks of extents */
  uint64_t arena_bytes;
} needs;

static needs most_of(const stic_package *p) {
  needs most = {0, 0, 0, 0};
  for (uint32_t number = 0; number < p->header->plans; number++) {
    const stic_plan_entry plan = p->plans[number];
    const stic_extent *extents = (const stic_extent *)(p->index + plan.extents_at);
    /* At most: what is present of an extent may leave two parts of it to read. */
    uint64_t requests = 0;
    for (uint32_t i = 0; i < plan.extents; i++) requests += extents[i].bytes / p->header->request_bytes + 3;
    if (plan.extents > most.extents) most.extents = plan.extents;
    if (plan.resident_extents > most.resident) most.resident = plan.resident_extents;
    if (requests > most.requests) most.requests = requests;
    if (plan.arena_bytes > most.arena_bytes) most.arena_bytes = plan.arena_bytes;
  }
  return most;
}

/* A decoder's: marks for the sampler, and zeros for 16 rows' biases, or for all betas of a norm. */
static bool take_text(stic_session *s) {
  const stic_package *p = &s->package;
  if (!p->model->causal) return true;
  uint64_t widest = p->padded_hidden;
  for (uint32_t b = 0; b < p->header->blocks; b++) {
    const uint64_t heads = (uint64_t)stic_slices(p, b) * stic_cut_of(p, b)->attention_width;
    if (heads > widest) widest = heads;
  }
  s->text.marks = stic_session_take(s, stic_sample_marks(p->model->output_features), sizeof *s->text.marks);
  s->text.zeros = stic_session_take(s, widest, sizeof *s->text.zeros);
  return s->text.marks && s->text.zeros;
}

/* Events of a run beside its requests and reads of rows: of a block its stages and a stall; of the rest a stall, the
 * embedding, the head and hand-overs, with room for a few more. A trace keeps MOST_EVENTS, 768 KiB, at most: every
 * session takes that memory, whether anybody reads its trace or not. */
enum { EVENTS_OF_BLOCK = STIC_STAGES_OF_BLOCK + 1, EVENTS_BESIDE_BLOCKS = 8, MOST_EVENTS = 1 << 14 };

static stic_status take_bookkeeping(stic_session *s, const stic_options *options) {
  const stic_header *h = s->package.header;
  const stic_model *m = s->package.model;
  const needs most = most_of(&s->package);
  const uint64_t events = (uint64_t)EVENTS_OF_BLOCK * h->blocks + EVENTS_BESIDE_BLOCKS + m->chunk + most.requests;
  const uint64_t arena_bytes = s->package.plan.arena_bytes;
  s->trace.capacity = events < MOST_EVENTS ? (uint32_t)events : MOST_EVENTS;
  s->trace.events = stic_session_take(s, s->trace.capacity, sizeof *s->trace.events);
  s->record_at = stic_session_take(s, stic_records(&s->package), sizeof *s->record_at);
  s->codes = stic_session_take(s, s->package.most_slices, sizeof *s->codes);
  s->io.left = stic_session_take(s, most.extents, sizeof *s->io.left);
  s->io.present = stic_session_take(s, most.resident, sizeof *s->io.present);
  s->io.spare = stic_session_take(s, most.resident, sizeof *s->io.spare);
  s->io.by_block = stic_session_take(s, most.resident, sizeof *s->io.by_block);
  s->io.order = stic_session_take(s, most.extents, sizeof *s->io.order);
  s->io.tokens = stic_session_take(s, m->chunk, sizeof *s->io.tokens);
  s->io.pending = stic_session_take(s, h->blocks, sizeof *s->io.pending);
  /* Weights that a GPU shares may lie elsewhere: stic_session_open_gpu decides. */
  const size_t later = s->package.gpu ? (size_t)stic_weights_bytes(&s->package) : 0;
  s->reserved_bytes = most.arena_bytes;
  s->arena = stic_reserve((size_t)s->reserved_bytes);
  if (!s->trace.events || !s->record_at || !s->codes || !s->io.left || !s->io.present || !s->io.spare ||
      !s->io.by_block || !s->io.order || !s->io.tokens || !s->io.pending || !stic_session_take_gpu(s, options) ||
      !take_text(s) || !s->arena || !stic_fill(s->arena + later, (size_t)arena_bytes - later))
    return stic_fail(&s->error, STIC_OUT_OF_MEMORY, "no memory for the arena of %llu bytes",
                     (unsigned long long)arena_bytes);
  stic_session_place_records(s);
  return STIC_OK;
}

static stic_status load(stic_session *s, const char *path, const stic_options *options) {
  const stic_package *p = &s->package;
  const stic_header *h = p->header;
  stic_error *error = &s->error;
  stic_status status;
  char kernels[STIC_PATH_BYTES];
  if ((status = stic_kernels_check_cpu(p, error))) return status;
  if ((status = stic_files_check_sizes(path, p, error))) return status;
  if ((status = stic_files_verify(path, p->kernels, NULL, error))) return status;
  if ((status = stic_files_path(path, p->kernels->name, kernels, error))) return status;
  if ((status = stic_kernels_load(p, kernels, &s->kernels, error))) return status;
  if ((status = take_bookkeeping(s, options))) return status;
  if ((status = stic_files_verify(path, p->trunk, stic_region_at(s, STIC_REGION_TRUNK), error))) return status;
  if ((status = stic_trunk_check(p, stic_region_at(s, STIC_REGION_TRUNK), error))) return status;
  const bool buffered = options->buffered;
  if ((status = stic_files_open(path, p->shards, buffered, &s->io.shards, error))) return status;
  if ((status = stic_files_open(path, p->embeddings, buffered, &s->io.embeddings, error))) return status;
  uint8_t *table = stic_region_at(s, STIC_REGION_TABLE);
  for (uint64_t at = 0; h->table_resident && at < p->embeddings->bytes && !status; at += h->request_bytes) {
    const uint64_t left = p->embeddings->bytes - at, bytes = left < h->request_bytes ? left : h->request_bytes;
    status = stic_files_read(&s->io.embeddings, "embeddings.bin", at, (uint32_t)bytes, table + at, error);
  }
  if (status) return status;
  s->io.package = p;
  s->io.arena = s->io.weights = s->arena;
  s->io.gpu = &s->gpu;
  if ((status = stic_session_open_gpu(s, path, options))) return status;
  s->io.trace = &s->trace;
  s->io.lanes = options->lanes ? options->lanes : h->lanes;
  s->io.row_lanes = p->row_lanes;
  s->io.bytes_per_s = options->io_bytes_per_s;
  s->io.requests_per_s = options->io_requests_per_s;
  s->emulated = options->io_bytes_per_s || options->io_requests_per_s;
  s->pool.cores = h->cores;
  if ((status = stic_pool_start(&s->pool, options->threads ? options->threads : h->threads, h->stack_bytes, error)))
    return status;
  if ((status = stic_io_start(&s->io, h->stack_bytes, error))) return status;
  stic_trace_start(&s->trace);
  stic_io_begin(&s->io, NULL, 0, 0);
  return stic_io_end(&s->io, error);
}

static stic_status check_options(const stic_package *p, const stic_options *options, stic_error *error) {
  if (options->threads > p->header->threads || options->lanes > p->header->lanes)
    return stic_fail(error, STIC_INVALID_ARGUMENT,
                     "%u threads and %u lanes are more than the package has memory for (%u and %u)", options->threads,
                     options->lanes, p->header->threads, p->header->lanes);
  if (options->gpu > STIC_GPU_REQUIRED || options->gpu_arithmetic > STIC_INT8_ARITHMETIC)
    return stic_fail(error, STIC_INVALID_ARGUMENT, "stic_options.gpu is %u and gpu_arithmetic %u: both are 0, 1 or 2",
                     options->gpu, options->gpu_arithmetic);
  return STIC_OK;
}

static void destroy(stic_session *s) {
  stic_io_stop(&s->io);
  stic_pool_stop(&s->pool);
  if (s->gpu.on) stic_gpu_close(&s->gpu);
  stic_files_close(&s->io.shards);
  stic_files_close(&s->io.embeddings);
  stic_kernels_unload(&s->kernels);
  if (s->arena) stic_unmap(s->arena, (size_t)s->reserved_bytes);
  void *const memory[] = {s->trace.events,      s->record_at,          s->codes,         (void *)s->io.left,
                          s->io.present,        s->io.spare,           s->io.by_block,   s->io.order,
                          s->io.tokens,         (void *)s->io.pending, s->gpu.stages,    s->gpu.ends,
                          s->gpu.map,           s->gpu.ready,          s->gpu.wait_list, s->gpu.entries,
                          (void *)s->gpu.stale, s->text.marks,         s->text.zeros,    s->index};
  for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) free(memory[i]);
  free(s);
}

stic_status stic_session_open(const char *path, const stic_options *given, stic_session **session) {
  stic_options options = STIC_OPTIONS_DEFAULT;
  if (!session || !path)
    return stic_fail(&without_session, STIC_INVALID_ARGUMENT, "stic_session_open was given a null pointer");
  *session = NULL;
  stic_status status = STIC_OK;
  if (given) status = stic_version_read("stic_options", &options, sizeof options, given, &without_session);
  if (status) return status;
  stic_session *s = NULL;
  if (posix_memalign((void **)&s, STIC_ALIGN, sizeof *s))
    return stic_fail(&without_session, STIC_OUT_OF_MEMORY, "no memory for a session");
  memset(s, 0, sizeof *s);
  s->io.shards.file = s->io.embeddings.file = -1;
  s->process = getpid();
  size_t size = 0;
  status = stic_files_read_index(path, &s->index, &size, &s->error);
  s->index_bytes = size;
  s->bookkeeping_bytes = sizeof *s + size;
  if (!status) status = stic_package_parse(s->index, size, &s->package, &s->error);
  if (!status) status = check_options(&s->package, &options, &s->error);
  if (!status && (options.deadline_us || options.memory_bytes)) {
    uint32_t number;
    status = stic_package_choose(&s->package, options.deadline_us, options.memory_bytes, &number, &s->error);
    if (!status) stic_package_select(&s->package, number);
  }
  if (!status) status = load(s, path, &options);
  if (!status) {
    *session = s;
    return STIC_OK;
  }
  without_session = s->error;
  stic_error_prefix(&without_session, path);
  destroy(s);
  return status;
}

stic_status stic_session_close(stic_session *s) {
  if (!s) return STIC_OK;
  if (atomic_exchange(&s->busy, true))
    return stic_fail(&without_session, STIC_BUSY, "the session is running: close it when the run has returned");
  if (s->process != getpid()) { /* the threads exist in the parent only */
    s->io.started = s->pool.started = 0;
    s->gpu.on = false;
  }
  destroy(s);
  return STIC_OK;
}

const char *stic_error_message(const stic_session *s) { return s ? s->error.text : without_session.text; }

uint32_t stic_version(void) { return STIC_VERSION_MAJOR << 16 | STIC_VERSION_MINOR; }

stic_status stic_session_evict(stic_session *s, uint64_t bytes) {
  const stic_status status = stic_session_enter(s, "stic_session_evict");
  if (status) return status;
  if (!s->gpu.on)
    stic_io_evict(&s->io, bytes);
  else if (bytes)
    stic_gpu_evict(&s->gpu);
  stic_session_leave(s);
  return STIC_OK;
}

size_t stic_session_output_size(const stic_session *s, int32_t n) {
  if (!s || n < 0) return 0;
  const stic_model *m = s->package.model;
  return (size_t)m->output_features * (m->pooling == STIC_POOL_TOKENS ? (size_t)n : 1);
}

static bool can_fill(const void *session, const uint32_t *struct_bytes, const char *name) {
  if (session && struct_bytes && stic_version_has_size(*struct_bytes)) return true;
  stic_fail(&without_session, STIC_INVALID_ARGUMENT, "%s was given a null pointer or a wrong struct_bytes", name);
  return false;
}

stic_status stic_session_info(const stic_session *s, stic_info *info) {
  if (!can_fill(s, info ? &info->struct_bytes : NULL, "stic_session_info")) return STIC_INVALID_ARGUMENT;
  const stic_model *m = s->package.model;
  const stic_info found = {sizeof found,
                           m->hidden,
                           s->package.header->blocks,
                           s->package.most_slices,
                           m->vocabulary,
                           m->types,
                           m->max_length,
                           m->output_features,
                           m->pooling == STIC_POOL_TOKENS,
                           s->pool.threads,
                           s->io.lanes,
                           s->package.plan.deadline_us,
                           s->package.plan.predicted_us,
                           s->package.header->plans,
                           s->package.plan.claimed_bytes,
                           m->causal,
                           m->causal ? m->chunk : 0,
                           m->causal ? 8 * stic_cache_width(&s->package) : 0,
                           0,
                           stic_cache_bytes(&s->package)};
  stic_version_write(info, &found, sizeof found);
  return STIC_OK;
}

stic_status stic_session_stats(const stic_session *s, stic_stats *stats) {
  if (!can_fill(s, stats ? &stats->struct_bytes : NULL, "stic_session_stats")) return STIC_INVALID_ARGUMENT;
  const stic_header *h = s->package.header;
  const uint64_t stacks =
      (uint64_t)h->stack_bytes * (s->pool.threads - 1) + (uint64_t)STIC_LANE_STACK_BYTES * s->io.row_lanes;
  const uint64_t gpu_bytes = s->gpu.on ? stic_gpu_bytes(&s->gpu) : 0;
  uint32_t gpu_layers = 0;
  for (uint32_t l = 0; l < h->blocks; l++) gpu_layers += stic_gpu_runs(&s->gpu, l);
  const stic_stats found = {.struct_bytes = sizeof found,
                            .direct = s->io.shards.direct && s->io.embeddings.direct,
                            .emulated = s->emulated,
                            .gpu_layers = gpu_layers,
                            .gpu_builds = s->gpu.builds,
                            .gpu_arithmetic = !s->gpu.on   ? 0
                                              : s->gpu.dot ? STIC_INT8_ARITHMETIC
                                                           : STIC_FLOAT_ARITHMETIC,
                            .plan = s->package.number,
                            .arena_bytes = s->package.plan.arena_bytes,
                            .bookkeeping_bytes = s->bookkeeping_bytes,
                            .stack_bytes = stacks,
                            .gpu_bytes = gpu_bytes,
                            .peak_bytes = s->package.plan.arena_bytes + s->bookkeeping_bytes + stacks + gpu_bytes,
                            .claimed_bytes = s->package.plan.claimed_bytes,
                            .resident_bytes = stic_io_resident_bytes(&s->io),
                            .runs = s->runs,
                            .run_us = s->run_ns / 1000,
                            .stall_us = s->stall_ns / 1000,
                            .io_bytes = atomic_load(&s->io.bytes),
                            .io_requests = atomic_load(&s->io.requests)};
  stic_version_write(stats, &found, sizeof found);
  return STIC_OK;
}

stic_status stic_session_trace(const stic_session *s, stic_event *events, size_t capacity, size_t *count) {
  if (!s || !count || (!events && capacity))
    return stic_fail(&without_session, STIC_INVALID_ARGUMENT, "stic_session_trace was given a null pointer");
  *count = stic_trace_kept(&s->trace);
  if (capacity) memcpy(events, s->trace.events, (*count < capacity ? *count : capacity) * sizeof *events);
  return STIC_OK;
}

stic_status stic_session_trace_write(const stic_session *s, const char *path) {
  if (!s || !path)
    return stic_fail(&without_session, STIC_INVALID_ARGUMENT, "stic_session_trace_write was given a null pointer");
  return stic_trace_save(&s->trace, path, s->io.row_lanes, &without_session);
}
