/* One run: check the input, let the lanes go, compute layer after layer as they become ready. Nothing here or below
 * allocates. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "session.h"

static stic_status check_input(stic_session *s, const int32_t *ids, const int32_t *types, int32_t n,
                               const float *output, size_t capacity) {
  const stic_model *m = s->package.model;
  stic_error *error = &s->error;
  if (!ids || !output) return stic_fail(error, STIC_INVALID_ARGUMENT, "stic_session_run was given a null pointer");
  if (m->causal)
    return stic_fail(error, STIC_NOT_THIS_MODEL,
                     "stic_session_run is for encoders, and this package is a decoder's: call stic_session_extend");
  if (n < 1) return stic_fail(error, STIC_INPUT_LENGTH, "the input has no tokens");
  if ((uint32_t)n > m->max_length)
    return stic_fail(
        error, STIC_INPUT_LENGTH,
        "input of %d tokens; this package was compiled for at most %u: shorten the input, or compile with a"
        " larger --max-length",
        n, m->max_length);
  if (capacity < stic_session_output_size(s, n))
    return stic_fail(error, STIC_OUTPUT_CAPACITY, "the output has room for %zu floats of %zu", capacity,
                     stic_session_output_size(s, n));
  const int32_t kinds = m->types ? (int32_t)m->types : 1;
  for (int32_t t = 0; t < n; t++) {
    if (ids[t] < 0 || (uint32_t)ids[t] >= m->vocabulary)
      return stic_fail(error, STIC_TOKEN_RANGE, "token %d has id %d; the vocabulary has %u", t, ids[t], m->vocabulary);
    if (types && (types[t] < 0 || types[t] >= kinds))
      return stic_fail(error, STIC_TOKEN_RANGE, "token %d has type %d; the model has types below %d", t, types[t],
                       kinds);
  }
  return STIC_OK;
}

/* Rows of a resident table need no reading, only the check that a read row gets. */
stic_status stic_place_rows(stic_session *s, const int32_t *ids, uint32_t n) {
  const uint32_t stride = s->package.header->row_stride;
  const uint8_t *table = stic_region_at(s, STIC_REGION_TABLE);
  uint8_t *rows = stic_region_at(s, STIC_REGION_ROWS);
  for (uint32_t t = 0; t < n; t++) {
    const uint8_t *row = table + (size_t)ids[t] * stride;
    const stic_status status = stic_row_check(&s->package, row, ids[t], &s->error);
    if (status) return status;
    memcpy(rows + (size_t)t * stride, row, stride);
  }
  return STIC_OK;
}

/* A GPU that was still busy did not wait. */
void stic_stalled(stic_session *s, int32_t layer, bool on_gpu, uint64_t begin_ns) {
  const uint64_t now = stic_trace_now(&s->trace), begin = on_gpu ? stic_gpu_idle_since(&s->gpu, begin_ns) : begin_ns;
  if (begin >= now) return;
  s->stall_ns += now - begin;
  if (now - begin < 1000) return;
  const int32_t track = on_gpu ? STIC_TRACK_GPU : STIC_TRACK_COMPUTE;
  stic_trace_add(&s->trace, (stic_event){STIC_EVENT_STALL, layer, track, 0, 0, 0, 0, 0, begin, begin, now});
}

/* The first layer from `from` on that is kept; the number of layers if there is none. */
static uint32_t next_kept(const stic_package *p, uint32_t from) {
  while (from < p->header->blocks && p->kept[from].slices == 0) from++;
  return from;
}

/* Bring the hidden states to where layer `l` (or, past the last one, the head) is computed. */
static stic_status hand_over(stic_session *s, uint32_t l, bool to_gpu, uint32_t n) {
  float *x = stic_region_at(s, STIC_REGION_X);
  if (to_gpu) return stic_gpu_give(&s->gpu, x, n, &s->error);
  const stic_status status = stic_gpu_fetch(&s->gpu, x, n, &s->error);
  if (!status && l < s->package.header->blocks) stic_quantize_hidden(s, l, n);
  return status;
}

/* A GPU takes int8 rows, and positions as they follow one another; others are embedded here and handed over. */
static stic_status embed(stic_session *s, bool on_gpu, uint32_t n) {
  if (on_gpu && s->package.header->row_type == STIC_ROW_INT8 && !stic_holds_padding(s, n))
    return stic_gpu_embed(&s->gpu, stic_region_at(s, STIC_REGION_ROWS), stic_region_at(s, STIC_REGION_TYPES), n,
                          &s->error);
  stic_compute_embedding(s, n);
  return on_gpu ? hand_over(s, 0, true, n) : STIC_OK;
}

