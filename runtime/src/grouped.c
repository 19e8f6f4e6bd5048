/* Products with weights in groups and with full-precision weights, by blocks of 16 rows: the twin of matrix.c for
 * decoders. A block of quantised rows is unpacked into the thread's panel and serves all tokens; for a few tokens its
 * planes are read once, and never unpacked (stic_rows_grouped). */
#include "grouped.h"

#include <string.h>

enum { AT_ONCE = 4 }; /* tiles that a thread keeps sums of: what the micro-kernels take together, 4 KiB of stack */

const float *stic_floats_of(const stic_session *s, uint32_t at, uint64_t element) {
  return at == STIC_ABSENT ? s->text.zeros : (const float *)stic_trunk_at(s, at) + element;
}

void stic_pass_run(stic_pass *t, uint32_t kind, stic_item run, uint32_t items) {
  const uint64_t begin = stic_trace_now(&t->s->trace);
  stic_pool_run(&t->s->pool, run, t, items);
  stic_stage_done(t->s, kind, (int32_t)t->number, begin);
}

void stic_pass_aim(stic_pass *t, uint32_t matrix, const float *source, uint32_t source_rows, uint32_t source_pitch,
                   float *target, uint32_t target_rows) {
  t->matrix = matrix;
  t->joined = matrix == STIC_OUT || matrix == STIC_DOWN;
  t->groups = stic_groups(t->cut->columns[matrix]);
  t->source = source;
  t->source_rows = source_rows;
  t->source_pitch = source_pitch;
  t->target = target;
  t->target_rows = target_rows;
}

/* Slices whose features the quantised form holds beside each other. */
static uint32_t parts(const stic_pass *t) { return t->joined ? t->kept.slices : 1; }

/* Where the quantised form of a slice's features begins in the first tile, and how far tiles are apart. */
static size_t columns_at(const stic_pass *t, uint32_t part) {
  return (size_t)part * t->cut->columns[t->matrix] * STIC_TILE;
}

static size_t groups_at(const stic_pass *t, uint32_t part) { return (size_t)part * t->groups * STIC_TILE; }

