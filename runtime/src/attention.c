#include "attention.h"

#include <string.h>

void stic_norm_rows(const stic_session *s, bool layer, const stic_norm *norm, uint64_t element, const float *x,
                    float *y, uint32_t features, uint32_t padded) {
  const float *gamma = stic_floats_of(s, norm->gamma_at, element), *beta = stic_floats_of(s, norm->beta_at, element);
  if (layer)
    s->kernels.layer_norm(x, gamma, beta, y, (int32_t)features, (int32_t)padded);
  else
    s->kernels.rms_norm(x, gamma, y, (int32_t)features, (int32_t)padded);
}

float *stic_pass_turns(const stic_pass *t, uint32_t tile, uint32_t table) {
  const stic_model *m = t->s->package.model;
  return stic_floats_at(t->s, STIC_REGION_TURNS) +
         ((size_t)tile * m->rotaries + table) * m->rotary_features * STIC_TILE;
}

/* Queries of a slice in a tile; its keys follow, then its values. */
static float *queries_of(const stic_pass *t, uint32_t tile, uint32_t slice) {
  return stic_floats_at(t->s, STIC_REGION_QKV) +
         ((size_t)tile * t->kept.slices + slice) * t->cut->rows[STIC_QKV] * STIC_TILE;
}

/* A norm over all heads together wants them beside each other, and slices keep them apart: by way of `context`. */
static void norm_together(const stic_pass *t, uint32_t tile, const stic_norm *norm, uint32_t first, uint32_t width) {
  const size_t bytes = (size_t)width * STIC_TILE * sizeof(float);
  float *heads =
      stic_floats_at(t->s, STIC_REGION_CONTEXT) + (size_t)tile * t->kept.slices * t->cut->attention_width * STIC_TILE;
  const uint32_t all = t->kept.slices * width;
  for (uint32_t slice = 0; slice < t->kept.slices; slice++)
    memcpy(heads + (size_t)slice * width * STIC_TILE, queries_of(t, tile, slice) + (size_t)first * STIC_TILE, bytes);
  stic_norm_rows(t->s, t->block->flags & STIC_LAYER_HEAD_NORM, norm, 0, heads, heads, all, all);
  for (uint32_t slice = 0; slice < t->kept.slices; slice++)
    memcpy(queries_of(t, tile, slice) + (size_t)first * STIC_TILE, heads + (size_t)slice * width * STIC_TILE, bytes);
}

static void norm_whole(void *context, uint32_t tile, uint32_t thread) {
  const stic_pass *t = context;
  (void)thread;
  norm_together(t, tile, &t->block->query_norm, 0, t->cut->attention_width);
  norm_together(t, tile, &t->block->key_norm, t->cut->attention_width, t->cut->key_width);
}

/* Norm, if it is by head, and rotation of `heads` heads beside each other, those of a slice. */
static void turn(const stic_pass *t, uint32_t tile, const stic_norm *norm, uint64_t element, float *x, uint32_t heads) {
  const uint32_t head_dim = t->cut->entry.head_dim;
  const bool by_head = norm->gamma_at != STIC_ABSENT && !(t->block->flags & STIC_WHOLE_HEAD_NORM);
  for (uint32_t head = 0; by_head && head < heads; head++) {
    float *own = x + (size_t)head * head_dim * STIC_TILE;
    stic_norm_rows(t->s, t->block->flags & STIC_LAYER_HEAD_NORM, norm, element + head * head_dim, own, own, head_dim,
                   head_dim);
  }
  if (t->block->rotary)
    t->s->kernels.rope(x, stic_pass_turns(t, tile, t->block->rotary - 1), (int32_t)heads, (int32_t)head_dim,
                       (int32_t)t->s->package.model->rotary_features);
}

/* Where the cache of a key head is, by parts. */
typedef struct {
  uint8_t *keys, *values;
  float *key_scale, *value_scale;
} store;

static store store_of(const stic_pass *t, uint32_t key_head) {
  const stic_cache_layout layout = stic_cache_lay_out(t->s->package.model, t->cut->entry.head_dim);
  uint8_t *at = (uint8_t *)stic_region_at(t->s, STIC_REGION_CACHE) + t->cache_at + key_head * layout.bytes;
  return (store){at, at + layout.values_at, (float *)(void *)(at + layout.key_scales_at),
                 (float *)(void *)(at + layout.value_scales_at)};
}

