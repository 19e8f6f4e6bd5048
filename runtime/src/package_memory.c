/* Check the arena's regions. */
#include "package.h"

static stic_status check_disjoint(const stic_package *p, stic_error *error) {
  /* What was checked before use (and is then trusted as offsets and indices) must stay as it was checked, and what is
   * cached outlives a pass. The other regions hold numbers only, and a memory plan may let them share bytes. */
  static const uint8_t trusted[] = {STIC_REGION_TRUNK,   STIC_REGION_PRELOAD, STIC_REGION_TABLE, STIC_REGION_WORKING,
                                    STIC_REGION_STAGING, STIC_REGION_IDS,     STIC_REGION_TYPES, STIC_REGION_CACHE};
  for (size_t i = 0; i < sizeof trusted; i++) {
    const stic_region *a = &p->regions[trusted[i]];
    for (uint32_t other = 0; other < STIC_REGIONS; other++) {
      const stic_region *b = &p->regions[other];
      if (other == trusted[i] || a->bytes == 0 || b->bytes == 0) continue;
      STIC_REQUIRE(regions_apart, a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset,
                   "index.bin: memory regions %u and %u overlap", trusted[i], other);
    }
  }
  return STIC_OK;
}

stic_cache_layout stic_cache_lay_out(const stic_model *model, uint32_t head_dim) {
  if (model->cache == STIC_NO_CACHE) return (stic_cache_layout){0, 0, 0, 0};
  const bool scaled = model->cache == STIC_CACHE_INT8;
  const uint64_t tokens = stic_pad(model->max_length, STIC_TILE), number = scaled ? 1 : 2;
  stic_cache_layout c;
  c.values_at = stic_pad(number * tokens * head_dim, STIC_ALIGN);
  c.key_scales_at = stic_pad(c.values_at + number * tokens * stic_pad(head_dim, STIC_TILE), STIC_ALIGN);
  c.value_scales_at = c.key_scales_at + (scaled ? 4 * tokens : 0);
  c.bytes = c.value_scales_at + (scaled ? 4 * tokens : 0);
  return c;
}

static void widen(uint64_t *most, uint64_t value) {
  if (value > *most) *most = value;
}

/* The widest of all blocks: features of a token that their matrices read and leave. */
typedef struct {
  uint64_t qkv, context, ffn;
  uint64_t source, groups; /* what any matrix reads, and its groups */
  uint64_t rows;           /* of the vocabulary */
  uint64_t cache_bytes;    /* of all blocks together */
} widths;

/* With the slices that the selected plan keeps, or with all of them. */
static widths widths_of(const stic_package *p, bool all) {
  widths w = {.source = p->padded_hidden, .groups = stic_groups(p->padded_hidden)};
  for (uint32_t b = 0; b < p->header->blocks; b++) {
    const stic_cut *cut = stic_cut_of(p, b);
    const uint64_t slices = all ? stic_slices(p, b) : p->kept[b].slices;
    widen(&w.qkv, slices * cut->rows[STIC_QKV]);
    widen(&w.context, slices * cut->attention_width);
    widen(&w.ffn, slices * cut->rows[STIC_UP]);
    widen(&w.source, slices * cut->attention_width);
    widen(&w.source, slices * cut->ffn_width);
    widen(&w.groups, slices * stic_groups(cut->attention_width));
    widen(&w.groups, slices * stic_groups(cut->ffn_width));
    widen(&w.rows, slices * cut->rows[STIC_HEAD]);
    if (cut->entry.kind == STIC_ATTENTION)
      w.cache_bytes +=
          stic_slices(p, b) * cut->entry.key_heads_per_slice * stic_cache_lay_out(p->model, cut->entry.head_dim).bytes;
  }
  if (!p->header->group) w.groups = 1;
  return w;
}

