/* Check the arena's regions. */
#include "package.h"

static stic_status check_disjoint(const stic_package *p, stic_error *error) {
  /* What was checked before use (and is then trusted as offsets and indices) must stay as it was checked. The other
   * regions hold numbers only, and a memory plan may let them share bytes. */
  static const uint8_t trusted[] = {STIC_REGION_TRUNK,   STIC_REGION_PRELOAD, STIC_REGION_TABLE, STIC_REGION_WORKING,
                                    STIC_REGION_STAGING, STIC_REGION_IDS,     STIC_REGION_TYPES};
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

/* Bytes that the engine writes to each region, if no layer keeps more than `slices` slices. */
static void needs(const stic_package *p, uint64_t slices, uint64_t *bytes) {
  const stic_header *h = p->header;
  const uint64_t tiles = p->tiles, lanes16 = 4 * STIC_TILE;
  uint64_t widest = p->padded_hidden, head = p->padded_hidden;
  if (slices * p->attention_width > widest) widest = slices * p->attention_width;
  if (slices * p->ffn_width > widest) widest = slices * p->ffn_width;
  for (uint32_t i = 0; i < h->dense; i++) {
    const uint64_t rows = stic_pad(p->dense[i].rows, STIC_TILE);
    if (rows > head) head = rows;
  }
  const uint64_t needed[STIC_REGIONS] = {
      [STIC_REGION_TRUNK] = p->trunk->bytes,
      [STIC_REGION_TABLE] = h->table_resident ? p->embeddings->bytes : 0,
      [STIC_REGION_X] = tiles * p->padded_hidden * lanes16,
      [STIC_REGION_Y] = tiles * p->padded_hidden * lanes16,
      [STIC_REGION_QKV] = tiles * slices * p->rows[STIC_QKV] * lanes16,
      [STIC_REGION_CONTEXT] = tiles * slices * p->attention_width * lanes16,
      [STIC_REGION_FFN] = tiles * slices * p->ffn_width * lanes16,
      [STIC_REGION_QUANTIZED] = tiles * widest * STIC_TILE,
      [STIC_REGION_TOKEN_SCALE] = tiles * lanes16,
      [STIC_REGION_TOKEN_SUM] = tiles * lanes16,
      [STIC_REGION_PANEL] = h->threads * STIC_TILE * widest,
      [STIC_REGION_SCRATCH] = h->threads * stic_scratch_bytes(p),
      [STIC_REGION_ROWS] = (uint64_t)h->max_length * h->row_stride,
      [STIC_REGION_STAGING] = (uint64_t)p->row_lanes * p->staging_bytes,
      [STIC_REGION_IDS] = 4 * (uint64_t)h->max_length,
      [STIC_REGION_TYPES] = 4 * (uint64_t)h->max_length,
      [STIC_REGION_HEAD] = h->dense ? 2 * head * lanes16 : 0,
      [STIC_REGION_OUTPUT] = 4 * (uint64_t)h->output_features * (h->pooling == STIC_POOL_TOKENS ? h->max_length : 1),
  };
  for (uint32_t r = 0; r < STIC_REGIONS; r++) bytes[r] = needed[r];
}

stic_status stic_package_check_memory(const stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  uint64_t least[STIC_REGIONS], most[STIC_REGIONS], sum = 0;
  needs(p, p->most_slices, least);
  needs(p, h->slices, most);
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
    STIC_REQUIRE(region_index, r <= STIC_REGION_WORKING || r == STIC_REGION_PANEL || least[r] < (uint64_t)1 << 31,
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
