/* Products with quantised and with full-precision weights, by blocks of 16 rows.
 *
 * A block is unpacked into the thread's own panel just before it is used, so that no more than one panel a thread ever
 * exists unpacked; for a few tokens not even that (stic_rows). */
#include "matrix.h"

#include <string.h>

void stic_quantize_tile(stic_session *s, const float *source, uint32_t tile, uint32_t k) {
  int8_t *q = (int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + (size_t)tile * k * STIC_TILE;
  int32_t *sum = (int32_t *)stic_region_at(s, STIC_REGION_TOKEN_SUM) + tile * STIC_TILE;
  s->kernels.quantize(source, q, stic_floats_at(s, STIC_REGION_TOKEN_SCALE) + tile * STIC_TILE, sum, (int32_t)k);
}

static const uint8_t *record(const stic_step *t, uint32_t level, uint32_t slice) {
  return t->s->io.weights + t->s->record_at[stic_record_index(&t->s->package, t->number, level, slice)];
}

/* Where the planes, the table and the outliers of the stage's matrix are in one slice. */
static stic_codes find(const stic_step *t, uint32_t slice) {
  const stic_package *p = &t->s->package;
  const uint32_t plane_bytes = stic_plane_bytes(t->cut, t->matrix);
  stic_codes c = {.bits = stic_bits(p, t->number, slice)};
  uint32_t level, last, plane = 0;
  const uint8_t *base = NULL;
  stic_levels_of(p, c.bits, &level, &last);
  const uint32_t first = level;
  for (; level <= last; level++) {
    const stic_layout *layout = &t->cut->layouts[level];
    base = record(t, level, slice);
    for (uint32_t i = 0; i < layout->planes; i++)
      c.planes[plane++] = base + layout->plane_at[t->matrix] + i * plane_bytes;
  }
  c.table = (const int8_t *)base + t->cut->layouts[last].table_at[t->matrix];
  c.dense = c.table[1 << (c.bits - 1)];
  c.starts = stic_record_outliers(t->cut, first, record(t, first, slice), t->matrix, &c.entries);
  return c;
}

/* y += W x for 16 rows of a full-precision slice; x at the slice's first feature. */
static void full_rows(const stic_step *t, uint32_t slice, uint32_t block, const float *x, float *y, uint32_t y_rows) {
  stic_session *s = t->s;
  const stic_package *p = &s->package;
  const uint32_t k = t->cut->columns[t->matrix];
  const void *weight = record(t, STIC_FULL, slice) + t->cut->layouts[STIC_FULL].plane_at[t->matrix];
  const size_t first = (size_t)block * STIC_TILE * k;
  if (p->header->full_bits == 16)
    s->kernels.matmul_f16((const stic_half *)weight + first, x, y, (int32_t)k, (int32_t)t->width, (int32_t)y_rows,
                          (int32_t)t->tiles);
  else
    s->kernels.matmul_f32((const float *)weight + first, x, y, (int32_t)k, (int32_t)t->width, (int32_t)y_rows,
                          (int32_t)t->tiles);
}

static uint8_t *panel_of(const stic_step *t, uint32_t thread) {
  const stic_region *r = &t->s->package.regions[STIC_REGION_PANEL];
  const uint64_t each = r->bytes / t->s->package.header->threads / STIC_ALIGN * STIC_ALIGN;
  return t->s->arena + r->offset + thread * each;
}

/* y = bias + W x for 16 rows over the slices first .. end-1, all of them quantised; x at the first one's features. */
static void quantized_rows(const stic_step *t, uint32_t first, uint32_t end, uint32_t block, uint32_t row, size_t x_at,
                           float *y, uint32_t y_rows, uint32_t thread) {
  stic_session *s = t->s;
  const stic_kernels *k = &s->kernels;
  const uint32_t ks = t->cut->columns[t->matrix];
  const int32_t groups = (int32_t)(ks / 4), x_tile = (int32_t)(t->width * STIC_TILE), tiles = (int32_t)t->tiles;
  const int32_t pitch = (int32_t)(STIC_TILE * s->package.header->interleave);
  const int8_t *x = (const int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + x_at;
  const int32_t *sum = stic_region_at(s, STIC_REGION_TOKEN_SUM);
  const float *token_scale = stic_floats_at(s, STIC_REGION_TOKEN_SCALE);
  const float *scale = (const float *)stic_trunk_at(s, t->scale_at) + row;
  const float *bias = (const float *)stic_trunk_at(s, t->bias_at) + row;
  /* Token sums go over all features: with slices at full precision before these, only stic_dot takes its own. */
  const bool few = t->n <= STIC_FEW_TOKENS && (end - first) * ks == t->width;
  uint8_t *panel = panel_of(t, thread);
  float *extra = stic_step_scratch(t, thread); /* zero, and zero again after stic_dot */
  int32_t *acc = NULL;
  if (few) {
    extra += stic_extra_floats(&s->package);
    acc = (int32_t *)(void *)(extra + STIC_TILE * STIC_TILE);
    memset(extra, 0, 2 * STIC_TILE * STIC_TILE * sizeof *extra);
  }
  for (uint32_t slice = first; slice < end; slice++) {
    const stic_codes *c = &s->codes[slice];
    const uint8_t *q[8];
    for (uint32_t i = 0; i < 8; i++) q[i] = i < c->bits ? c->planes[i] + (size_t)block * 2 * ks : NULL;
    const int8_t *from = x + (size_t)(slice - first) * ks * STIC_TILE;
    const uint16_t *entries = c->entries + 2 * (size_t)c->starts[block];
    const int32_t outliers = (int32_t)(c->starts[block + 1] - c->starts[block]);
    if (few) {
      k->rows[c->bits](q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7], c->table, from, acc, groups, pitch,
                       (int32_t)t->n);
      k->rows_outliers(entries, scale, from, extra, outliers, c->dense, pitch, (int32_t)t->n);
    } else {
      k->unpack[c->bits](q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7], c->table,
                         panel + (size_t)(slice - first) * STIC_TILE * ks, groups);
      k->outliers(entries, scale, from, extra, outliers, c->dense, pitch, x_tile, tiles);
    }
  }
  const bool activated = t->matrix == STIC_UP;
  if (few)
    (activated ? k->rows_finish_activated : k->rows_finish)(acc, sum, token_scale, scale, bias, extra, y,
                                                            (int32_t)t->n);
  else
    (activated ? k->dot_activated : k->dot)(panel, x, sum, token_scale, scale, bias, extra, y,
                                            (int32_t)((end - first) * ks), x_tile, (int32_t)y_rows, tiles);
}

