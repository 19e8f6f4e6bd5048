/* One encoder layer, stage by stage; each stage is split into items that any thread may run:
 *
 *     qkv        (slice, 16 rows)        y = bias + W x, a slice's own rows
 *     attention  (head, some queries)
 *     quantize   (tile)
 *     out        (16 rows)               y = bias + sum over slices of W x
 *     norm       (tile)                  x = LayerNorm(x + y), and x quantised
 *     up         (slice, 16 rows)        and the activation, while the rows are in registers
 *     quantize   (tile)
 *     down       (16 rows)
 *     norm       (tile) */
#include "matrix.h"

#include <string.h>

static void attention_part(void *context, uint32_t item, uint32_t thread) {
  const stic_step *t = context;
  stic_session *s = t->s;
  const stic_shape *shape = &t->cut->entry;
  const uint32_t width = t->cut->attention_width, hd = shape->head_dim, m = t->kept.slices;
  const uint32_t parts = (t->tiles + t->queries - 1) / t->queries;
  const uint32_t head = item / parts, first = item % parts * t->queries;
  const uint32_t tiles = t->tiles - first < t->queries ? t->tiles - first : t->queries;
  const uint32_t slice = head / shape->heads_per_slice, part = head % shape->heads_per_slice;
  const uint32_t qkv_rows = m * 3 * width;
  float *qkv = stic_floats_at(s, STIC_REGION_QKV) + ((size_t)slice * 3 * width + part * hd) * STIC_TILE;
  float *q = qkv + (size_t)first * qkv_rows * STIC_TILE, *k = qkv + (size_t)width * STIC_TILE;
  float *context_at = stic_floats_at(s, STIC_REGION_CONTEXT) + ((size_t)first * m * width + slice * width) * STIC_TILE;
  float *floats = stic_step_scratch(t, thread) + stic_extra_floats(&s->package);
  int8_t *bytes = (int8_t *)(floats + (size_t)t->tiles * (STIC_TILE + 1) * STIC_TILE + 2 * stic_pad(hd, STIC_TILE));
  s->kernels.attention(q, k, k + (size_t)width * STIC_TILE, context_at + (size_t)part * hd * STIC_TILE, floats, bytes,
                       (int32_t)qkv_rows, (int32_t)(m * width), (int32_t)t->n, (int32_t)tiles);
  const uint32_t used = shape->heads_per_slice * hd;
  for (uint32_t tile = 0; part == 0 && used < width && tile < tiles; tile++)
    memset(context_at + ((size_t)tile * m * width + used) * STIC_TILE, 0,
           (size_t)(width - used) * STIC_TILE * sizeof(float));
}

static void norm_tile(void *context, uint32_t tile, uint32_t thread) {
  const stic_step *t = context;
  stic_session *s = t->s;
  (void)thread;
  const size_t at = (size_t)tile * s->package.padded_hidden * STIC_TILE;
  float *x = stic_floats_at(s, STIC_REGION_X) + at;
  s->kernels.add_norm(x, stic_floats_at(s, STIC_REGION_Y) + at, stic_trunk_at(s, t->gamma_at),
                      stic_trunk_at(s, t->beta_at));
  if (t->quantize) stic_quantize_tile(s, x, tile, s->package.padded_hidden);
}

static void normalise(stic_step *t, const stic_norm *norm, bool quantize) {
  t->gamma_at = norm->gamma_at;
  t->beta_at = norm->beta_at;
  t->quantize = quantize;
  stic_step_run(t, STIC_EVENT_NORM, norm_tile, t->tiles);
}

/* Keys and values are prepared once an item, so a head is split only where threads would be left without work. */
static void attend(stic_step *t) {
  const uint32_t heads = t->kept.slices * t->cut->entry.heads_per_slice, threads = t->s->package.header->threads;
  uint32_t parts = 1;
  while (heads * parts % threads && heads * parts < 4 * threads && parts < t->tiles) parts++;
  t->queries = (t->tiles + parts - 1) / parts;
  stic_step_run(t, STIC_EVENT_ATTENTION, attention_part, heads * ((t->tiles + t->queries - 1) / t->queries));
}

void stic_quantize_hidden(stic_session *s, uint32_t number, uint32_t n) {
  stic_step t = {.s = s, .number = number, .tiles = (n + STIC_TILE - 1) / STIC_TILE};
  t.source = stic_floats_at(s, STIC_REGION_X);
  t.width = s->package.padded_hidden;
  stic_step_quantize(&t);
}

void stic_compute_layer(stic_session *s, uint32_t number, uint32_t n, bool quantize) {
  const stic_package *p = &s->package;
  const stic_block *b = &p->blocks[number];
  const stic_cut *cut = stic_cut_of(p, number);
  const struct stic_kept kept = p->kept[number];
  const uint32_t hidden = p->padded_hidden, attention = kept.slices * cut->attention_width;
  const uint32_t ffn = kept.slices * cut->ffn_width, tiles = (n + STIC_TILE - 1) / STIC_TILE;
  stic_step t = {.s = s, .cut = cut, .kept = kept, .number = number, .n = n, .tiles = tiles};
  stic_step_project(&t, STIC_EVENT_QKV, STIC_QKV, STIC_REGION_X, hidden, STIC_REGION_QKV);
  attend(&t);
  stic_step_project(&t, STIC_EVENT_OUT, STIC_OUT, STIC_REGION_CONTEXT, attention, STIC_REGION_Y);
  normalise(&t, &b->attention, true);
  stic_step_project(&t, STIC_EVENT_UP, STIC_UP, STIC_REGION_X, hidden, STIC_REGION_FFN);
  stic_step_project(&t, STIC_EVENT_DOWN, STIC_DOWN, STIC_REGION_FFN, ffn, STIC_REGION_Y);
  normalise(&t, &b->post, quantize);
}
