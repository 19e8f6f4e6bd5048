/* One encoder layer, stage by stage; each stage is split into items that any thread may run:
 *
 *     qkv        (slice, 16 rows)     y = bias + W x, a slice's own rows
 *     attention  (head, 16 queries)
 *     quantize   (tile)
 *     out        (16 rows)            y = bias + sum over slices of W x
 *     norm       (tile)               x = LayerNorm(x + y), and x quantised
 *     up         (slice, 16 rows)     and the activation, while the rows are in cache
 *     quantize   (tile)
 *     down       (16 rows)
 *     norm       (tile)
 *
 * A block of 16 rows of a matrix is unpacked into the thread's own panel just before it is used, so that no more than
 * one panel a thread ever exists unpacked. */
#include <string.h>

#include "session.h"

typedef struct {
  stic_session *s;
  const stic_layer *layer;
  uint32_t number;             /* of the layer */
  uint32_t n, tiles;           /* tokens, tiles of them */
  uint32_t matrix, blocks;     /* of the stage; blocks of 16 rows in the matrix */
  const float *source;         /* input of the stage, (tiles, width, 16) */
  uint32_t width;
  uint32_t scale_at, bias_at;  /* in the trunk */
  uint32_t gamma_at, beta_at;
  float *target;               /* output of the stage */
  bool quantize;
} step;

static float *region(const stic_session *s, uint32_t r) { return stic_region_at(s, r); }