/* One layer; `next` is the kept one after it, before which all are then computed. */
static stic_status compute_layer(stic_session *s, uint32_t l, uint32_t next, uint32_t n) {
  if (stic_gpu_runs(&s->gpu, l)) return stic_gpu_compute_layer(&s->gpu, l, next, n, &s->error);
  const uint32_t layers = s->package.header->blocks;
  stic_compute_layer(s, l, n, next < layers && !stic_gpu_runs(&s->gpu, next));
  const stic_status status = s->gpu.on ? stic_gpu_release_extents(&s->gpu, l, &s->error) : STIC_OK;
  stic_io_computed(&s->io, next);
  return status;
}

static stic_status compute(stic_session *s, uint32_t n) {
  const stic_package *p = &s->package;
  const uint32_t layers = p->header->blocks;
  stic_status status;
  uint64_t begin = stic_trace_now(&s->trace);
  if ((status = stic_io_wait_rows(&s->io))) return status;
  if (p->plan.load_first)
    for (uint32_t l = 0; l < layers; l++)
      if ((status = stic_io_wait_block(&s->io, l))) return status;
  const uint32_t first = next_kept(p, 0);
  bool on_gpu = first < layers && stic_gpu_runs(&s->gpu, first);
  stic_stalled(s, -1, on_gpu, begin);
  if ((status = embed(s, on_gpu, n))) return status;
  stic_io_computed(&s->io, first);
  for (uint32_t l = first, next; l < layers; l = next) {
    next = next_kept(p, l + 1);
    if (stic_gpu_runs(&s->gpu, l) != on_gpu) {
      if ((status = hand_over(s, l, !on_gpu, n))) return status;
      on_gpu = !on_gpu;
    }
    begin = stic_trace_now(&s->trace);
    if ((status = stic_io_wait_block(&s->io, l))) return status;
    stic_stalled(s, (int32_t)l, on_gpu, begin);
    if ((status = compute_layer(s, l, next, n))) return status;
  }
  if (on_gpu && (status = hand_over(s, layers, false, n))) return status;
  stic_compute_head(s, n);
  return STIC_OK;
}

/* Compute, and leave nothing under way, whatever happened. */
static stic_status complete(stic_session *s, uint32_t n) {
  stic_gpu *gpu = &s->gpu;
  stic_status status = compute(s, n);
  if (gpu->on) {
    stic_error second; /* what failed first is what is told */
    const stic_status finished = stic_gpu_finish(gpu, status ? &second : &s->error);
    if (!status) status = finished;
  }
  /* Where reading failed, the lanes know it already, and how. */
  if (status) stic_io_fail(&s->io, &s->error);
  return stic_io_end(&s->io, &s->error);
}

static stic_status run(stic_session *s, const int32_t *ids, const int32_t *types, uint32_t n, float *output) {
  stic_trace_start(&s->trace);
  stic_pool_enter(&s->pool);
  s->stall_ns = 0;
  int32_t *own_ids = stic_region_at(s, STIC_REGION_IDS), *own_types = stic_region_at(s, STIC_REGION_TYPES);
  memcpy(own_ids, ids, n * sizeof *ids);
  if (types)
    memcpy(own_types, types, n * sizeof *types);
  else
    memset(own_types, 0, n * sizeof *own_types);
  const bool resident = s->package.header->table_resident;
  stic_status status = resident ? stic_place_rows(s, own_ids, n) : STIC_OK;
  if (!status && s->gpu.on) status = stic_gpu_begin(&s->gpu, &s->error);
  if (status) return status;
  stic_io_begin(&s->io, own_ids, resident ? 0 : n, s->package.header->blocks);
  status = complete(s, n);
  if (!status) {
    memcpy(output, stic_region_at(s, STIC_REGION_OUTPUT), stic_session_output_size(s, (int32_t)n) * sizeof *output);
    s->run_ns = stic_trace_now(&s->trace);
    s->runs++;
  }
  if (s->gpu.on) stic_gpu_end(&s->gpu, status, s->run_ns);
  return status;
}

stic_status stic_session_run(stic_session *s, const int32_t *ids, const int32_t *types, int32_t n, float *output,
                             size_t capacity) {
  stic_status status = stic_session_enter(s, "stic_session_run");
  if (status) return status;
  if (!(status = check_input(s, ids, types, n, output, capacity))) status = run(s, ids, types, (uint32_t)n, output);
  stic_pool_leave(&s->pool);
  stic_session_leave(s);
  return status;
}
