#include "tied.h"

#include <string.h>

enum { MOST_VALUES = 256 }; /* of a table */

/* The vocabulary is the last block. */
static uint32_t block_of(const stic_package *p) { return p->header->blocks - 1; }

static void add(stic_tied_row *row, uint32_t record, uint64_t at, uint64_t bytes) {
  row->part[row->parts++] = (stic_tied_part){record, (uint32_t)at, (uint32_t)bytes};
}

stic_tied_row stic_tied_find(const stic_package *p, int32_t id) {
  const stic_cut *cut = stic_cut_of(p, block_of(p));
  const uint32_t each = cut->entry.rows_per_slice, slice = (uint32_t)id / each, k = cut->columns[STIC_HEAD];
  stic_tied_row row = {.slice = slice, .row = (uint32_t)id % each, .bits = stic_bits(p, block_of(p), slice)};
  const uint64_t sixteen = row.row / STIC_TILE, groups = stic_groups(k);
  uint32_t level, last;
  stic_levels_of(p, row.bits, &level, &last);
  if (level == STIC_FULL) {
    const uint64_t bytes = (uint64_t)k * row.bits / 8;
    add(&row, stic_record_index(p, block_of(p), level, slice),
        cut->layouts[level].plane_at[STIC_HEAD] + row.row * bytes, bytes);
    return row;
  }
  const uint32_t first = level;
  for (; level <= last; level++)
    for (uint32_t i = 0; i < cut->layouts[level].planes; i++)
      add(&row, stic_record_index(p, block_of(p), level, slice),
          cut->layouts[level].plane_at[STIC_HEAD] + (uint64_t)i * stic_plane_bytes(cut, STIC_HEAD) + sixteen * 2 * k,
          2 * (uint64_t)k);
  add(&row, stic_record_index(p, block_of(p), first, slice),
      cut->layouts[first].ratios_at[STIC_HEAD] + sixteen * groups * STIC_TILE, groups * STIC_TILE);
  add(&row, stic_record_index(p, block_of(p), last, slice), cut->layouts[last].table_at[STIC_HEAD],
      (uint64_t)1 << row.bits);
  return row;
}

/* Codes of one row of 16 move up by a bit, a plane's. Four neighbouring columns are neighbours in a plane, whatever the
 * interleave, and four bits become four bytes by one product, in which no two of them meet. */
static void take_plane(uint32_t interleave, uint32_t row, uint32_t k, bool first, const uint8_t *plane,
                       uint8_t *codes) {
  for (uint32_t column = 0; column < k; column += 4) {
    const uint32_t together = column & (interleave - 1); /* of the columns that lie together, those before */
    const uint32_t at = (column - together) * STIC_TILE + row * interleave + together;
    const uint32_t bits = plane[at / 8] >> at % 8 & 15u, spread = bits * 0x00204081u & 0x01010101u;
    uint32_t four = 0;
    if (!first) memcpy(&four, codes + column, sizeof four);
    four = four << 1 | spread;
    memcpy(codes + column, &four, sizeof four);
  }
}

void stic_tied_take(const stic_package *p, const stic_tied_row *row, uint32_t i, const uint8_t *from, uint8_t *found) {
  const uint32_t k = p->padded_hidden, lane = row->row % STIC_TILE;
  uint8_t *table = found + k, *ratios = table + MOST_VALUES;
  if (row->bits > 8)
    memcpy(found, from, row->part[i].bytes);
  else if (i < row->bits)
    take_plane(p->header->interleave, lane, k, i == 0, from, found);
  else if (i == row->bits)
    for (uint32_t g = 0; g < stic_groups(k); g++) ratios[g] = from[g * STIC_TILE + lane];
  else
    memcpy(table, from, row->part[i].bytes);
}

/* The number that 16 bits are. Of NaN or an infinite one it makes some other: a check of the whole record, which comes
 * before the end of the call, refuses those. */
static float from_half(uint16_t half) {
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  const uint32_t bits = (exponent + 127 - 15) << 23 | fraction << 13;
  float size;
  memcpy(&size, &bits, sizeof size);
  if (exponent == 0) size = (float)fraction * 0x1p-24f;
  return half >> 15 ? -size : size;
}

static void put_full(const stic_package *p, uint32_t bits, const uint8_t *found, float *x) {
  const float multiplier = p->model->embedding_multiplier;
  for (uint32_t f = 0; f < p->model->hidden; f++) {
    float value;
    uint16_t half;
    if (bits == 32)
      memcpy(&value, found + 4 * (size_t)f, sizeof value);
    else
      memcpy(&half, found + 2 * (size_t)f, sizeof half), value = from_half(half);
    x[f * STIC_TILE] = multiplier * value;
  }
}

static void put_codes(const stic_package *p, float factor, const uint8_t *found, float *x) {
  const uint32_t k = p->padded_hidden, hidden = p->model->hidden;
  const int8_t *table = (const int8_t *)found + k;
  const uint8_t *ratios = found + k + MOST_VALUES;
  for (uint32_t first = 0; first < hidden; first += STIC_GROUP) {
    const float scale = factor * (float)ratios[first / STIC_GROUP];
    const uint32_t end = hidden - first < STIC_GROUP ? hidden : first + STIC_GROUP;
    for (uint32_t f = first; f < end; f++) x[f * STIC_TILE] = scale * (float)table[found[f]];
  }
}

void stic_tied_put(const stic_package *p, const stic_tied_row *row, const uint8_t *found, uint8_t *arena, uint32_t t) {
  const uint32_t block = block_of(p), rows = stic_cut_of(p, block)->rows[STIC_HEAD], k = p->padded_hidden;
  float *x = (float *)(void *)(arena + p->regions[STIC_REGION_X].offset) + (size_t)(t / STIC_TILE) * k * STIC_TILE +
             t % STIC_TILE;
  const uint8_t *trunk = arena + p->regions[STIC_REGION_TRUNK].offset;
  const float *scales = (const float *)(const void *)(trunk + p->blocks[block].matrix[STIC_HEAD].scale_at);
  if (row->bits > 8)
    put_full(p, row->bits, found, x);
  else
    put_codes(p, p->model->embedding_multiplier * scales[(size_t)row->slice * rows + row->row], found, x);
  for (uint32_t f = p->model->hidden; f < k; f++) x[f * STIC_TILE] = 0;
}

void stic_tied_add_positions(float *x, const uint16_t *positions, uint32_t n, uint32_t width) {
  for (uint32_t lane = 0; lane < n; lane++)
    for (uint32_t f = 0; f < width; f++) x[f * STIC_TILE + lane] += from_half(positions[(size_t)lane * width + f]);
}
