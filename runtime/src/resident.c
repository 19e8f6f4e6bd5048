/* What of the preload buffer is loaded: given back on request, and moved when the plan changes. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "io.h"

stic_present stic_io_present(const stic_io *io, uint32_t extent) {
  return extent < io->package->plan.resident_extents ? io->present[extent] : (stic_present){0, 0, 0, 0};
}

uint32_t stic_io_missing_bytes(const stic_io *io, uint32_t extent) {
  const stic_present present = stic_io_present(io, extent);
  return io->package->extents[extent].bytes - (present.end - present.begin);
}

static const stic_record *record_of(const stic_package *p, const stic_extent *e, uint32_t slice) {
  return &p->records[stic_record_index(p, e->block, e->level, slice)];
}

static uint64_t end_of(const stic_record *r) { return r->offset + r->bytes; }

/* A record that shares a block with a missing one is no longer there whole, should that block arrive damaged. */
void stic_io_reading(stic_io *io, uint32_t extent) {
  if (extent >= io->package->plan.resident_extents) return;
  const stic_extent *e = &io->package->extents[extent];
  stic_present *x = &io->present[extent];
  while (x->first < x->last && record_of(io->package, e, x->first)->offset < e->file_offset + x->begin) x->first++;
  while (x->first < x->last && end_of(record_of(io->package, e, x->last - 1)) > e->file_offset + x->end) x->last--;
}

void stic_io_complete(stic_io *io, uint32_t extent) {
  const stic_extent *e = &io->package->extents[extent];
  if (extent < io->package->plan.resident_extents)
    io->present[extent] = (stic_present){0, e->bytes, e->first, (uint32_t)e->first + e->count};
}

void stic_io_sort_resident(stic_io *io) {
  const uint32_t count = io->package->plan.resident_extents;
  uint32_t at = 0;
  for (uint32_t l = 0; l < io->package->header->blocks; l++)
    for (uint32_t i = 0; i < count; i++)
      if (io->package->extents[i].block == l) io->by_block[at++] = i;
}

void stic_io_evict(stic_io *io, uint64_t bytes) {
  const stic_extent *extents = io->package->extents;
  uint64_t freed = 0;
  for (uint32_t i = io->package->plan.resident_extents; i-- > 0 && freed < bytes;) {
    const uint32_t e = io->by_block[i];
    freed += extents[e].bytes - stic_io_missing_bytes(io, e);
    io->present[e] = (stic_present){0, 0, 0, 0};
    stic_discard(io->arena + extents[e].destination, extents[e].bytes);
  }
}

uint64_t stic_io_resident_bytes(const stic_io *io) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < io->package->plan.resident_extents; i++) bytes += io->present[i].end - io->present[i].begin;
  return bytes;
}

/* What an extent has of what another one of the same block and level had. It is exactly the blocks that its records
 * touch, and these are contiguous (package_plans.c); a block that a missing record touches as well is read with it. */
static stic_present kept_of(const stic_package *p, const stic_extent *e, stic_present had) {
  const uint32_t end = (uint32_t)e->first + e->count;
  const uint32_t first = had.first > e->first ? had.first : e->first, last = had.last < end ? had.last : end;
  if (first >= last) return (stic_present){0, 0, 0, 0};
  const uint64_t lower = record_of(p, e, first)->offset, upper = end_of(record_of(p, e, last - 1));
  const uint64_t from = first == e->first ? e->file_offset : stic_pad(lower, STIC_BLOCK);
  const uint64_t to = last == end ? e->file_offset + e->bytes : upper / STIC_BLOCK * STIC_BLOCK;
  if (from >= to) return (stic_present){0, 0, first, last};
  return (stic_present){(uint32_t)(from - e->file_offset), (uint32_t)(to - e->file_offset), first, last};
}

static int order_of(const stic_extent *a, const stic_extent *b) {
  return a->block != b->block ? a->block - b->block : a->level - b->level;
}

/* Move the records that are kept of `from` to their place in `to`, if that is to the left, or else if to the right. */
static void move(const stic_io *io, const stic_extent *from, const stic_extent *to, stic_present kept, bool left) {
  if (kept.first == kept.last) return;
  const uint64_t begin = record_of(io->package, to, kept.first)->offset;
  const size_t bytes = (size_t)(end_of(record_of(io->package, to, kept.last - 1)) - begin);
  const uint64_t source = from->destination + (begin - from->file_offset);
  const uint64_t target = to->destination + (begin - to->file_offset);
  if (left ? target < source : target > source) memmove(io->arena + target, io->arena + source, bytes);
}

/* Extents and their destinations ascend under both plans. In ascending order, one that goes left lands before the
 * sources of all later ones, and behind the targets of all earlier ones; what of these is still to go right lies before
 * its target. So this pass overwrites nothing that is still to be moved, and nor does its mirror image, the pass in
 * descending order that moves what goes right. */
void stic_io_replan(stic_io *io, const stic_extent *from, uint32_t count) {
  const stic_package *p = io->package;
  const uint32_t now = p->plan.resident_extents;
  for (uint32_t i = 0, j = 0; i < now; i++) {
    const stic_extent *to = &p->extents[i];
    while (j < count && order_of(&from[j], to) < 0) j++;
    const bool both = j < count && order_of(&from[j], to) == 0;
    io->spare[i] = both ? kept_of(p, to, io->present[j]) : (stic_present){0, 0, 0, 0};
    if (both) move(io, &from[j], to, io->spare[i], true);
  }
  for (uint32_t i = now, j = count; i-- > 0;) {
    const stic_extent *to = &p->extents[i];
    while (j > 0 && order_of(&from[j - 1], to) > 0) j--;
    if (j > 0 && order_of(&from[j - 1], to) == 0) move(io, &from[j - 1], to, io->spare[i], false);
  }
  stic_present *before = io->present;
  io->present = io->spare;
  io->spare = before;
  stic_io_sort_resident(io);
}
