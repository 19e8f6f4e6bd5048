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
 *     norm       (tile)
 *
 * A block of 16 rows of a matrix is unpacked into the thread's own panel just before it is used, so that no more than
 * one panel a thread ever exists unpacked; for a few tokens not even that (stic_rows). */
#include <string.h>

#include "session.h"

typedef struct {
  stic_session *s;
  struct stic_kept kept;       /* of the layer */
  uint32_t number;             /* of the layer */
  uint32_t n, tiles;           /* tokens, tiles of them */
  uint32_t matrix, blocks;     /* of the stage; blocks of 16 rows in the matrix */
  uint32_t queries;            /* tiles of them in an item of attention */
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
  return t->s->io.weights + t->s->record_at[stic_record_index(&t->s->package, t->number, level, slice)];
}

/* Where the planes, the table and the outliers of the stage's matrix are in one slice. */
static stic_codes find(const step *t, uint32_t slice) {
  const stic_package *p = &t->s->package;
  stic_codes c = {.bits = stic_bits(p, t->number, slice)};
  uint32_t level, last, plane = 0;
  const uint8_t *base = NULL;
  stic_levels_of(p, c.bits, &level, &last);
  const uint32_t first = level;
  for (; level <= last; level++) {
    const stic_layout *layout = &p->layouts[level];
    base = record(t, level, slice);
    for (uint32_t i = 0; i < layout->planes; i++)
      c.planes[plane++] = (uint8_t *)(uintptr_t)base + layout->plane_at[t->matrix][i];
  }
  c.table = (int8_t *)(uintptr_t)base + p->layouts[last].table_at[t->matrix];
  c.dense = c.table[1 << (c.bits - 1)];
  const uint16_t *entries;
  c.starts = stic_record_outliers(p, first, record(t, first, slice), t->matrix, &entries);
  c.entries = (uint16_t *)(uintptr_t)entries;
  return c;
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

static float *scratch_of(const step *t, uint32_t thread) {
  return region(t->s, STIC_REGION_SCRATCH) + thread * stic_scratch_bytes(&t->s->package) / sizeof(float);
}

/* y = bias + W x for 16 rows over the slices first .. end-1, all of them quantised; x at the first one's features. */
static void quantized_rows(const step *t, uint32_t first, uint32_t end, uint32_t block, uint32_t row, size_t x_at,
                           float *y, uint32_t y_rows, uint32_t thread) {
  stic_session *s = t->s;
  const stic_kernels *k = &s->kernels;
  const uint32_t ks = s->package.columns[t->matrix];
  const int32_t groups = (int32_t)(ks / 4), x_tile = (int32_t)(t->width * STIC_TILE), tiles = (int32_t)t->tiles;
  const int32_t pitch = (int32_t)(STIC_TILE * s->package.header->interleave);
  int8_t *x = (int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + x_at;
  int32_t *sum = stic_region_at(s, STIC_REGION_TOKEN_SUM);
  float *token_scale = region(s, STIC_REGION_TOKEN_SCALE);
  float *scale = (float *)stic_trunk_at(s, t->scale_at) + row, *bias = (float *)stic_trunk_at(s, t->bias_at) + row;
  /* Token sums go over all features: with slices at full precision before these, only stic_dot takes its own. */
  const bool few = t->n <= STIC_FEW_TOKENS && (end - first) * ks == t->width;
  uint8_t *panel = panel_of(t, thread);
  float *extra = scratch_of(t, thread); /* zero, and zero again after stic_dot */
  int32_t *acc = NULL;
  if (few) {
    extra += stic_extra_floats(&s->package);
    acc = (int32_t *)(void *)(extra + STIC_TILE * STIC_TILE);
    memset(extra, 0, 2 * STIC_TILE * STIC_TILE * sizeof *extra);
  }
  for (uint32_t slice = first; slice < end; slice++) {
    const stic_codes *c = &s->codes[slice];
    uint8_t *q[8];
    for (uint32_t i = 0; i < 8; i++) q[i] = i < c->bits ? c->planes[i] + (size_t)block * 2 * ks : NULL;
    int8_t *from = x + (size_t)(slice - first) * ks * STIC_TILE;
    uint16_t *entries = c->entries + 2 * (size_t)c->starts[block];
    const int32_t outliers = (int32_t)(c->starts[block + 1] - c->starts[block]);
    if (few) {
      k->rows[c->bits](q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7], c->table, from, acc, groups, pitch, (int32_t)t->n);
      k->rows_outliers(entries, scale, from, extra, outliers, c->dense, pitch, (int32_t)t->n);
    } else {
      k->unpack[c->bits](q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7], c->table,
                         panel + (size_t)(slice - first) * STIC_TILE * ks, groups);
      k->outliers(entries, scale, from, extra, outliers, c->dense, pitch, x_tile, tiles);
    }
  }
  const bool activated = t->matrix == STIC_UP;
  if (few)
    (activated ? k->rows_finish_activated : k->rows_finish)(acc, sum, token_scale, scale, bias, extra, y, (int32_t)t->n);
  else
    (activated ? k->dot_activated : k->dot)(panel, x, sum, token_scale, scale, bias, extra, y,
                                            (int32_t)((end - first) * ks), x_tile, (int32_t)y_rows, tiles);
}

