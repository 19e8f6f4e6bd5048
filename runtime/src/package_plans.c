/* The plans of a package: one, which the header tells, or a family of several in a table. */
#include <math.h>
#include <string.h>

#include "package.h"

stic_plan_entry stic_package_plan(const stic_package *p, uint32_t number) {
  if (p->family) return p->family[number];
  const stic_header *h = p->header;
  return (stic_plan_entry){.bits_at = h->bits_at,
                           .extents_at = h->extents_at,
                           .extents = h->extents,
                           .resident_extents = h->resident_extents,
                           .load_first = h->load_first,
                           .deadline_us = h->deadline_us,
                           .predicted_us = h->predicted_us,
                           .arena_bytes = h->arena_bytes,
                           .claimed_bytes = h->claimed_bytes,
                           .preload = p->region_table[STIC_REGION_PRELOAD],
                           .working = p->region_table[STIC_REGION_WORKING]};
}

void stic_package_select(stic_package *p, uint32_t number) {
  const stic_header *h = p->header;
  p->number = number;
  p->plan = stic_package_plan(p, number);
  p->bits = p->index + p->plan.bits_at;
  p->extents = (const stic_extent *)(p->index + p->plan.extents_at);
  memcpy(p->regions, p->region_table, sizeof p->regions);
  p->regions[STIC_REGION_PRELOAD] = p->plan.preload;
  p->regions[STIC_REGION_WORKING] = p->plan.working;
  p->most_slices = 0;
  for (uint32_t l = 0; l < h->layers; l++) {
    struct stic_kept kept = {0, 0};
    for (uint32_t s = 0; s < h->slices; s++) {
      kept.slices += stic_bits(p, l, s) > 0;
      kept.full += stic_bits(p, l, s) > 8;
    }
    p->kept[l] = kept;
    if (kept.slices > p->most_slices) p->most_slices = kept.slices;
  }
}

stic_status stic_package_choose(const stic_package *p, uint32_t deadline_us, uint64_t memory_bytes, uint32_t *number,
                                stic_error *error) {
  uint32_t least_us = UINT32_MAX, best = p->plans;
  uint64_t least_bytes = UINT64_MAX;
  stic_plan_entry chosen = {0};
  for (uint32_t i = 0; i < p->plans; i++) {
    const stic_plan_entry plan = stic_package_plan(p, i);
    const uint32_t held_us = plan.deadline_us ? plan.deadline_us : plan.predicted_us;
    if (held_us < least_us) least_us = held_us;
    if (plan.claimed_bytes < least_bytes) least_bytes = plan.claimed_bytes;
    if ((deadline_us && held_us > deadline_us) || (memory_bytes && plan.claimed_bytes > memory_bytes)) continue;
    const bool equal = plan.quality >= chosen.quality && plan.quality <= chosen.quality;
    const bool worse = equal ? plan.claimed_bytes >= chosen.claimed_bytes : plan.quality < chosen.quality;
    if (best < p->plans && worse) continue;
    best = i;
    chosen = plan;
  }
  if (best == p->plans)
    return stic_fail(error, STIC_NO_PLAN,
                     "no plan of the package meets a deadline of %u us in %llu bytes of memory (0: no limit): the least"
                     " deadline that it has a plan for is %u us, the least memory %llu bytes",
                     deadline_us, (unsigned long long)memory_bytes, least_us, (unsigned long long)least_bytes);
  *number = best;
  return STIC_OK;
}

static bool same_region(const stic_region *a, const stic_region *b) {
  return a->offset == b->offset && a->bytes == b->bytes;
}

/* The first plan is what a reader that knows no families would run. */
static bool repeats_header(const stic_package *p) {
  const stic_header *h = p->header;
  const stic_plan_entry *e = &p->family[0];
  return e->bits_at == h->bits_at && e->extents_at == h->extents_at && e->extents == h->extents &&
         e->resident_extents == h->resident_extents && e->load_first == h->load_first &&
         e->deadline_us == h->deadline_us && e->predicted_us == h->predicted_us && e->arena_bytes == h->arena_bytes &&
         e->claimed_bytes == h->claimed_bytes && same_region(&e->preload, &p->region_table[STIC_REGION_PRELOAD]) &&
         same_region(&e->working, &p->region_table[STIC_REGION_WORKING]);
}

stic_status stic_package_check_plans(const stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  uint64_t extents = 0;
  for (uint32_t i = 0; i < p->plans; i++) {
    const stic_plan_entry e = stic_package_plan(p, i);
    const double quality = e.quality;
    STIC_REQUIRE(plan_tables,
                 e.bits_at % 8 == 0 && e.extents_at % 8 == 0 &&
                     e.bits_at + (uint64_t)h->layers * h->slices <= h->index_bytes &&
                     e.extents_at + e.extents * (uint64_t)sizeof(stic_extent) <= h->index_bytes,
                 "index.bin: a table of plan %u lies outside it", i);
    STIC_REQUIRE(plan_fields, e.load_first <= 1 && e.reserved == 0 && isfinite(quality),
                 "index.bin: plan %u has load_first %u, a reserved field that is set, or no finite quality", i,
                 e.load_first);
    extents += e.extents;
    STIC_REQUIRE(plan_extents, extents <= STIC_MOST_EXTENTS, "index.bin: its plans have more than %d extents",
                 STIC_MOST_EXTENTS);
  }
  STIC_REQUIRE(plan_repeats, !p->family || repeats_header(p),
               "index.bin: the first plan of its family is not the header's");
  return STIC_OK;
}

/* What another plan keeps resident, too, can be moved there in two passes over the extents, and by whole blocks. */
static stic_status check_resident(const stic_package *p, stic_error *error) {
  for (uint32_t i = 0; i < p->plan.resident_extents; i++) {
    const stic_extent *e = &p->extents[i], *before = i ? e - 1 : e;
    STIC_REQUIRE(resident_order,
                 i == 0 || ((before->layer < e->layer || (before->layer == e->layer && before->level < e->level)) &&
                            before->destination + before->bytes <= e->destination),
                 "index.bin: resident extent %u is out of order", i);
    const stic_record *r = &p->records[stic_record_index(p, e->layer, e->level, e->first)];
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
  const stic_region *preload = &p->regions[STIC_REGION_PRELOAD], *working = &p->regions[STIC_REGION_WORKING];
  const uint64_t behind = preload->offset + stic_pad(preload->bytes, STIC_BLOCK);
  STIC_REQUIRE(family_weights,
               preload->offset % STIC_BLOCK == 0 && preload->offset == p->region_table[STIC_REGION_PRELOAD].offset &&
                   working->offset == behind && p->plan.arena_bytes == behind + stic_pad(working->bytes, STIC_BLOCK),
               "index.bin: the arena does not end with the weights");
  for (uint32_t r = 0; r < STIC_REGIONS; r++)
    STIC_REQUIRE(family_regions,
                 r == STIC_REGION_PRELOAD || r == STIC_REGION_WORKING ||
                     p->regions[r].offset + p->regions[r].bytes <= preload->offset,
                 "index.bin: memory region %u does not lie before the weights", r);
  return check_resident(p, error);
}
