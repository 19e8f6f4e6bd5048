#include "cache.h"

#include <string.h>

static uint32_t key_heads(const stic_package *p, uint32_t block) {
  const stic_shape *shape = &stic_cut_of(p, block)->entry;
  return shape->kind == STIC_ATTENTION ? shape->slices * shape->key_heads_per_slice : 0;
}

uint64_t stic_cache_block_bytes(const stic_package *p, uint32_t block) {
  const uint32_t heads = key_heads(p, block);
  return heads ? heads * stic_cache_lay_out(p->model, stic_cut_of(p, block)->entry.head_dim).bytes : 0;
}

uint64_t stic_cache_bytes(const stic_package *p) {
  uint64_t bytes = 0;
  for (uint32_t block = 0; block < p->header->blocks; block++) bytes += stic_cache_block_bytes(p, block);
  return bytes;
}

/* Keys, values, and the scales of both. */
enum { PARTS = 4 };

static stic_part part_of(const stic_session *s, const stic_cursor *c, uint32_t position) {
  const stic_package *p = &s->package;
  const uint64_t features = stic_cut_of(p, c->block)->entry.head_dim, width = stic_cache_width(p);
  const stic_cache_layout layout = stic_cache_lay_out(p->model, (uint32_t)features);
  const bool integers = p->model->cache == STIC_CACHE_INT8;
  uint8_t *head = (uint8_t *)stic_region_at(s, STIC_REGION_CACHE) + c->at + c->head * layout.bytes;
  switch (c->part) {
    case 0: return (stic_part){head, stic_pad(position, STIC_TILE) * features * width, integers ? 8 : 16};
    case 1:
      return (stic_part){head + layout.values_at, position * stic_pad(features, STIC_TILE) * width, integers ? 8 : 16};
    case 2: return (stic_part){head + layout.key_scales_at, integers ? 4 * (uint64_t)position : 0, 32};
    default: return (stic_part){head + layout.value_scales_at, integers ? 4 * (uint64_t)position : 0, 32};
  }
}

bool stic_cache_next(const stic_session *s, uint32_t position, stic_cursor *c, stic_part *part) {
  const stic_package *p = &s->package;
  for (; c->block < p->header->blocks; c->at += stic_cache_block_bytes(p, c->block++), c->head = 0)
    for (; c->head < key_heads(p, c->block); c->head++, c->part = 0)
      while (c->part < PARTS) {
        *part = part_of(s, c, position);
        c->part++;
        if (part->bytes) return true;
      }
  if (!c->logits) return false;
  c->logits = false;
  *part = (stic_part){stic_region_at(s, STIC_REGION_LOGITS), 4 * (uint64_t)p->model->output_features, 32};
  return true;
}

static uint64_t hash(uint64_t state, const void *bytes, size_t size) {
  for (size_t i = 0; i < size; i++) state = (state ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u; /* FNV-1a */
  return state;
}

uint64_t stic_cache_identity(const stic_package *p) {
  const stic_file *const files[] = {p->trunk, p->embeddings, p->shards};
  uint64_t state = hash(0xcbf29ce484222325u, p->model, sizeof *p->model);
  state = hash(state, p->blocks, p->header->blocks * sizeof *p->blocks);
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    state = hash(state, &files[i]->bytes, sizeof files[i]->bytes);
    state = hash(state, &files[i]->crc, sizeof files[i]->crc);
  }
  return hash(state, p->bits, p->first_slice[p->header->blocks]);
}