void stic_pass_quantize(const stic_pass *t, uint32_t tile, uint32_t slice) {
  stic_session *s = t->s;
  const uint32_t columns = t->cut->columns[t->matrix];
  if (t->joined ? slice < t->kept.full : t->kept.full == t->kept.slices) return;
  const float *x = t->source + ((size_t)tile * t->source_rows + slice * t->source_pitch) * STIC_TILE;
  int8_t *q = (int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + tile * columns_at(t, parts(t));
  const size_t group = tile * groups_at(t, parts(t)) + groups_at(t, slice);
  s->kernels.quantize_grouped(x, q + columns_at(t, slice), stic_floats_at(s, STIC_REGION_TOKEN_SCALE) + group,
                              (int32_t *)stic_region_at(s, STIC_REGION_TOKEN_SUM) + group, (int32_t)columns);
}

static const uint8_t *record(const stic_pass *t, uint32_t level, uint32_t slice) {
  return t->s->io.weights + t->s->record_at[stic_record_index(&t->s->package, t->number, level, slice)];
}

static stic_codes codes_of(const stic_pass *t, uint32_t slice) {
  const stic_package *p = &t->s->package;
  stic_codes c = {.bits = stic_bits(p, t->number, slice)};
  uint32_t level, last, plane = 0;
  const uint8_t *base = NULL;
  stic_levels_of(p, c.bits, &level, &last);
  c.ratios = record(t, level, slice) + t->cut->layouts[level].ratios_at[t->matrix];
  for (; level <= last; level++) {
    const stic_layout *layout = &t->cut->layouts[level];
    base = record(t, level, slice);
    for (uint32_t i = 0; i < layout->planes; i++)
      c.planes[plane++] = base + layout->plane_at[t->matrix] + i * stic_plane_bytes(t->cut, t->matrix);
  }
  c.table = (const int8_t *)base + t->cut->layouts[last].table_at[t->matrix];
  return c;
}

void stic_pass_find(const stic_pass *t) {
  for (uint32_t slice = t->kept.full; slice < t->kept.slices; slice++) t->s->codes[slice] = codes_of(t, slice);
}

/* y += W x for 16 rows of a full-precision slice; x at the slice's first feature. */
static void full_rows(const stic_pass *t, uint32_t slice, uint32_t block, const float *x, float *y) {
  const uint32_t k = t->cut->columns[t->matrix];
  const uint8_t *weight = record(t, STIC_FULL, slice) + t->cut->layouts[STIC_FULL].plane_at[t->matrix];
  const size_t first = (size_t)block * STIC_TILE * k;
  const int32_t sizes[] = {(int32_t)k, (int32_t)t->source_rows, (int32_t)t->target_rows, (int32_t)t->tiles};
  if (t->s->package.header->full_bits == 16)
    t->s->kernels.matmul_f16((const stic_half *)(const void *)weight + first, x, y, sizes[0], sizes[1], sizes[2],
                             sizes[3]);
  else
    t->s->kernels.matmul_f32((const float *)(const void *)weight + first, x, y, sizes[0], sizes[1], sizes[2], sizes[3]);
}

/* The 16 rows' planes of a slice. */
static void planes_of(const stic_pass *t, const stic_codes *c, uint32_t block, const uint8_t *q[8]) {
  for (uint32_t i = 0; i < 8; i++)
    q[i] = i < c->bits ? c->planes[i] + (size_t)block * 2 * t->cut->columns[t->matrix] : NULL;
}

static const uint8_t *ratios_of(const stic_pass *t, const stic_codes *c, uint32_t block) {
  return c->ratios + (size_t)block * t->groups * STIC_TILE;
}

/* A block of rows through the quantised slices first .. end-1, and where its result goes. */
typedef struct {
  uint32_t first, end, block;
  const float *scale, *bias;
  float *y;
} rows;

static void few_tokens(const stic_pass *t, const rows *r) {
  stic_session *s = t->s;
  _Alignas(STIC_ALIGN) float acc[STIC_FEW_TOKENS * STIC_TILE] = {0};
  const uint8_t *q[8];
  for (uint32_t slice = r->first; slice < r->end; slice++) {
    const stic_codes *c = &s->codes[slice];
    const uint32_t part = t->joined ? slice : 0;
    planes_of(t, c, r->block, q);
    s->kernels.rows_grouped[c->bits](q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7], c->table,
                                     (const int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + columns_at(t, part),
                                     (const int32_t *)stic_region_at(s, STIC_REGION_TOKEN_SUM) + groups_at(t, part),
                                     stic_floats_at(s, STIC_REGION_TOKEN_SCALE) + groups_at(t, part),
                                     ratios_of(t, c, r->block), acc, (int32_t)t->cut->columns[t->matrix],
                                     (int32_t)(STIC_TILE * s->package.header->interleave), (int32_t)t->n);
  }
  s->kernels.rows_grouped_finish(acc, r->scale, r->bias, r->y, (int32_t)t->n);
}

static uint8_t *panel_of(const stic_session *s, uint32_t thread) {
  const stic_region *region = &s->package.regions[STIC_REGION_PANEL];
  const uint64_t each = region->bytes / s->package.header->threads / STIC_ALIGN * STIC_ALIGN;
  return s->arena + region->offset + thread * each;
}

static void many_tokens(const stic_pass *t, const rows *r, uint8_t *panel) {
  stic_session *s = t->s;
  const stic_kernels *k = &s->kernels;
  const uint32_t columns = t->cut->columns[t->matrix];
  const size_t x_tile = columns_at(t, parts(t)), g_tile = groups_at(t, parts(t)), each = (size_t)STIC_TILE * columns;
  const uint8_t *q[8];
  for (uint32_t slice = r->first; slice < r->end; slice++) {
    const stic_codes *c = &s->codes[slice];
    planes_of(t, c, r->block, q);
    k->unpack[c->bits](q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7], c->table, panel + (slice - r->first) * each,
                       (int32_t)(columns / 4));
  }
  _Alignas(STIC_ALIGN) float acc[AT_ONCE * STIC_TILE * STIC_TILE] = {0}; /* and zero again after each turn */
  for (uint32_t tile = 0; tile < t->tiles; tile += AT_ONCE) {
    const int32_t tiles = t->tiles - tile < AT_ONCE ? (int32_t)(t->tiles - tile) : AT_ONCE;
    for (uint32_t slice = r->first; slice < r->end; slice++) {
      const uint32_t part = t->joined ? slice : 0;
      const size_t group = tile * g_tile + groups_at(t, part);
      k->dot_grouped(panel + (slice - r->first) * each,
                     (const int8_t *)stic_region_at(s, STIC_REGION_QUANTIZED) + tile * x_tile + columns_at(t, part),
                     (const int32_t *)stic_region_at(s, STIC_REGION_TOKEN_SUM) + group,
                     stic_floats_at(s, STIC_REGION_TOKEN_SCALE) + group, ratios_of(t, &s->codes[slice], r->block), acc,
                     (int32_t)columns, (int32_t)x_tile, (int32_t)g_tile, tiles);
    }
    k->dot_grouped_finish(acc, r->scale, r->bias, r->y + (size_t)tile * t->target_rows * STIC_TILE,
                          (int32_t)t->target_rows, tiles);
  }
}

static void quantized_rows(const stic_pass *t, const rows *r, uint32_t thread) {
  if (t->n <= STIC_FEW_TOKENS)
    few_tokens(t, r);
  else
    many_tokens(t, r, panel_of(t->s, thread));
}

void stic_pass_split_rows(const stic_pass *t, uint32_t slice, uint32_t block, float *y, uint32_t thread) {
  stic_session *s = t->s;
  const stic_linear *linear = &t->block->matrix[t->matrix];
  const uint64_t row = (uint64_t)slice * t->cut->rows[t->matrix] + block * STIC_TILE;
  const rows r = {
      slice, slice + 1, block, stic_floats_of(s, linear->scale_at, row), stic_floats_of(s, linear->bias_at, row), y};
  if (slice >= t->kept.full) {
    quantized_rows(t, &r, thread);
    return;
  }
  s->kernels.bias(y, r.bias, (int32_t)t->target_rows, (int32_t)t->tiles);
  full_rows(t, slice, block, t->source, y);
}

void stic_pass_joined_rows(const stic_pass *t, uint32_t block, float *y, uint32_t thread) {
  stic_session *s = t->s;
  const stic_linear *linear = &t->block->matrix[t->matrix];
  const uint32_t full = t->kept.full;
  const uint64_t row = (uint64_t)block * STIC_TILE;
  const rows r = {
      full, t->kept.slices, block, stic_floats_of(s, linear->scale_at, row), stic_floats_of(s, linear->bias_at, row),
      y};
  if (full < t->kept.slices)
    quantized_rows(t, &r, thread);
  else
    s->kernels.bias(y, r.bias, (int32_t)t->target_rows, (int32_t)t->tiles);
  for (uint32_t slice = 0; slice < full; slice++)
    full_rows(t, slice, block, t->source + (size_t)slice * t->source_pitch * STIC_TILE, y);
}