/* qkv and up: rows that belong to one slice. */
static void split_block(void *context, uint32_t item, uint32_t thread) {
  const stic_step *t = context;
  stic_session *s = t->s;
  const uint32_t slice = item / t->blocks, block = item % t->blocks, rows = t->blocks * STIC_TILE;
  const uint32_t y_rows = t->kept.slices * rows, row = slice * rows + block * STIC_TILE;
  float *y = t->target + (size_t)row * STIC_TILE;
  if (slice >= t->kept.full) {
    quantized_rows(t, slice, slice + 1, block, row, 0, y, y_rows, thread);
    return;
  }
  s->kernels.bias(y, (const float *)stic_trunk_at(s, t->bias_at) + row, (int32_t)y_rows, (int32_t)t->tiles);
  full_rows(t, slice, block, t->source, y, y_rows);
  for (uint32_t tile = 0; t->matrix == STIC_UP && tile < t->tiles; tile++)
    s->kernels.activation(y + (size_t)tile * y_rows * STIC_TILE, STIC_TILE);
}

/* out and down: rows of the hidden state, summed over slices. */
static void joined_block(void *context, uint32_t block, uint32_t thread) {
  const stic_step *t = context;
  stic_session *s = t->s;
  const uint32_t ks = t->cut->columns[t->matrix], y_rows = s->package.padded_hidden, full = t->kept.full;
  const uint32_t row = block * STIC_TILE;
  float *y = t->target + (size_t)row * STIC_TILE;
  if (full < t->kept.slices)
    quantized_rows(t, full, t->kept.slices, block, row, (size_t)full * ks * STIC_TILE, y, y_rows, thread);
  else
    s->kernels.bias(y, (const float *)stic_trunk_at(s, t->bias_at) + row, (int32_t)y_rows, (int32_t)t->tiles);
  for (uint32_t slice = 0; slice < full; slice++)
    full_rows(t, slice, block, t->source + (size_t)slice * ks * STIC_TILE, y, y_rows);
}

static void quantize_tile(void *context, uint32_t tile, uint32_t thread) {
  const stic_step *t = context;
  (void)thread;
  stic_quantize_tile(t->s, t->source + (size_t)tile * t->width * STIC_TILE, tile, t->width);
}

void stic_step_run(stic_step *t, uint32_t kind, stic_item run, uint32_t items) {
  const uint64_t begin = stic_trace_now(&t->s->trace);
  stic_pool_run(&t->s->pool, run, t, items);
  stic_stage_done(t->s, kind, (int32_t)t->number, begin);
}

void stic_step_quantize(stic_step *t) { stic_step_run(t, STIC_EVENT_QUANTIZE, quantize_tile, t->tiles); }

void stic_step_project(stic_step *t, uint32_t kind, uint32_t matrix, uint32_t source, uint32_t width, uint32_t target) {
  const stic_linear *map = &t->s->package.blocks[t->number].matrix[matrix];
  const bool split = matrix == STIC_QKV || matrix == STIC_UP;
  t->matrix = matrix;
  t->blocks = t->cut->rows[matrix] / STIC_TILE;
  t->source = stic_floats_at(t->s, source);
  t->width = width;
  t->target = stic_floats_at(t->s, target);
  t->scale_at = map->scale_at;
  t->bias_at = map->bias_at;
  for (uint32_t slice = t->kept.full; slice < t->kept.slices; slice++) t->s->codes[slice] = find(t, slice);
  if (!split && t->kept.full < t->kept.slices) stic_step_quantize(t);
  stic_step_run(t, kind, split ? split_block : joined_block, split ? t->kept.slices * t->blocks : t->blocks);
}
