/* A decoder's pass, block by block; each stage of a block is split into items that any thread may run:
 *
 *     attention      read        (tile)                    the input norm of x, and its quantised form
 *                    qkv         (slice, 16 rows)
 *                    heads       (slice)                   norms of queries and keys, rotation; keys and values go to the
 *                                                          cache
 *                    attend      (tile, key head, some queries)
 *                    quantize    (tile, slice)
 *                    out         (16 rows)                 y, summed over slices
 *                    add         (tile)                    x += the branch norm of y, and its post norm
 *     feed-forward   read, up (slice, 16 rows), gate and quantize (tile, slice), down (16 rows), add
 *     vocabulary     read, head (slice, 16 rows)           logits
 *
 * Tokens are in the lanes, 16 to a tile. What lanes past the last token hold is nobody's concern. */
#include <string.h>

#include "attention.h"
#include "tied.h"

static void norm_tile(const stic_pass *t, const stic_norm *norm, const float *x, float *y) {
  const stic_package *p = &t->s->package;
  stic_norm_rows(t->s, p->model->norm == STIC_LAYER_NORM, norm, 0, x, y, p->model->hidden, p->padded_hidden);
}

static float *tile_of(const stic_pass *t, uint32_t region, uint32_t tile) {
  return stic_floats_at(t->s, region) + (size_t)tile * t->s->package.padded_hidden * STIC_TILE;
}

static void norm_input(void *context, uint32_t tile, uint32_t thread) {
  const stic_pass *t = context;
  (void)thread;
  norm_tile(t, &t->block->input, tile_of(t, STIC_REGION_X, tile), tile_of(t, STIC_REGION_NORMED, tile));
}

static void read_tile(void *context, uint32_t tile, uint32_t thread) {
  const stic_pass *t = context;
  if (!t->prepared && t->block->input.gamma_at != STIC_ABSENT) norm_input(context, tile, thread);
  stic_pass_quantize(t, tile, 0);
}

/* Aim at what `matrix` makes of the block's input, and have that ready. */
static void read(stic_pass *t, uint32_t matrix, uint32_t target, uint32_t target_rows) {
  const bool plain = !t->prepared && t->block->input.gamma_at == STIC_ABSENT;
  const float *source = stic_floats_at(t->s, plain ? STIC_REGION_X : STIC_REGION_NORMED);
  stic_pass_aim(t, matrix, source, t->s->package.padded_hidden, 0, stic_floats_at(t->s, target), target_rows);
  if (!plain || t->kept.full < t->kept.slices) stic_pass_run(t, STIC_EVENT_QUANTIZE, read_tile, t->tiles);
  t->prepared = false;
}

/* A parallel feed-forward block reads x as it is before this block adds to it. */
static void prepare(stic_pass *t) {
  const stic_package *p = &t->s->package;
  if (t->number + 1 == p->header->blocks || !(t->block[1].flags & STIC_PARALLEL)) return;
  stic_pass next = *t;
  next.block++;
  if (next.block->input.gamma_at != STIC_ABSENT)
    stic_pass_run(&next, STIC_EVENT_NORM, norm_input, t->tiles);
  else
    memcpy(tile_of(t, STIC_REGION_NORMED, 0), tile_of(t, STIC_REGION_X, 0),
           (size_t)t->tiles * p->padded_hidden * STIC_TILE * sizeof(float));
  t->prepared = true;
}

static void split_block(void *context, uint32_t item, uint32_t thread) {
  const stic_pass *t = context;
  const uint32_t rows = t->cut->rows[t->matrix], blocks = rows / STIC_TILE, slice = item / blocks;
  float *y = t->target + ((size_t)slice * rows + item % blocks * STIC_TILE) * STIC_TILE;
  stic_pass_split_rows(t, slice, item % blocks, y, thread);
  for (uint32_t tile = 0; t->matrix == STIC_UP && !t->cut->entry.gated && tile < t->tiles; tile++)
    t->s->kernels.activation(y + (size_t)tile * t->target_rows * STIC_TILE, STIC_TILE);
}

static void split(stic_pass *t, uint32_t kind) {
  stic_pass_find(t);
  stic_pass_run(t, kind, split_block, t->kept.slices * t->cut->rows[t->matrix] / STIC_TILE);
}

static void quantize_part(void *context, uint32_t item, uint32_t thread) {
  const stic_pass *t = context;
  const uint32_t tile = item / t->kept.slices, slice = item % t->kept.slices;
  (void)thread;
  if (t->matrix == STIC_DOWN && t->cut->entry.gated) {
    const size_t width = (size_t)t->cut->ffn_width * STIC_TILE;
    float *gate =
        stic_floats_at(t->s, STIC_REGION_FFN) + ((size_t)tile * t->source_rows + slice * t->source_pitch) * STIC_TILE;
    t->s->kernels.gate(gate, gate + width, (int32_t)t->cut->ffn_width);
  }
  stic_pass_quantize(t, tile, slice);
}

