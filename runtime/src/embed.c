#include <string.h>

#include "session.h"

typedef struct {
  stic_session *session;
  stic_half *positions; /* a row a token */
  uint32_t n;
} embedding;

static void embed_tile(void *context, uint32_t tile, uint32_t thread) {
  const embedding *e = context;
  stic_session *s = e->session;
  const stic_package *p = &s->package;
  const stic_model *m = p->model;
  const uint32_t stride = p->header->row_stride;
  const uint32_t first = tile * STIC_TILE, count = e->n - first < STIC_TILE ? e->n - first : STIC_TILE;
  uint8_t *rows = (uint8_t *)stic_region_at(s, STIC_REGION_ROWS) + (size_t)first * stride;
  stic_half *position = e->positions + (size_t)first * p->padded_hidden;
  int32_t *types = (int32_t *)stic_region_at(s, STIC_REGION_TYPES) + first;
  float *x = (float *)stic_region_at(s, STIC_REGION_X) + (size_t)first * p->padded_hidden;
  (void)thread;
  s->kernels.embed(rows, position, stic_trunk_at(s, m->token_type_at), types, stic_trunk_at(s, m->embedding_gamma_at),
                   stic_trunk_at(s, m->embedding_beta_at), x, (int32_t)count, (int32_t)stride);
  stic_quantize_tile(s, x, tile, p->padded_hidden);
}

bool stic_holds_padding(const stic_session *s, uint32_t n) {
  const uint32_t padding = s->package.model->padding;
  const int32_t *ids = stic_region_at(s, STIC_REGION_IDS);
  for (uint32_t t = 0; padding && t < n; t++)
    if ((uint32_t)ids[t] == padding - 1) return true;
  return false;
}

/* Position rows in the order of the tokens: the table, or, where padding interrupts it, a copy in region y, which
 * nothing else uses before the first layer and in which a token has twice the room of a row. */
static stic_half *position_rows(stic_session *s, uint32_t n) {
  const stic_model *m = s->package.model;
  stic_half *table = stic_trunk_at(s, m->position_at);
  if (!stic_holds_padding(s, n)) return table;
  const size_t width = s->package.padded_hidden;
  const int32_t *ids = stic_region_at(s, STIC_REGION_IDS);
  stic_half *rows = stic_region_at(s, STIC_REGION_Y);
  for (uint32_t t = 0, counted = 0; t < n; t++) {
    const uint32_t row = (uint32_t)ids[t] == m->padding - 1 ? m->max_length : counted++;
    memcpy(rows + t * width, table + row * width, width * sizeof *rows);
  }
  return rows;
}

void stic_compute_embedding(stic_session *s, uint32_t n) {
  const uint64_t begin = stic_trace_now(&s->trace);
  embedding e = {s, position_rows(s, n), n};
  stic_pool_run(&s->pool, embed_tile, &e, (n + STIC_TILE - 1) / STIC_TILE);
  stic_stage_done(s, STIC_EVENT_EMBED, -1, begin);
}
