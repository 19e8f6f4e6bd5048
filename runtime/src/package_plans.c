/* The plans of a package: one, or a family of several. */
#include <math.h>
#include <string.h>

#include "package.h"

void stic_package_select(stic_package *p, uint32_t number) {
  p->number = number;
  p->plan = p->plans[number];
  p->bits = p->index + p->plan.bits_at;
  p->extents = (const stic_extent *)(p->index + p->plan.extents_at);
  memcpy(p->regions, p->region_table, sizeof p->regions);
  p->regions[STIC_REGION_PRELOAD] = p->plan.preload;
  p->regions[STIC_REGION_WORKING] = p->plan.working;
  for (uint32_t b = 0; b < p->header->blocks; b++) {
    struct stic_kept kept = {0, 0};
    for (uint32_t s = 0; s < stic_slices(p, b); s++) {
      kept.slices += stic_bits(p, b, s) > 0;
      kept.full += stic_bits(p, b, s) > 8;
    }
    p->kept[b] = kept;
  }
}

stic_status stic_package_choose(const stic_package *p, uint32_t deadline_us, uint64_t memory_bytes, uint32_t *number,
                                stic_error *error) {
  uint32_t least_us = UINT32_MAX, best = p->header->plans;
  uint64_t least_bytes = UINT64_MAX;
  stic_plan_entry chosen = {0};
  for (uint32_t i = 0; i < p->header->plans; i++) {
    const stic_plan_entry plan = p->plans[i];
    const uint32_t held_us = plan.deadline_us ? plan.deadline_us : plan.predicted_us;
    if (held_us < least_us) least_us = held_us;
    if (plan.claimed_bytes < least_bytes) least_bytes = plan.claimed_bytes;
    if ((deadline_us && held_us > deadline_us) || (memory_bytes && plan.claimed_bytes > memory_bytes)) continue;
    const bool equal = plan.quality >= chosen.quality && plan.quality <= chosen.quality;
    const bool worse = equal ? plan.claimed_bytes >= chosen.claimed_bytes : plan.quality < chosen.quality;
    if (best < p->header->plans && worse) continue;
    best = i;
    chosen = plan;
  }
  if (best == p->header->plans)
    return stic_fail(error, STIC_NO_PLAN,
                     "no plan of the package meets a deadline of %u us in %llu bytes of memory (0: no limit): the least"
                     " deadline that it has a plan for is %u us, the least memory %llu bytes",
                     deadline_us, (unsigned long long)memory_bytes, least_us, (unsigned long long)least_bytes);
  *number = best;
  return STIC_OK;
}

stic_status stic_package_check_plans(const stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  uint64_t extents = 0;
  for (uint32_t i = 0; i < p->header->plans; i++) {
    const stic_plan_entry e = p->plans[i];
    const double quality = e.quality;
    STIC_REQUIRE(plan_tables,
                 e.bits_at % 8 == 0 && e.extents_at % 8 == 0 &&
                     e.bits_at + (uint64_t)p->first_slice[h->blocks] <= h->index_bytes &&
                     e.extents_at + e.extents * (uint64_t)sizeof(stic_extent) <= h->index_bytes,
                 "index.bin: a table of plan %u lies outside it", i);
    STIC_REQUIRE(plan_fields, e.load_first <= 1 && e.reserved == 0 && isfinite(quality),
                 "index.bin: plan %u has load_first %u, a reserved field that is set, or no finite quality", i,
                 e.load_first);
    extents += e.extents;
    STIC_REQUIRE(plan_extents, extents <= STIC_MOST_EXTENTS, "index.bin: its plans have more than %d extents",
                 STIC_MOST_EXTENTS);
  }
  for (uint32_t r = STIC_REGION_PRELOAD; r <= STIC_REGION_WORKING; r += STIC_REGION_WORKING - STIC_REGION_PRELOAD)
    STIC_REQUIRE(plan_regions, p->region_table[r].offset == 0 && p->region_table[r].bytes == 0,
                 "index.bin: memory region %u, of which each plan has its own, has a place beside them", r);
  return STIC_OK;
}

/* What another plan keeps resident, too, can be moved there in two passes over the extents, and by whole blocks. */
static stic_status check_resident(const stic_package *p, stic_error *error) {
  for (uint32_t i = 0; i < p->plan.resident_extents; i++) {
    const stic_extent *e = &p->extents[i], *before = i ? e - 1 : e;
    STIC_REQUIRE(resident_order,
                 i == 0 || ((before->block < e->block || (before->block == e->block && before->level < e->level)) &&
                            before->destination + before->bytes <= e->destination),
                 "index.bin: resident extent %u is out of order", i);
    const stic_record *r = &p->records[stic_record_index(p, e->block, e->level, e->first)];
    uint64_t end = r->offset;
    for (uint32_t s = 0; s < e->count; s++) {
      STIC_REQUIRE(resident_together, r[s].offset == end, "index.bin: the records of resident extent %u are apart", i);
      end += r[s].bytes;
    }
    STIC_REQUIRE(resident_exact,
                 e->file_offset == r->offset / STIC_BLOCK * STIC_BLOCK &&
                     e->file_offset + e->bytes == stic_pad(end, STIC_BLOCK),
                 "index.bin: resident extent %u is not exactly its records", i);
  }
  return STIC_OK;
}

stic_status stic_package_check_family(const stic_package *p, stic_error *error) {
  if (p->header->plans == 1) return STIC_OK;
  const stic_region *preload = &p->regions[STIC_REGION_PRELOAD], *working = &p->regions[STIC_REGION_WORKING];
  const uint64_t behind = preload->offset + stic_pad(preload->bytes, STIC_BLOCK);
  STIC_REQUIRE(family_weights,
               preload->offset % STIC_BLOCK == 0 && preload->offset == p->plans[0].preload.offset &&
                   working->offset == behind && p->plan.arena_bytes == behind + stic_pad(working->bytes, STIC_BLOCK),
               "index.bin: the arena does not end with the weights");
  for (uint32_t r = 0; r < STIC_REGIONS; r++)
    STIC_REQUIRE(family_regions,
                 r == STIC_REGION_PRELOAD || r == STIC_REGION_WORKING ||
                     p->regions[r].offset + p->regions[r].bytes <= preload->offset,
                 "index.bin: memory region %u does not lie before the weights", r);
  return check_resident(p, error);
}