static void joined_block(void *context, uint32_t block, uint32_t thread) {
  const stic_pass *t = context;
  stic_pass_joined_rows(t, block, t->target + (size_t)block * STIC_TILE * STIC_TILE, thread);
}

static void add_tile(void *context, uint32_t tile, uint32_t thread) {
  const stic_pass *t = context;
  float *x = tile_of(t, STIC_REGION_X, tile), *y = tile_of(t, STIC_REGION_Y, tile);
  (void)thread;
  if (t->block->branch.gamma_at != STIC_ABSENT) norm_tile(t, &t->block->branch, y, y);
  t->s->kernels.add(x, y, (int32_t)t->s->package.padded_hidden);
  if (t->block->post.gamma_at != STIC_ABSENT) norm_tile(t, &t->block->post, x, x);
}

/* Bring what a block computed, in a region where slices are `pitch` rows apart, back into x. */
static void join(stic_pass *t, uint32_t matrix, uint32_t kind, uint32_t region, uint32_t pitch) {
  const uint32_t hidden = t->s->package.padded_hidden;
  stic_pass_aim(t, matrix, stic_floats_at(t->s, region), t->kept.slices * pitch, pitch,
                stic_floats_at(t->s, STIC_REGION_Y), hidden);
  stic_pass_find(t);
  if (t->kept.full < t->kept.slices || t->cut->entry.gated)
    stic_pass_run(t, STIC_EVENT_QUANTIZE, quantize_part, t->tiles * t->kept.slices);
  stic_pass_run(t, kind, joined_block, hidden / STIC_TILE);
  stic_pass_run(t, STIC_EVENT_NORM, add_tile, t->tiles);
}

static void attention(stic_pass *t) {
  read(t, STIC_QKV, STIC_REGION_QKV, t->kept.slices * t->cut->rows[STIC_QKV]);
  split(t, STIC_EVENT_QKV);
  prepare(t);
  stic_pass_attend(t);
  join(t, STIC_OUT, STIC_EVENT_OUT, STIC_REGION_CONTEXT, t->cut->attention_width);
}

static void feed_forward(stic_pass *t) {
  const uint32_t rows = t->cut->rows[STIC_UP];
  read(t, STIC_UP, STIC_REGION_FFN, t->kept.slices * rows);
  split(t, STIC_EVENT_UP);
  join(t, STIC_DOWN, STIC_EVENT_DOWN, STIC_REGION_FFN, rows);
}

enum { HEAD_TILES = 4 }; /* whose logits are computed together, 4 KiB of stack */

static void head_block(void *context, uint32_t item, uint32_t thread) {
  const stic_pass *t = context;
  const uint32_t blocks = t->cut->rows[STIC_HEAD] / STIC_TILE, slice = item / blocks, block = item % blocks;
  const uint32_t each = t->cut->entry.rows_per_slice, all = t->s->package.model->output_features;
  const uint32_t first = slice * each + block * STIC_TILE,
                 left = block * STIC_TILE < each ? each - block * STIC_TILE : 0;
  _Alignas(STIC_ALIGN) float y[HEAD_TILES * STIC_TILE * STIC_TILE];
  uint32_t count = left < STIC_TILE ? left : STIC_TILE;
  if (first + count > all) count = first < all ? all - first : 0;
  if (count == 0) return;
  stic_pass_split_rows(t, slice, block, y, thread);
  if (t->block->softcap > 0) t->s->kernels.softcap(y, (int32_t)(t->tiles * STIC_TILE));
  for (uint32_t token = 0; token < t->n; token++)
    for (uint32_t row = 0; row < count; row++)
      t->target[(size_t)token * all + first + row] =
          y[((size_t)token / STIC_TILE * STIC_TILE + row) * STIC_TILE + token % STIC_TILE];
}

/* The logits of the pass's first tokens, from what region `normed` holds before its norm. */
static void head(stic_pass *t, float *target) {
  stic_pass_aim(t, STIC_HEAD, stic_floats_at(t->s, STIC_REGION_NORMED), t->s->package.padded_hidden, 0, target,
                STIC_TILE);
  for (uint32_t tile = 0; tile < t->tiles; tile++) {
    float *x = tile_of(t, STIC_REGION_NORMED, tile);
    if (t->block->input.gamma_at != STIC_ABSENT) norm_tile(t, &t->block->input, x, x);
    stic_pass_quantize(t, tile, 0);
  }
  stic_pass_find(t);
  stic_pass_run(t, STIC_EVENT_HEAD, head_block, t->kept.slices * t->cut->rows[STIC_HEAD] / STIC_TILE);
}

