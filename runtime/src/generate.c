/* What a decoder's session does with its text: extend it chunk by chunk, sample, go back, save, load. Nothing here or
 * below allocates. A call changes the text at its end, if all went well: until then what it leaves in the cache lies
 * behind the text. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <unistd.h>

#include "cache.h"
#include "decoder.h"
#include "sample.h"
#include "tied.h"

/* Begin a call on a decoder; where the status is not STIC_OK, the call is over. */
static stic_status enter(stic_session *s, const char *name) {
  stic_status status = stic_session_enter(s, name);
  if (status || s->package.model->causal) return status;
  status = stic_fail(&s->error, STIC_NOT_THIS_MODEL, "%s is for decoders, and this package is an encoder's: call %s",
                     name, "stic_session_run");
  stic_session_leave(s);
  return status;
}

/* What to extend a text by: one of two lists. */
typedef struct {
  const stic_token *tokens;
  const int32_t *ids;
  size_t n;
} addition;

static int32_t id_of(const addition *a, size_t i) { return a->tokens ? a->tokens[i].id : a->ids[i]; }

static stic_status check(stic_session *s, const addition *a) {
  const stic_model *model = s->package.model;
  const uint32_t position = s->text.position, left = model->max_length - position;
  stic_error *error = &s->error;
  if (!a->tokens && !a->ids) return stic_fail(error, STIC_INVALID_ARGUMENT, "an extend was given a null pointer");
  if (a->n == 0) return stic_fail(error, STIC_INPUT_LENGTH, "there are no tokens to extend the text by");
  if (a->n > left)
    return stic_fail(error, STIC_CONTEXT_FULL,
                     "%zu tokens after %u are more than this package's context of %u: rewind, or compile with a larger"
                     " --context",
                     a->n, position, model->max_length);
  for (size_t i = 0; i < a->n; i++) {
    if (a->tokens && a->tokens[i].sequence)
      return stic_fail(error, STIC_POSITION,
                       "token %zu is of sequence %u: sessions of this version hold one text, sequence 0; open a session"
                       " for each",
                       i, a->tokens[i].sequence);
    if (a->tokens && a->tokens[i].position != position + i)
      return stic_fail(error, STIC_POSITION, "token %zu has position %u; the text goes on at %zu: rewind to go back", i,
                       a->tokens[i].position, position + i);
    if (id_of(a, i) < 0 || (uint32_t)id_of(a, i) >= model->vocabulary)
      return stic_fail(error, STIC_TOKEN_RANGE, "token %zu has id %d; the vocabulary has %u", i, id_of(a, i),
                       model->vocabulary);
  }
  return STIC_OK;
}

/* Whether a record of the vocabulary is in memory, and verified. */
static bool present(const stic_io *io, uint32_t level, uint32_t slice) {
  const stic_package *p = io->package;
  for (uint32_t i = p->plan.resident_extents; i-- > 0 && p->extents[io->by_block[i]].block == p->header->blocks - 1;) {
    const stic_present there = stic_io_present(io, io->by_block[i]);
    if (p->extents[io->by_block[i]].level == level && there.first <= slice && slice < there.last) return true;
  }
  return false;
}

static bool in_memory(const stic_io *io, const stic_tied_row *row) {
  uint32_t level, last;
  stic_levels_of(io->package, row->bits, &level, &last);
  while (level <= last && present(io, level, row->slice)) level++;
  return level > last;
}

/* Put the rows that are in memory in their place in region x. Their ids become -1; the others are to be read. */
static void place_tied(stic_session *s, int32_t *ids, uint32_t n) {
  const stic_package *p = &s->package;
  const size_t tile = (size_t)p->padded_hidden * STIC_TILE;
  const uint64_t begin = stic_trace_now(&s->trace);
  uint8_t *found = stic_region_at(s, STIC_REGION_STAGING); /* the lanes rest */
  memset((float *)stic_region_at(s, STIC_REGION_X) + (n - 1) / STIC_TILE * tile, 0, tile * sizeof(float));
  for (uint32_t t = 0; t < n; t++) {
    const stic_tied_row row = stic_tied_find(p, ids[t]);
    if (!in_memory(&s->io, &row)) continue;
    for (uint32_t i = 0; i < row.parts; i++)
      stic_tied_take(p, &row, i, s->io.weights + s->record_at[row.part[i].record] + row.part[i].at, found);
    stic_tied_put(p, &row, found, s->arena, t);
    ids[t] = -1;
  }
  stic_stage_done(s, STIC_EVENT_EMBED, -1, begin);
}

/* One pass, and nothing left under way, whatever happened. */
static stic_status pass(stic_session *s, uint32_t n, uint32_t position, stic_wanted wanted) {
  const stic_header *h = s->package.header;
  int32_t *ids = stic_region_at(s, STIC_REGION_IDS);
  stic_status status = h->table_resident ? stic_place_rows(s, ids, n) : STIC_OK;
  if (status) return status;
  if (stic_tied(&s->package)) place_tied(s, ids, n);
  stic_io_begin(&s->io, ids, h->table_resident ? 0 : n, wanted.any ? h->blocks : h->blocks - 1);
  status = stic_decode(s, n, position, wanted);
  /* Where reading failed, the lanes know it already, and how. */
  if (status) stic_io_fail(&s->io, &s->error);
  return stic_io_end(&s->io, &s->error);
}

