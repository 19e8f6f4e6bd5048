/* The table by which a kernel finds the parts of a slice's records, 12 numbers for each of its matrices:
 *
 *     0-7  planes, most significant first (full precision: 0 is the weight)
 *     8    table of codes        9   first outlier of each block of rows
 *     10   outliers              11  0
 *
 * All are byte offsets into the weights' object. Only where outliers start depends on what a record holds: the plan does
 * not know how many each matrix has. */
#include <string.h>

#include "gpu.h"
#include "io.h"

enum { TABLE = 8, STARTS = 9, OUTLIERS = 10 };

static uint32_t *entry_of(const stic_gpu *gpu, uint32_t layer, uint32_t matrix, uint32_t slice) {
  const uint32_t slices = gpu->package->most_slices;
  return gpu->entries + (size_t)STIC_CODES_ENTRY * ((layer * STIC_LAYER_MATRICES + matrix) * slices + slice);
}

static uint32_t record_offset(const stic_gpu *gpu, uint32_t layer, uint32_t level, uint32_t slice) {
  return gpu->shift + (uint32_t)gpu->record_at[stic_record_index(gpu->package, layer, level, slice)];
}

static void place_slice(stic_gpu *gpu, uint32_t layer, uint32_t slice) {
  const stic_package *p = gpu->package;
  const stic_cut *cut = stic_cut_of(p, layer);
  uint32_t first, last;
  stic_levels_of(p, stic_bits(p, layer, slice), &first, &last);
  for (uint32_t m = 0; m < STIC_LAYER_MATRICES; m++) {
    uint32_t *entry = entry_of(gpu, layer, m, slice), plane = 0;
    for (uint32_t level = first; level <= last; level++)
      for (uint32_t i = 0; i < cut->layouts[level].planes; i++)
        entry[plane++] =
            record_offset(gpu, layer, level, slice) + cut->layouts[level].plane_at[m] + i * stic_plane_bytes(cut, m);
    if (last == STIC_FULL) continue;
    entry[TABLE] = record_offset(gpu, layer, last, slice) + cut->layouts[last].table_at[m];
    entry[STARTS] = record_offset(gpu, layer, first, slice) + cut->layouts[first].blocks_at[m];
  }
}

void stic_gpu_place_codes(stic_gpu *gpu) {
  const stic_package *p = gpu->package;
  for (uint32_t l = 0; l < p->header->blocks; l++) {
    for (uint32_t s = 0; p->places[l] == STIC_ON_GPU && s < p->kept[l].slices; s++) place_slice(gpu, l, s);
    atomic_store(&gpu->stale[l], 1);
  }
}

void stic_gpu_note_record(stic_gpu *gpu, const stic_extent *extent, uint32_t slice, const uint8_t *record) {
  const stic_package *p = gpu->package;
  const stic_cut *cut = stic_cut_of(p, extent->block);
  uint32_t first, last;
  /* An extent may hold more than the plan uses of it: then another level than the slice's own tells nothing. */
  if (slice >= p->kept[extent->block].slices || !cut->layouts[extent->level].has_outliers) return;
  stic_levels_of(p, stic_bits(p, extent->block, slice), &first, &last);
  if (extent->level != first) return;
  for (uint32_t m = 0; m < STIC_LAYER_MATRICES; m++) {
    const uint16_t *outliers;
    stic_record_outliers(cut, first, record, m, &outliers);
    entry_of(gpu, extent->block, m, slice)[OUTLIERS] =
        record_offset(gpu, extent->block, first, slice) + (uint32_t)((const uint8_t *)outliers - record);
  }
  atomic_store(&gpu->stale[extent->block], 1);
}

stic_status stic_gpu_write_codes(stic_gpu *gpu, uint32_t layer, stic_error *error) {
  if (!atomic_exchange(&gpu->stale[layer], 0)) return STIC_OK;
  const uint32_t *from = entry_of(gpu, layer, 0, 0);
  const size_t bytes = (size_t)STIC_LAYER_MATRICES * gpu->package->most_slices * STIC_CODES_ENTRY * sizeof *from;
  /* Entries of a layer change only when it is read again, which no run does before it has ended. */
  return STIC_CL(gpu, EnqueueWriteBuffer(gpu->queue, gpu->codes, 0, layer * bytes, bytes, from, 0, NULL, NULL));
}