/* Bytes that the engine writes to each region. */
static void needs(const stic_package *p, bool all, uint64_t *bytes) {
  const stic_header *h = p->header;
  const stic_model *m = p->model;
  const widths w = widths_of(p, all);
  const uint64_t tiles = p->tiles, lanes16 = 4 * STIC_TILE, hidden = p->padded_hidden, encoder = !m->causal;
  uint64_t head = hidden;
  for (uint32_t i = 0; i < h->dense; i++) widen(&head, stic_pad(p->dense[i].rows, STIC_TILE));
  const uint64_t needed[STIC_REGIONS] = {
      [STIC_REGION_TRUNK] = p->trunk->bytes,
      [STIC_REGION_TABLE] = h->table_resident ? p->embeddings->bytes : 0,
      [STIC_REGION_X] = tiles * hidden * lanes16,
      [STIC_REGION_Y] = tiles * hidden * lanes16,
      [STIC_REGION_QKV] = tiles * w.qkv * lanes16,
      [STIC_REGION_CONTEXT] = tiles * w.context * lanes16,
      [STIC_REGION_FFN] = tiles * w.ffn * lanes16,
      [STIC_REGION_QUANTIZED] = tiles * w.source * STIC_TILE,
      [STIC_REGION_TOKEN_SCALE] = tiles * w.groups * lanes16,
      [STIC_REGION_TOKEN_SUM] = tiles * w.groups * lanes16,
      [STIC_REGION_PANEL] = h->threads * STIC_TILE * w.source,
      [STIC_REGION_SCRATCH] = h->threads * stic_scratch_bytes(p),
      [STIC_REGION_ROWS] = (uint64_t)m->chunk * h->row_stride,
      [STIC_REGION_STAGING] = (uint64_t)p->row_lanes * p->staging_bytes,
      [STIC_REGION_IDS] = 4 * (uint64_t)m->chunk,
      [STIC_REGION_TYPES] = encoder * 4 * m->chunk,
      [STIC_REGION_HEAD] = h->dense ? 2 * head * lanes16 : 0,
      [STIC_REGION_OUTPUT] = encoder * 4 * m->output_features * (m->pooling == STIC_POOL_TOKENS ? m->max_length : 1),
      [STIC_REGION_NORMED] = m->causal * tiles * hidden * lanes16,
      [STIC_REGION_TURNS] = tiles * m->rotaries * m->rotary_features * lanes16,
      [STIC_REGION_CACHE] = w.cache_bytes,
      [STIC_REGION_LOGITS] = 4 * w.rows,
  };
  for (uint32_t r = 0; r < STIC_REGIONS; r++) bytes[r] = needed[r];
}

stic_status stic_package_check_memory(const stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  uint64_t least[STIC_REGIONS], most[STIC_REGIONS], sum = 0;
  needs(p, false, least);
  needs(p, true, most);
  most[STIC_REGION_PRELOAD] = most[STIC_REGION_WORKING] = 2 * p->shards->bytes;
  if (!h->dense) most[STIC_REGION_HEAD] = 2 * (uint64_t)p->padded_hidden * 4 * STIC_TILE;
  static const uint8_t read_into[STIC_REGIONS] = {
      [STIC_REGION_PRELOAD] = 1, [STIC_REGION_TABLE] = 1, [STIC_REGION_WORKING] = 1, [STIC_REGION_STAGING] = 1};
  for (uint32_t r = 0; r < STIC_REGIONS; r++) {
    const stic_region *region = &p->regions[r];
    const uint32_t align = read_into[r] && region->bytes ? STIC_BLOCK : STIC_ALIGN;
    STIC_REQUIRE(region_place,
                 region->offset % align == 0 && region->offset <= p->plan.arena_bytes &&
                     region->bytes <= p->plan.arena_bytes - region->offset,
                 "index.bin: memory region %u lies outside the arena", r);
    STIC_REQUIRE(region_size, region->bytes >= least[r] && region->bytes <= most[r] + STIC_BLOCK,
                 "index.bin: memory region %u has %llu bytes and needs %llu", r, (unsigned long long)region->bytes,
                 (unsigned long long)least[r]);
    const bool whole = r > STIC_REGION_WORKING && r != STIC_REGION_PANEL && r != STIC_REGION_CACHE;
    STIC_REQUIRE(region_index, !whole || least[r] < (uint64_t)1 << 31,
                 "index.bin: memory region %u is larger than a kernel can index", r);
    sum += region->bytes;
  }
  STIC_REQUIRE(panel_index, least[STIC_REGION_PANEL] / h->threads < (uint64_t)1 << 31,
               "index.bin: a panel is larger than a kernel can index");
  /* The arena is taken as a whole at open: an absurd size must be refused before. */
  STIC_REQUIRE(arena_size, p->plan.arena_bytes > 0 && p->plan.arena_bytes <= sum + (STIC_REGIONS + 1) * STIC_BLOCK,
               "index.bin: an arena of %llu bytes for regions of %llu", (unsigned long long)p->plan.arena_bytes,
               (unsigned long long)sum);
  return check_disjoint(p, error);
}