static void keep(const stic_pass *t, uint32_t tile, uint32_t key_head, const float *k, const float *v) {
  const store to = store_of(t, key_head);
  const uint32_t first = tile * STIC_TILE, count = t->n - first < STIC_TILE ? t->n - first : STIC_TILE;
  const int32_t position = (int32_t)(t->position + first);
  if (t->s->package.model->cache == STIC_CACHE_INT8)
    t->s->kernels.cache_store_i8(k, v, (int8_t *)to.keys, to.key_scale, (int8_t *)to.values, to.value_scale, position,
                                 (int32_t)count);
  else
    t->s->kernels.cache_store_f16(k, v, (stic_half *)(void *)to.keys, (stic_half *)(void *)to.values, position,
                                  (int32_t)count);
}

/* All tiles of a slice in one item: two of them may meet in one tile of the cache. */
static void place_heads(void *context, uint32_t slice, uint32_t thread) {
  const stic_pass *t = context;
  const stic_cut *cut = t->cut;
  const uint32_t heads = cut->entry.key_heads_per_slice, head_dim = cut->entry.head_dim;
  const size_t a = cut->attention_width, c = cut->key_width;
  (void)thread;
  for (uint32_t tile = 0; tile < t->tiles; tile++) {
    float *q = queries_of(t, tile, slice), *k = q + a * STIC_TILE, *v = k + c * STIC_TILE;
    turn(t, tile, &t->block->query_norm, slice * a, q, cut->entry.heads_per_slice);
    turn(t, tile, &t->block->key_norm, slice * c, k, heads);
    for (uint32_t head = 0; head < heads; head++) {
      const size_t at = (size_t)head * head_dim * STIC_TILE;
      keep(t, tile, slice * heads + head, k + at, v + at);
    }
  }
}

/* One tile, one key head, some of its queries. */
static void attend_part(void *context, uint32_t item, uint32_t thread) {
  const stic_pass *t = context;
  stic_session *s = t->s;
  const stic_shape *shape = &t->cut->entry;
  const uint32_t key_heads = shape->key_heads_per_slice, group = shape->heads_per_slice / key_heads;
  const uint32_t heads = t->kept.slices * key_heads, each = (group + t->parts - 1) / t->parts;
  const uint32_t part = item % t->parts, head = item / t->parts % heads, tile = item / t->parts / heads;
  const uint32_t slice = head / key_heads, first = part * each, width = t->cut->attention_width;
  const uint32_t used = shape->heads_per_slice * shape->head_dim, from = tile * STIC_TILE;
  const int32_t count = t->n - from < STIC_TILE ? (int32_t)(t->n - from) : STIC_TILE;
  float *out = stic_floats_at(s, STIC_REGION_CONTEXT) + ((size_t)tile * t->kept.slices + slice) * width * STIC_TILE;
  if (part == 0 && head % key_heads == 0)
    memset(out + (size_t)used * STIC_TILE, 0, (size_t)(width - used) * STIC_TILE * sizeof *out);
  if (first >= group) return;
  const int32_t queries = group - first < each ? (int32_t)(group - first) : (int32_t)each;
  const size_t at = ((size_t)head % key_heads * group + first) * shape->head_dim * STIC_TILE;
  const int32_t position = (int32_t)(t->position + from), window = (int32_t)t->block->window;
  const int32_t keys = (int32_t)stic_pad(s->package.model->max_length, STIC_TILE);
  const float *q = queries_of(t, tile, slice) + at;
  float *scratch = stic_floats_at(s, STIC_REGION_SCRATCH) + thread * stic_scratch_bytes(&s->package) / sizeof(float);
  const store of = store_of(t, head);
  if (s->package.model->cache == STIC_CACHE_INT8)
    s->kernels.cached_attention_i8(q, (int8_t *)of.keys, of.key_scale, (int8_t *)of.values, of.value_scale, out + at,
                                   scratch, queries, position, count, window, keys);
  else
    s->kernels.cached_attention_f16(q, (stic_half *)(void *)of.keys, (stic_half *)(void *)of.values, out + at, scratch,
                                    queries, position, count, window, keys);
}

void stic_pass_attend(stic_pass *t) {
  const stic_shape *shape = &t->cut->entry;
  const uint32_t slices = t->kept.slices, items = t->tiles * slices * shape->key_heads_per_slice;
  const uint32_t group = shape->heads_per_slice / shape->key_heads_per_slice;
  if (t->block->query_norm.gamma_at != STIC_ABSENT && t->block->flags & STIC_WHOLE_HEAD_NORM)
    stic_pass_run(t, STIC_EVENT_NORM, norm_whole, t->tiles);
  stic_pass_run(t, STIC_EVENT_CACHE, place_heads, slices);
  /* Queries of a key head share its keys and values, so they are parted only where threads would be left without work. */
  for (t->parts = 1; items * t->parts < t->s->pool.threads && t->parts < group;) t->parts++;
  stic_pass_run(t, STIC_EVENT_ATTENTION, attend_part, items * t->parts);
}
