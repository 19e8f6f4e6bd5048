/* libFuzzer harness for the package reader: the input is index.bin, and what is left over is one record.
 *
 *   clang -g -O1 -std=c11 -fsanitize=fuzzer,address,undefined -Iruntime/src tests/runtime/fuzz_package.c \
 *         runtime/src/{package,package_model,package_memory,package_extents,package_plans,package_gpu,record,tied,trunk,crc,error}.c -pthread -o fuzz
 *   ./fuzz CORPUS
 *
 * The checksum is set right, so that the checks behind it are reached. An index that is accepted must then bear what
 * the engine does with it: walking its tables, checking a record, and reading that record's outliers. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "crc.h"
#include "package.h"
#include "tied.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the engine does with each planned shard: find its record and where an extent puts it. */
static void walk_plan(const stic_package *p) {
  volatile uint64_t sum = 0;
  for (uint32_t b = 0; b < p->header->blocks; b++)
    for (uint32_t s = 0; s < p->kept[b].slices; s++) {
      uint32_t level, last;
      for (stic_levels_of(p, stic_bits(p, b, s), &level, &last); level <= last; level++)
        sum += p->records[stic_record_index(p, b, level, s)].offset;
    }
  for (uint32_t i = 0; i < p->plan.extents; i++) sum += p->extents[i].destination;
  for (uint32_t l = 0; p->gpu && l < p->header->blocks; l++) sum += p->places[l];
  for (uint32_t i = 0; p->gpu && i < p->gpu->launches; i++)
    sum += strlen(p->launches[i].name) + p->launches[i].local[0];
  for (uint32_t r = 0; p->gpu && r < STIC_GPU_REGIONS; r++) sum += p->state[r].offset;
}

/* Where rows of the vocabulary are that serve as embedding. */
static void walk_rows(const stic_package *p) {
  const uint32_t last = p->model->vocabulary - 1, ids[] = {0, last / 2, last};
  for (uint32_t i = 0; stic_tied(p) && i < sizeof ids / sizeof *ids; i++) {
    const stic_tied_row row = stic_tied_find(p, (int32_t)ids[i]);
    for (uint32_t part = 0; part < row.parts; part++)
      if (row.part[part].at + (uint64_t)row.part[part].bytes > p->records[row.part[part].record].bytes) abort();
  }
}

/* The same under every plan, and choosing one. */
static void walk(stic_package *p) {
  stic_error error;
  for (uint32_t number = 0; number < p->header->plans; number++) {
    stic_package_select(p, number);
    walk_plan(p);
    walk_rows(p);
  }
  uint32_t number = 0;
  if (!stic_package_choose(p, p->plan.deadline_us, p->plan.claimed_bytes, &number, &error) &&
      number >= p->header->plans)
    abort();
}

static void try_record(const stic_package *p, const uint8_t *data, size_t size) {
  stic_error error;
  const uint32_t block = size % p->header->blocks;
  const stic_cut *cut = stic_cut_of(p, block);
  uint32_t leading = 0; /* matrix */
  while (!cut->rows[leading]) leading++;
  for (uint32_t level = 0; level < STIC_LEVELS; level++) {
    const stic_layout *layout = &cut->layouts[level];
    if (layout->end == 0 || layout->end > 1 << 20) continue;
    const size_t whole = layout->end + (layout->has_outliers ? size / STIC_ALIGN * STIC_ALIGN : 0);
    uint8_t *record = aligned_alloc(STIC_ALIGN, whole);
    if (!record) continue;
    memset(record, 0, whole);
    memcpy(record + layout->end, data, whole - layout->end);
    /* The input's bytes also stand where block starts are, so that their checks see something. */
    const size_t starts = layout->has_outliers ? layout->end - layout->blocks_at[leading] : 0;
    if (starts) memcpy(record + layout->blocks_at[leading], data, starts < size ? starts : size);
    if (!stic_record_check(p, block, level, record, (uint32_t)whole, &error) && layout->has_outliers) {
      volatile uint32_t sum = 0;
      for (uint32_t m = 0; m < STIC_MATRICES; m++) {
        if (!cut->rows[m]) continue;
        const uint16_t *entries;
        const uint32_t *blocks = stic_record_outliers(cut, level, record, m, &entries);
        for (uint32_t i = 0; i < blocks[cut->rows[m] / STIC_TILE]; i++) sum += entries[2 * i];
      }
    }
    free(record);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  stic_header header;
  stic_error error;
  stic_package package;
  if (size < sizeof header) return 0;
  memcpy(&header, data, sizeof header);
  const size_t index_bytes =
      header.index_bytes < size && header.index_bytes >= sizeof header ? header.index_bytes : size;
  uint8_t *index = malloc(index_bytes); /* of exactly this size, so that one byte too far is seen */
  if (!index) return 0;
  memcpy(index, data, index_bytes);
  header.index_bytes = (uint32_t)index_bytes;
  header.index_crc = 0;
  memcpy(index, &header, sizeof header);
  header.index_crc = stic_crc32(0, index, index_bytes);
  memcpy(index, &header, sizeof header);
  if (!stic_package_parse(index, index_bytes, &package, &error)) {
    walk(&package);
    try_record(&package, data + index_bytes, size - index_bytes);
  }
  free(index);
  return 0;
}
