/* One run: check the input, let the lanes go, compute layer after layer as they become ready. Nothing here or below
 * allocates. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <unistd.h>

#include "session.h"

static stic_status check_input(stic_session *s, const int32_t *ids, const int32_t *types, int32_t n, const float *output,
                               size_t capacity) {
  const stic_header *h = s->package.header;
  stic_error *error = &s->error;
  if (!ids || !output) return stic_fail(error, STIC_INVALID_ARGUMENT, "stic_session_run was given a null pointer");
  if (n < 1) return stic_fail(error, STIC_INPUT_LENGTH, "the input has no tokens");
  if ((uint32_t)n > h->max_length)
    return stic_fail(error, STIC_INPUT_LENGTH,
                     "input of %d tokens; this package was compiled for at most %u: shorten the input, or compile with a"
                     " larger --max-length", n, h->max_length);
  if (capacity < stic_session_output_size(s, n))
    return stic_fail(error, STIC_OUTPUT_CAPACITY, "the output has room for %zu floats of %zu", capacity,
                     stic_session_output_size(s, n));
  const int32_t kinds = h->types ? (int32_t)h->types : 1;
  for (int32_t t = 0; t < n; t++) {
    if (ids[t] < 0 || (uint32_t)ids[t] >= h->vocabulary)
      return stic_fail(error, STIC_TOKEN_RANGE, "token %d has id %d; the vocabulary has %u", t, ids[t], h->vocabulary);
    if (types && (types[t] < 0 || types[t] >= kinds))
      return stic_fail(error, STIC_TOKEN_RANGE, "token %d has type %d; the model has types below %d", t, types[t], kinds);
  }
  return STIC_OK;
}

/* Rows of a resident table need no reading, only the check that a read row gets. */
static stic_status place_rows(stic_session *s, const int32_t *ids, uint32_t n) {
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

/* Note how long compute waited since begin_ns. */
static void stalled(stic_session *s, int32_t layer, uint64_t begin_ns) {
  const uint64_t waited = stic_trace_now(&s->trace) - begin_ns;
  s->stall_ns += waited;
  if (waited >= 1000) stic_stage_done(s, STIC_EVENT_STALL, layer, begin_ns);
}

static stic_status compute(stic_session *s, uint32_t n) {
  const stic_package *p = &s->package;
  const uint32_t layers = p->header->layers;
  stic_status status;
  uint64_t begin = stic_trace_now(&s->trace);
  if ((status = stic_io_wait_rows(&s->io))) return status;
  if (p->header->load_first)
    for (uint32_t l = 0; l < layers; l++)
      if ((status = stic_io_wait_layer(&s->io, l))) return status;
  stalled(s, -1, begin);
  stic_compute_embedding(s, n);
  uint32_t last = layers; /* layer that is computed last */
  while (last > 0 && p->layers[last - 1].slices == 0) last--;
  for (uint32_t l = 0; l < layers; l++) {
    if (p->layers[l].slices) {
      begin = stic_trace_now(&s->trace);
      if ((status = stic_io_wait_layer(&s->io, l))) return status;
      stalled(s, (int32_t)l, begin);
      stic_compute_layer(s, l, n, l + 1 < last);
    }
    stic_io_computed(&s->io, l + 1);
  }
  stic_compute_head(s, n);
  return STIC_OK;
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
  stic_status status = resident ? place_rows(s, own_ids, n) : STIC_OK;
  if (status) return status;
  stic_io_begin(&s->io, own_ids, resident ? 0 : n, true);
  (void)compute(s, n); /* fails only where reading failed, and then stic_io_end says how */
  if ((status = stic_io_end(&s->io, &s->error))) return status;
  memcpy(output, stic_region_at(s, STIC_REGION_OUTPUT), stic_session_output_size(s, (int32_t)n) * sizeof *output);
  s->run_ns = stic_trace_now(&s->trace);
  s->runs++;
  return STIC_OK;
}

stic_status stic_session_run(stic_session *s, const int32_t *ids, const int32_t *types, int32_t n, float *output,
                             size_t capacity) {
  if (!s) return STIC_INVALID_ARGUMENT;
  /* The message belongs to the run under way, so that this one leaves only its status. */
  if (atomic_exchange(&s->busy, true)) return STIC_BUSY;
  stic_status status;
  if (s->process != getpid())
    status = stic_fail(&s->error, STIC_WRONG_PROCESS, "the session was opened by another process: open one after the fork");
  else if (!(status = check_input(s, ids, types, n, output, capacity)))
    status = run(s, ids, types, (uint32_t)n, output);
  stic_pool_leave(&s->pool);
  atomic_store(&s->busy, false);
  return status;
}