/* qkv and up: rows that belong to one slice. */
static void split_block(void *context, uint32_t item, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const uint32_t slice = item / t->blocks, block = item % t->blocks, rows = t->blocks * STIC_TILE;
  const uint32_t y_rows = t->kept.slices * rows, row = slice * rows + block * STIC_TILE;
  float *y = t->target + (size_t)row * STIC_TILE;
  if (slice >= t->kept.full) {
    quantized_rows(t, slice, slice + 1, block, row, 0, y, y_rows, thread);
    return;
  }
  s->kernels.bias(y, (float *)stic_trunk_at(s, t->bias_at) + row, (int32_t)y_rows, (int32_t)t->tiles);
  full_rows(t, slice, block, t->source, y, y_rows);
  for (uint32_t tile = 0; t->matrix == STIC_UP && tile < t->tiles; tile++)
    s->kernels.activation(y + (size_t)tile * y_rows * STIC_TILE, STIC_TILE);
}

/* out and down: rows of the hidden state, summed over slices. */
static void joined_block(void *context, uint32_t block, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const uint32_t ks = s->package.columns[t->matrix], y_rows = s->package.padded_hidden, full = t->kept.full;
  const uint32_t row = block * STIC_TILE;
  float *y = t->target + (size_t)row * STIC_TILE;
  if (full < t->kept.slices)
    quantized_rows(t, full, t->kept.slices, block, row, (size_t)full * ks * STIC_TILE, y, y_rows, thread);
  else
    s->kernels.bias(y, (float *)stic_trunk_at(s, t->bias_at) + row, (int32_t)y_rows, (int32_t)t->tiles);
  for (uint32_t slice = 0; slice < full; slice++)
    full_rows(t, slice, block, t->source + (size_t)slice * ks * STIC_TILE, y, y_rows);
}

