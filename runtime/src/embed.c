#include <string.h>

#include "session.h"

static void embed_tile(void *context, uint32_t tile, uint32_t thread) {
  stic_session *s = ((void **)context)[0];
  const uint32_t n = *(const uint32_t *)((void **)context)[1];
  const stic_package *p = &s->package;
  const stic_header *h = p->header;
  const uint32_t first = tile * STIC_TILE, count = n - first < STIC_TILE ? n - first : STIC_TILE;
  uint8_t *rows = (uint8_t *)stic_region_at(s, STIC_REGION_ROWS) + (size_t)first * h->row_stride;
  stic_half *position = (stic_half *)stic_trunk_at(s, h->position_at) + (size_t)first * p->padded_hidden;
  int32_t *types = (int32_t *)stic_region_at(s, STIC_REGION_TYPES) + first;
  float *x = (float *)stic_region_at(s, STIC_REGION_X) + (size_t)first * p->padded_hidden;
  (void)thread;
  s->kernels.embed(rows, position, stic_trunk_at(s, h->token_type_at), types, stic_trunk_at(s, h->embedding_gamma_at),
                   stic_trunk_at(s, h->embedding_beta_at), x, (int32_t)count, (int32_t)h->row_stride);
  stic_quantize_tile(s, x, tile, p->padded_hidden);
}

void stic_compute_embedding(stic_session *s, uint32_t n) {
  const uint64_t begin = stic_trace_now(&s->trace);
  void *context[] = {s, &n};
  stic_pool_run(&s->pool, embed_tile, context, (n + STIC_TILE - 1) / STIC_TILE);
  stic_stage_done(s, STIC_EVENT_EMBED, -1, begin);
}
