/* Check the order and the places of loading. */
#include <stdlib.h>

#include "package.h"

/* The extent lies in its file and its region, and its slices' records lie in the extent. */
static stic_status check_place(const stic_package *p, uint32_t i, stic_error *error) {
  const stic_header *h = p->header;
  const stic_extent *e = &p->extents[i];
  const stic_region *region = &p->regions[i < p->plan.resident_extents ? STIC_REGION_PRELOAD : STIC_REGION_WORKING];
  STIC_REQUIRE(extent_shard,
               e->block < h->blocks && e->level < STIC_LEVELS && e->count >= 1 &&
                   (uint32_t)e->first + e->count <= stic_slices(p, e->block),
               "index.bin: extent %u names a shard that does not exist", i);
  STIC_REQUIRE(extent_file,
               e->bytes > 0 && e->bytes % STIC_BLOCK == 0 && e->file_offset % STIC_BLOCK == 0 &&
                   e->file_offset <= p->shards->bytes && e->bytes <= p->shards->bytes - e->file_offset,
               "index.bin: extent %u lies outside shards.bin", i);
  STIC_REQUIRE(extent_memory,
               e->destination % STIC_BLOCK == 0 && e->destination >= region->offset &&
                   e->destination - region->offset <= region->bytes &&
                   e->bytes <= region->bytes - (e->destination - region->offset),
               "index.bin: extent %u lies outside its memory region", i);
  STIC_REQUIRE(extent_waits,
               e->wait_block >= -1 && e->wait_block < (int32_t)e->block &&
                   ((i >= p->plan.resident_extents && !p->plan.load_first) || e->wait_block == -1),
               "index.bin: extent %u waits for block %d, but is itself of block %u", i, e->wait_block, e->block);
  for (uint32_t s = e->first; s < (uint32_t)e->first + e->count; s++) {
    const stic_record *r = &p->records[stic_record_index(p, e->block, e->level, s)];
    STIC_REQUIRE(extent_records,
                 r->bytes > 0 && r->offset >= e->file_offset && r->offset + r->bytes <= e->file_offset + e->bytes,
                 "index.bin: extent %u does not hold slice %u", i, s);
  }
  return STIC_OK;
}

/* No byte is overwritten before the block that uses it has been computed. `owners` has, for each 4096 bytes of the
 * region, one more than the block whose extent was last placed there. */
static stic_status check_overlap(const stic_package *p, uint32_t first, uint32_t end, uint64_t region_offset,
                                 uint16_t *owners, stic_error *error) {
  for (uint32_t i = first; i < end; i++) {
    const stic_extent *e = &p->extents[i];
    const uint64_t first_page = (e->destination - region_offset) / STIC_BLOCK;
    for (uint64_t page = first_page; page < first_page + e->bytes / STIC_BLOCK; page++) {
      STIC_REQUIRE(extent_overwrites, (int32_t)owners[page] - 1 <= e->wait_block,
                   "index.bin: extent %u overwrites block %u before its time", i, owners[page] - 1);
      owners[page] = (uint16_t)(e->block + 1);
    }
  }
  return STIC_OK;
}

static stic_status check_order(const stic_package *p, uint16_t *owners, uint8_t *read, stic_error *error) {
  const stic_header *h = p->header;
  stic_status status;
  uint64_t total = 0;
  for (uint32_t i = 0; i < p->plan.extents; i++) {
    if ((status = check_place(p, i, error))) return status;
    const stic_extent *e = &p->extents[i];
    /* Bounds the work below: the blocks of one extent may be shared with two neighbours. */
    total += e->bytes;
    STIC_REQUIRE(extents_again, total <= 3 * p->shards->bytes,
                 "index.bin: extents read the same bytes again and again");
    for (uint32_t s = e->first; s < (uint32_t)e->first + e->count; s++) {
      uint8_t *once = &read[stic_record_index(p, e->block, e->level, s)];
      STIC_REQUIRE(extent_once, !*once, "index.bin: extent %u reads slice %u a second time", i, s);
      *once = 1;
    }
  }
  uint32_t lowest = h->blocks; /* block among the extents from i on */
  for (uint32_t i = p->plan.extents; i-- > p->plan.resident_extents;) {
    const stic_extent *e = &p->extents[i];
    if (e->block < lowest) lowest = e->block;
    STIC_REQUIRE(extent_order, e->wait_block < (int32_t)lowest,
                 "index.bin: extent %u waits for a block that is loaded after it", i);
  }
  for (uint32_t b = 0; b < h->blocks; b++)
    for (uint32_t s = 0; s < p->kept[b].slices; s++) {
      uint32_t level, last;
      for (stic_levels_of(p, stic_bits(p, b, s), &level, &last); level <= last; level++)
        STIC_REQUIRE(shard_read, read[stic_record_index(p, b, level, s)],
                     "index.bin: no extent reads block %u level %u slice %u", b, level, s);
    }
  const stic_region *preload = &p->regions[STIC_REGION_PRELOAD], *working = &p->regions[STIC_REGION_WORKING];
  status = check_overlap(p, 0, p->plan.resident_extents, preload->offset, owners, error);
  if (status) return status;
  return check_overlap(p, p->plan.resident_extents, p->plan.extents, working->offset,
                       owners + stic_pad(preload->bytes, STIC_BLOCK) / STIC_BLOCK, error);
}

stic_status stic_package_check_extents(const stic_package *p, stic_error *error) {
  STIC_REQUIRE(extents_resident, p->plan.resident_extents <= p->plan.extents,
               "index.bin: more resident extents than extents");
  const uint64_t pages = (stic_pad(p->regions[STIC_REGION_PRELOAD].bytes, STIC_BLOCK) +
                          stic_pad(p->regions[STIC_REGION_WORKING].bytes, STIC_BLOCK)) /
                         STIC_BLOCK;
  uint16_t *owners = calloc(pages + 1, sizeof *owners);
  uint8_t *read = calloc(stic_records(p), 1);
  const stic_status status = owners && read
                                 ? check_order(p, owners, read, error)
                                 : stic_fail(error, STIC_OUT_OF_MEMORY, "no memory to check the order of loading");
  free(owners);
  free(read);
  return status;
}