void stic_quantize_tile(stic_session *s, const float *source, uint32_t tile, uint32_t k) {
  int8_t *q = (int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + (size_t)tile * k * STIC_TILE;
  int32_t *sum = (int32_t *)stic_region_at(s, STIC_REGION_TOKEN_SUM) + tile * STIC_TILE;
  /* Kernels take no const pointers; this one only reads x. */
  s->kernels.quantize((float *)(uintptr_t)source, q, region(s, STIC_REGION_TOKEN_SCALE) + tile * STIC_TILE, sum,
                      (int32_t)k);
}

static const uint8_t *record(const step *t, uint32_t level, uint32_t slice) {
  return t->s->record_at[stic_record_index(&t->s->package, t->number, level, slice)];
}

/* 16 rows of one slice's matrix -> panel. Returns the outliers among them, *count entries. */
static uint16_t *unpack(const step *t, uint32_t slice, uint32_t block, uint8_t *panel, int32_t *count) {
  stic_session *s = t->s;
  const stic_package *p = &s->package;
  const uint32_t k = p->columns[t->matrix], bits = stic_bits(p, t->number, slice);
  uint8_t *planes[8] = {NULL};
  uint32_t level, last, plane = 0;
  const uint8_t *base = NULL;
  stic_levels_of(p, bits, &level, &last);
  const uint32_t first = level;
  for (; level <= last; level++) {
    const stic_layout *layout = &p->layouts[level];
    base = record(t, level, slice);
    for (uint32_t i = 0; i < layout->planes; i++)
      planes[plane++] = (uint8_t *)(uintptr_t)base + layout->plane_at[t->matrix][i] + (size_t)block * 2 * k;
  }
  int8_t *table = (int8_t *)(uintptr_t)base + p->layouts[last].table_at[t->matrix];
  s->kernels.unpack[bits](planes[0], planes[1], planes[2], planes[3], planes[4], planes[5], planes[6], planes[7], table,
                          panel, (int32_t)(k / 4));
  const uint16_t *entries;
  const uint32_t *starts = stic_record_outliers(p, first, record(t, first, slice), t->matrix, &entries);
  *count = (int32_t)(starts[block + 1] - starts[block]);
  uint16_t *own = (uint16_t *)(uintptr_t)entries + 2 * (size_t)starts[block];
  if (*count) s->kernels.outlier_mask(panel, own, *count);
  return own;
}

/* y += W x for 16 rows of a full-precision slice; x at the slice's first feature. */
static void full_rows(const step *t, uint32_t slice, uint32_t block, const float *x, float *y, uint32_t y_rows) {
  stic_session *s = t->s;
  const stic_package *p = &s->package;
  const uint32_t k = p->columns[t->matrix];
  uint8_t *weight = (uint8_t *)(uintptr_t)record(t, STIC_FULL, slice) + p->layouts[STIC_FULL].plane_at[t->matrix][0];
  float *from = (float *)(uintptr_t)x;
  const size_t first = (size_t)block * STIC_TILE * k;
  if (p->header->full_bits == 16)
    s->kernels.matmul_f16((stic_half *)(void *)weight + first, from, y, (int32_t)k, (int32_t)t->width, (int32_t)y_rows,
                          (int32_t)t->tiles);
  else
    s->kernels.matmul_f32((float *)(void *)weight + first, from, y, (int32_t)k, (int32_t)t->width, (int32_t)y_rows,
                          (int32_t)t->tiles);
}

static uint8_t *panel_of(const step *t, uint32_t thread) {
  const stic_region *r = &t->s->package.regions[STIC_REGION_PANEL];
  const uint64_t each = r->bytes / t->s->package.header->threads / STIC_ALIGN * STIC_ALIGN;
  return t->s->arena + r->offset + thread * each;
}

/* qkv and up: rows that belong to one slice. */
static void split_block(void *context, uint32_t item, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const uint32_t slice = item / t->blocks, block = item % t->blocks, rows = t->blocks * STIC_TILE;
  const uint32_t y_rows = t->layer->slices * rows, row = slice * rows + block * STIC_TILE;
  float *y = t->target + (size_t)row * STIC_TILE;
  s->kernels.bias(y, (float *)stic_trunk_at(s, t->bias_at) + row, (int32_t)y_rows, (int32_t)t->tiles);
  if (slice < t->layer->full) {
    full_rows(t, slice, block, t->source, y, y_rows);
  } else {
    uint8_t *panel = panel_of(t, thread);
    int8_t *x = stic_region_at(s, STIC_REGION_QUANTIZED);
    int32_t count;
    uint16_t *entries = unpack(t, slice, block, panel, &count);
    const int32_t k = (int32_t)t->width;
    s->kernels.dot(panel, x, stic_region_at(s, STIC_REGION_TOKEN_SUM), region(s, STIC_REGION_TOKEN_SCALE),
                   (float *)stic_trunk_at(s, t->scale_at) + row, y, 1, k, k * STIC_TILE, (int32_t)y_rows,
                   (int32_t)t->tiles);
    if (count)
      s->kernels.outliers(entries, x, region(s, STIC_REGION_TOKEN_SCALE), y, count, k, k * STIC_TILE, (int32_t)y_rows,
                          (int32_t)t->tiles);
  }
  for (uint32_t tile = 0; t->matrix == STIC_UP && tile < t->tiles; tile++)
    s->kernels.activation(y + (size_t)tile * y_rows * STIC_TILE, STIC_TILE);
}

/* out and down: rows of the hidden state, summed over slices. */
static void joined_block(void *context, uint32_t block, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const stic_package *p = &s->package;
  const uint32_t ks = p->columns[t->matrix], y_rows = p->padded_hidden, full = t->layer->full, m = t->layer->slices;
  float *y = t->target + (size_t)block * STIC_TILE * STIC_TILE;
  s->kernels.bias(y, (float *)stic_trunk_at(s, t->bias_at) + block * STIC_TILE, (int32_t)y_rows, (int32_t)t->tiles);
  for (uint32_t slice = 0; slice < full; slice++)
    full_rows(t, slice, block, t->source + (size_t)slice * ks * STIC_TILE, y, y_rows);
  if (full == m) return;
  uint8_t *panel = panel_of(t, thread);
  int8_t *q = stic_region_at(s, STIC_REGION_QUANTIZED);
  const int32_t x_tile = (int32_t)(t->width * STIC_TILE);
  for (uint32_t slice = full; slice < m; slice++) {
    int32_t count;
    uint16_t *entries = unpack(t, slice, block, panel + (size_t)(slice - full) * STIC_TILE * ks, &count);
    if (count)
      s->kernels.outliers(entries, q + (size_t)slice * ks * STIC_TILE, region(s, STIC_REGION_TOKEN_SCALE), y, count,
                          (int32_t)ks, x_tile, (int32_t)y_rows, (int32_t)t->tiles);
  }
  s->kernels.dot(panel, q + (size_t)full * ks * STIC_TILE, stic_region_at(s, STIC_REGION_TOKEN_SUM),
                 region(s, STIC_REGION_TOKEN_SCALE), (float *)stic_trunk_at(s, t->scale_at) + block * STIC_TILE, y,
                 (int32_t)(m - full), (int32_t)ks, x_tile, (int32_t)y_rows, (int32_t)t->tiles);
}

static void attention_tile(void *context, uint32_t item, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const stic_header *h = s->package.header;
  const uint32_t width = s->package.attention_width, hd = h->head_dim, m = t->layer->slices;
  const uint32_t head = item / t->tiles, tile = item % t->tiles;
  const uint32_t slice = head / h->heads_per_slice, part = head % h->heads_per_slice;
  const uint32_t qkv_rows = m * 3 * width;
  float *qkv = region(s, STIC_REGION_QKV) + ((size_t)slice * 3 * width + part * hd) * STIC_TILE;
  float *q = qkv + (size_t)tile * qkv_rows * STIC_TILE, *k = qkv + (size_t)width * STIC_TILE;
  float *context_at = region(s, STIC_REGION_CONTEXT) + ((size_t)tile * m * width + slice * width) * STIC_TILE;
  float *scratch = region(s, STIC_REGION_SCRATCH) + (size_t)thread * s->package.tiles * STIC_TILE * STIC_TILE;
  s->kernels.attention(q, k, k + (size_t)width * STIC_TILE, context_at + (size_t)part * hd * STIC_TILE, scratch,
                       (int32_t)qkv_rows, (int32_t)t->n);
  const uint32_t used = h->heads_per_slice * hd;
  if (part == 0 && used < width)
    memset(context_at + (size_t)used * STIC_TILE, 0, (size_t)(width - used) * STIC_TILE * sizeof(float));
}

static void quantize_tile(void *context, uint32_t tile, uint32_t thread) {
  const step *t = context;
  (void)thread;
  stic_quantize_tile(t->s, t->source + (size_t)tile * t->width * STIC_TILE, tile, t->width);
}

static void norm_tile(void *context, uint32_t tile, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  (void)thread;
  const size_t at = (size_t)tile * s->package.padded_hidden * STIC_TILE;
  float *x = region(s, STIC_REGION_X) + at;
  s->kernels.add_norm(x, region(s, STIC_REGION_Y) + at, stic_trunk_at(s, t->gamma_at), stic_trunk_at(s, t->beta_at));
  if (t->quantize) stic_quantize_tile(s, x, tile, s->package.padded_hidden);
}

static void stage(step *t, uint32_t kind, stic_item run, uint32_t items) {
  const uint64_t begin = stic_trace_now(&t->s->trace);
  stic_pool_run(&t->s->pool, run, t, items);
  stic_stage_done(t->s, kind, (int32_t)t->number, begin);
}

static void project(step *t, uint32_t kind, uint32_t matrix, uint32_t source, uint32_t width, uint32_t target,
                    uint32_t scale_at, uint32_t bias_at) {
  const bool split = matrix == STIC_QKV || matrix == STIC_UP;
  t->matrix = matrix;
  t->blocks = t->s->package.rows[matrix] / STIC_TILE;
  t->source = region(t->s, source);
  t->width = width;
  t->target = region(t->s, target);
  t->scale_at = scale_at;
  t->bias_at = bias_at;
  if (!split && t->layer->full < t->layer->slices) stage(t, STIC_EVENT_QUANTIZE, quantize_tile, t->tiles);
  stage(t, kind, split ? split_block : joined_block, split ? t->layer->slices * t->blocks : t->blocks);
}

static void normalise(step *t, uint32_t gamma_at, uint32_t beta_at, bool quantize) {
  t->gamma_at = gamma_at;
  t->beta_at = beta_at;
  t->quantize = quantize;
  stage(t, STIC_EVENT_NORM, norm_tile, t->tiles);
}

void stic_compute_layer(stic_session *s, uint32_t number, uint32_t n, bool quantize) {
  const stic_package *p = &s->package;
  const stic_layer *l = &p->layers[number];
  const uint32_t hidden = p->padded_hidden, attention = l->slices * p->attention_width, ffn = l->slices * p->ffn_width;
  step t = {.s = s, .layer = l, .number = number, .n = n, .tiles = (n + STIC_TILE - 1) / STIC_TILE};
  project(&t, STIC_EVENT_QKV, STIC_QKV, STIC_REGION_X, hidden, STIC_REGION_QKV, l->qkv_scale_at, l->qkv_bias_at);
  stage(&t, STIC_EVENT_ATTENTION, attention_tile, l->slices * p->header->heads_per_slice * t.tiles);
  project(&t, STIC_EVENT_OUT, STIC_OUT, STIC_REGION_CONTEXT, attention, STIC_REGION_Y, l->out_scale_at, l->out_bias_at);
  normalise(&t, l->attention_gamma_at, l->attention_beta_at, true);
  project(&t, STIC_EVENT_UP, STIC_UP, STIC_REGION_X, hidden, STIC_REGION_FFN, l->up_scale_at, l->up_bias_at);
  project(&t, STIC_EVENT_DOWN, STIC_DOWN, STIC_REGION_FFN, ffn, STIC_REGION_Y, l->down_scale_at, l->down_bias_at);
  normalise(&t, l->ffn_gamma_at, l->ffn_beta_at, quantize);
}