static stic_status extend(stic_session *s, const addition *a, float *logits) {
  const stic_model *model = s->package.model;
  int32_t *own_ids = stic_region_at(s, STIC_REGION_IDS);
  stic_status status = STIC_OK;
  atomic_store(&s->io.cancelled, false);
  stic_trace_start(&s->trace);
  stic_pool_enter(&s->pool);
  s->stall_ns = 0;
  for (size_t first = 0; first < a->n && !status; first += model->chunk) {
    const uint32_t n = a->n - first < model->chunk ? (uint32_t)(a->n - first) : model->chunk;
    const stic_wanted wanted = {logits || first + n == a->n, logits ? logits + first * model->output_features : NULL};
    for (uint32_t i = 0; i < n; i++) own_ids[i] = id_of(a, first + i);
    status = pass(s, n, s->text.position + (uint32_t)first, wanted);
  }
  stic_pool_leave(&s->pool);
  if (status) return status;
  const size_t vocabulary = model->output_features;
  if (logits)
    memcpy(stic_region_at(s, STIC_REGION_LOGITS), logits + (a->n - 1) * vocabulary, vocabulary * sizeof *logits);
  s->text.position += (uint32_t)a->n;
  s->text.logits = true;
  s->run_ns = stic_trace_now(&s->trace);
  s->runs++;
  return STIC_OK;
}

static stic_status extend_by(stic_session *s, const addition *a, float *logits, size_t capacity) {
  stic_status status = check(s, a);
  const size_t vocabulary = s->package.model->output_features;
  if (!status && logits && capacity / vocabulary < a->n)
    status = stic_fail(&s->error, STIC_OUTPUT_CAPACITY, "the logits have room for %zu floats of %zu", capacity,
                       a->n * vocabulary);
  if (!status) status = extend(s, a, logits);
  stic_session_leave(s);
  return status;
}

stic_status stic_session_extend(stic_session *s, const stic_token *tokens, size_t n, float *logits, size_t capacity) {
  const stic_status status = enter(s, "stic_session_extend");
  return status ? status : extend_by(s, &(addition){tokens, NULL, n}, logits, capacity);
}

stic_status stic_session_extend_ids(stic_session *s, const int32_t *ids, size_t n) {
  const stic_status status = enter(s, "stic_session_extend_ids");
  return status ? status : extend_by(s, &(addition){NULL, ids, n}, NULL, 0);
}

static stic_status need_logits(stic_session *s) {
  if (s->text.logits) return STIC_OK;
  return stic_fail(&s->error, STIC_POSITION,
                   "there are no logits at position %u, since no token was computed there: extend the text first",
                   s->text.position);
}

stic_status stic_session_logits(stic_session *s, float *logits, size_t capacity) {
  stic_status status = enter(s, "stic_session_logits");
  if (status) return status;
  const size_t vocabulary = s->package.model->output_features;
  if (!logits)
    status = stic_fail(&s->error, STIC_INVALID_ARGUMENT, "stic_session_logits was given a null pointer");
  else if (capacity < vocabulary)
    status =
        stic_fail(&s->error, STIC_OUTPUT_CAPACITY, "the logits have room for %zu floats of %zu", capacity, vocabulary);
  else if (!(status = need_logits(s)))
    memcpy(logits, stic_region_at(s, STIC_REGION_LOGITS), vocabulary * sizeof *logits);
  stic_session_leave(s);
  return status;
}

stic_status stic_session_sample(stic_session *s, const stic_sampling *sampling, const int32_t *recent,
                                size_t recent_tokens, int32_t *token) {
  stic_status status = enter(s, "stic_session_sample");
  if (status) return status;
  const stic_choice choice = {.logits = stic_region_at(s, STIC_REGION_LOGITS),
                              .vocabulary = s->package.model->output_features,
                              .recent = recent,
                              .recent_tokens = recent_tokens,
                              .position = s->text.position,
                              .marks = s->text.marks};
  if (!sampling || !token || (!recent && recent_tokens))
    status = stic_fail(&s->error, STIC_INVALID_ARGUMENT, "stic_session_sample was given a null pointer");
  else if (!(status = need_logits(s)))
    status = stic_sample(sampling, &choice, token, &s->error);
  stic_session_leave(s);
  return status;
}

uint32_t stic_session_position(const stic_session *s) { return s ? s->text.position : 0; }

stic_status stic_session_rewind(stic_session *s, uint32_t position) {
  stic_status status = enter(s, "stic_session_rewind");
  if (status) return status;
  if (position > s->text.position)
    status = stic_fail(&s->error, STIC_POSITION, "the text has %u tokens, and cannot go back to position %u",
                       s->text.position, position);
  else if (position < s->text.position)
    s->text.position = position, s->text.logits = false;
  stic_session_leave(s);
  return status;
}

stic_status stic_session_save(stic_session *s, const char *path) {
  stic_status status = enter(s, "stic_session_save");
  if (status) return status;
  status = path ? stic_state_save(s, path)
                : stic_fail(&s->error, STIC_INVALID_ARGUMENT, "stic_session_save was given a null pointer");
  stic_session_leave(s);
  return status;
}

stic_status stic_session_load(stic_session *s, const char *path) {
  stic_status status = enter(s, "stic_session_load");
  if (status) return status;
  status = path ? stic_state_load(s, path)
                : stic_fail(&s->error, STIC_INVALID_ARGUMENT, "stic_session_load was given a null pointer");
  stic_session_leave(s);
  return status;
}

void stic_session_cancel(stic_session *s) {
  if (!s || !s->package.model->causal) return;
  atomic_store(&s->io.cancelled, true);
  stic_signal(&s->io.progress);
}