static void attention_part(void *context, uint32_t item, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const stic_header *h = s->package.header;
  const uint32_t width = s->package.attention_width, hd = h->head_dim, m = t->kept.slices;
  const uint32_t parts = (t->tiles + t->queries - 1) / t->queries;
  const uint32_t head = item / parts, first = item % parts * t->queries;
  const uint32_t tiles = t->tiles - first < t->queries ? t->tiles - first : t->queries;
  const uint32_t slice = head / h->heads_per_slice, part = head % h->heads_per_slice;
  const uint32_t qkv_rows = m * 3 * width;
  float *qkv = region(s, STIC_REGION_QKV) + ((size_t)slice * 3 * width + part * hd) * STIC_TILE;
  float *q = qkv + (size_t)first * qkv_rows * STIC_TILE, *k = qkv + (size_t)width * STIC_TILE;
  float *context_at = region(s, STIC_REGION_CONTEXT) + ((size_t)first * m * width + slice * width) * STIC_TILE;
  float *floats = scratch_of(t, thread) + stic_extra_floats(&s->package);
  int8_t *bytes = (int8_t *)(floats + (size_t)t->tiles * (STIC_TILE + 1) * STIC_TILE + 2 * stic_pad(hd, STIC_TILE));
  s->kernels.attention(q, k, k + (size_t)width * STIC_TILE, context_at + (size_t)part * hd * STIC_TILE, floats, bytes,
                       (int32_t)qkv_rows, (int32_t)(m * width), (int32_t)t->n, (int32_t)tiles);
  const uint32_t used = h->heads_per_slice * hd;
  for (uint32_t tile = 0; part == 0 && used < width && tile < tiles; tile++)
    memset(context_at + ((size_t)tile * m * width + used) * STIC_TILE, 0,
           (size_t)(width - used) * STIC_TILE * sizeof(float));
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
  for (uint32_t slice = t->kept.full; slice < t->kept.slices; slice++) t->s->codes[slice] = find(t, slice);
  if (!split && t->kept.full < t->kept.slices) stage(t, STIC_EVENT_QUANTIZE, quantize_tile, t->tiles);
  stage(t, kind, split ? split_block : joined_block, split ? t->kept.slices * t->blocks : t->blocks);
}

static void normalise(step *t, uint32_t gamma_at, uint32_t beta_at, bool quantize) {
  t->gamma_at = gamma_at;
  t->beta_at = beta_at;
  t->quantize = quantize;
  stage(t, STIC_EVENT_NORM, norm_tile, t->tiles);
}

/* Keys and values are prepared once an item, so a head is split only where threads would be left without work. */
static void attend(step *t) {
  const stic_header *h = t->s->package.header;
  const uint32_t heads = t->kept.slices * h->heads_per_slice, threads = h->threads;
  uint32_t parts = 1;
  while (heads * parts % threads && heads * parts < 4 * threads && parts < t->tiles) parts++;
  t->queries = (t->tiles + parts - 1) / parts;
  stage(t, STIC_EVENT_ATTENTION, attention_part, heads * ((t->tiles + t->queries - 1) / t->queries));
}

void stic_quantize_hidden(stic_session *s, uint32_t number, uint32_t n) {
  step t = {.s = s, .number = number, .tiles = (n + STIC_TILE - 1) / STIC_TILE};
  t.source = region(s, STIC_REGION_X);
  t.width = s->package.padded_hidden;
  stage(&t, STIC_EVENT_QUANTIZE, quantize_tile, t.tiles);
}

void stic_compute_layer(stic_session *s, uint32_t number, uint32_t n, bool quantize) {
  const stic_package *p = &s->package;
  const stic_layer *l = &p->layers[number];
  const struct stic_kept kept = p->kept[number];
  const uint32_t hidden = p->padded_hidden, attention = kept.slices * p->attention_width;
  const uint32_t ffn = kept.slices * p->ffn_width;
  step t = {.s = s, .kept = kept, .number = number, .n = n, .tiles = (n + STIC_TILE - 1) / STIC_TILE};
  project(&t, STIC_EVENT_QKV, STIC_QKV, STIC_REGION_X, hidden, STIC_REGION_QKV, l->qkv_scale_at, l->qkv_bias_at);
  attend(&t);
  project(&t, STIC_EVENT_OUT, STIC_OUT, STIC_REGION_CONTEXT, attention, STIC_REGION_Y, l->out_scale_at, l->out_bias_at);
  normalise(&t, l->attention_gamma_at, l->attention_beta_at, true);
  project(&t, STIC_EVENT_UP, STIC_UP, STIC_REGION_X, hidden, STIC_REGION_FFN, l->up_scale_at, l->up_bias_at);
  project(&t, STIC_EVENT_DOWN, STIC_DOWN, STIC_REGION_FFN, ffn, STIC_REGION_Y, l->down_scale_at, l->down_bias_at);
  normalise(&t, l->ffn_gamma_at, l->ffn_beta_at, quantize);
}