static void vocabulary(stic_pass *t) {
  const uint32_t hidden = t->s->package.padded_hidden, n = t->n, tiles = t->tiles, last = n - 1;
  const size_t all = t->s->package.model->output_features;
  float *normed = tile_of(t, STIC_REGION_NORMED, 0);
  if (!t->wanted.target) {
    const float *x = tile_of(t, STIC_REGION_X, last / STIC_TILE);
    for (uint32_t f = 0; f < hidden; f++) normed[f * STIC_TILE] = x[f * STIC_TILE + last % STIC_TILE];
    t->n = t->tiles = 1;
    head(t, stic_floats_at(t->s, STIC_REGION_LOGITS));
    return;
  }
  for (uint32_t first = 0; first < tiles; first += HEAD_TILES) {
    t->tiles = tiles - first < HEAD_TILES ? tiles - first : HEAD_TILES;
    t->n = n - first * STIC_TILE < t->tiles * STIC_TILE ? n - first * STIC_TILE : t->tiles * STIC_TILE;
    memcpy(normed, tile_of(t, STIC_REGION_X, first), (size_t)t->tiles * hidden * STIC_TILE * sizeof *normed);
    head(t, t->wanted.target + first * STIC_TILE * all);
  }
}

/* Embed a tile, whose rows are in region `rows` or, tied, in x; turn round its tokens' rows of the rotary tables. */
static void embed_tile(void *context, uint32_t tile, uint32_t thread) {
  const stic_pass *t = context;
  stic_session *s = t->s;
  const stic_package *p = &s->package;
  const stic_model *m = p->model;
  const uint32_t first = tile * STIC_TILE, count = t->n - first < STIC_TILE ? t->n - first : STIC_TILE;
  const uint64_t place = t->position + first;
  const uint8_t *rows = (uint8_t *)stic_region_at(s, STIC_REGION_ROWS) + (size_t)first * p->header->row_stride;
  const stic_half *positions = m->position_at == STIC_ABSENT
                                   ? NULL
                                   : (const stic_half *)stic_trunk_at(s, m->position_at) + place * p->padded_hidden;
  (void)thread;
  if (!stic_tied(p))
    s->kernels.embed_plain(rows, positions, tile_of(t, STIC_REGION_X, tile), (int32_t)count,
                           (int32_t)p->header->row_stride);
  else if (positions)
    stic_tied_add_positions(tile_of(t, STIC_REGION_X, tile), positions, count, p->padded_hidden);
  for (uint32_t table = 0; table < m->rotaries; table++) {
    const float *from =
        (const float *)stic_trunk_at(s, m->rotary_at) + (table * (uint64_t)m->max_length + place) * m->rotary_features;
    float *to = stic_pass_turns(t, tile, table);
    for (uint32_t lane = 0; lane < count; lane++)
      for (uint32_t f = 0; f < m->rotary_features; f++) to[f * STIC_TILE + lane] = from[lane * m->rotary_features + f];
  }
}

static stic_status wait(stic_session *s, int32_t block) {
  const uint64_t begin = stic_trace_now(&s->trace);
  const stic_status status = block < 0 ? stic_io_wait_rows(&s->io) : stic_io_wait_block(&s->io, (uint32_t)block);
  stic_stalled(s, block, false, begin);
  if (!atomic_load(&s->io.cancelled)) return status;
  return stic_fail(&s->error, STIC_CANCELLED, "cancelled: the text is as it was before the call");
}

stic_status stic_decode(stic_session *s, uint32_t n, uint32_t position, stic_wanted wanted) {
  const stic_package *p = &s->package;
  const uint32_t blocks = wanted.any ? p->header->blocks : p->header->blocks - 1;
  stic_pass t = {.s = s, .n = n, .tiles = (n + STIC_TILE - 1) / STIC_TILE, .position = position, .wanted = wanted};
  stic_status status = wait(s, -1);
  for (uint32_t b = 0; p->plan.load_first && b < blocks && !status; b++) status = wait(s, (int32_t)b);
  if (status) return status;
  t.number = UINT32_MAX; /* no block's */
  stic_pass_run(&t, STIC_EVENT_EMBED, embed_tile, t.tiles);
  for (t.number = 0; t.number < blocks; t.number++) {
    if ((status = wait(s, (int32_t)t.number))) return status;
    t.block = &p->blocks[t.number];
    t.cut = stic_cut_of(p, t.number);
    t.kept = p->kept[t.number];
    switch (t.cut->entry.kind) {
      case STIC_ATTENTION: attention(&t); break;
      case STIC_FEED_FORWARD: feed_forward(&t); break;
      default: vocabulary(&t); break;
    }
    t.cache_at += stic_cache_block_bytes(p, t.number);
    stic_io_computed(&s->io, t.number + 1);
  }
  return STIC_OK;
}
