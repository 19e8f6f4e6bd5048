/* Prints what the engine's headers and sources say of the format, for a test to compare with Python.
 *
 *     format_header            one fact a line: a name, then numbers. Enumerators and fields are those of facts.inc,
 *                              which the test writes from format.h and from Python's structures
 *     format_header shapes     for each line of numbers on standard input, an engine's sizes of that shape, in a line */
#include <stdio.h>
#include <string.h>

/* What these keep to themselves is compared as well. */
#include "kernels.c"
#include "package.c"
#include "package_memory.c"
#define place_tables place_gpu_tables
#include "package_gpu.c"

#include "gpu.h"
#include "io.h"

/* 0: neither a number nor one of them, but an array or a structure */
#define KIND(number) \
  _Generic((number), uint16_t: 'u', uint32_t: 'u', uint64_t: 'u', int32_t: 'i', double: 'f', default: 0)
#define NUMBER(name) printf("%s %lld\n", #name, (long long)(name));
#define FIELD(structure, name) \
  printf("%s.%s %zu %zu %d\n", #structure, #name, offsetof(structure, name), sizeof(((structure *)0)->name), \
         KIND(((structure *)0)->name));
#define STRUCTURE(name) printf("%s %zu\n", #name, sizeof(name));

static void print_facts(void) {
#include "facts.inc"
  printf("lane_stack_bytes %d\n", STIC_LANE_STACK_BYTES);
  NUMBER(MOST_LAUNCHES)
  printf("codes_bytes %zu\n", STIC_CODES_ENTRY * sizeof *((stic_gpu *)0)->entries);
  for (uint32_t level = 0; level < STIC_FULL; level++) printf("level_bits.%u %u\n", level, stic_bits_of_level(level));
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
    printf("limit.%s %u %u\n", limits[i].name, limits[i].least, limits[i].most);
  for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
    printf("architecture.%s %zu\n", architectures[i], i);
}

static void print_levels(const stic_package *p) {
  for (uint32_t bits = 2; bits <= 8; bits++) {
    uint32_t first, last;
    stic_levels_of(p, bits, &first, &last);
    printf(" %u %u", first, last);
  }
  for (uint32_t level = 0; level < STIC_LEVELS; level++) {
    const stic_layout *layout = &p->layouts[level];
    if (level == STIC_FULL && !p->header->full_bits) continue;
    printf(" %u", layout->planes);
    for (int m = 0; m < STIC_MATRICES; m++) {
      for (uint32_t plane = 0; plane < layout->planes; plane++) printf(" %u", layout->plane_at[m][plane]);
      if (level != STIC_FULL) printf(" %u", layout->table_at[m]);
      if (layout->has_outliers) printf(" %u", layout->blocks_at[m]);
    }
    printf(" %u", layout->end);
  }
}

/* What check_state says that each region of the GPU's state needs: given nothing, it asks for that. */
static void print_state(stic_package p, uint32_t storage_bits, uint32_t scores_tiles) {
  const stic_gpu_part gpu = {.storage_bits = storage_bits, .scores_tiles = scores_tiles, .state_bytes = 1ull << 40};
  stic_region state[STIC_GPU_REGIONS] = {0};
  uint64_t at = 0;
  p.gpu = &gpu;
  p.state = state;
  for (uint32_t r = 0; r < STIC_GPU_REGIONS; r++) {
    stic_error error;
    unsigned region;
    unsigned long long had, needed;
    if (!check_state(&p, &error) ||
        sscanf(error.text, "index.bin: GPU region %u has %llu bytes and needs %llu", &region, &had, &needed) != 3 ||
        region != r) {
      printf(" (of region %u: %s)", r, error.text);
      return;
    }
    printf(" %llu", needed);
    state[r] = (stic_region){at, needed};
    at += stic_pad(needed, STIC_BLOCK);
  }
}

static void print_sizes(const uint32_t *given) {
  const stic_header header = {.hidden = given[0],
                              .heads_per_slice = given[1],
                              .head_dim = given[2],
                              .neurons_per_slice = given[3],
                              .slices = given[4],
                              .max_length = given[5],
                              .threads = given[6],
                              .lanes = given[7],
                              .row_lanes = given[8],
                              .row_stride = given[9],
                              .nested = given[10],
                              .full_bits = given[11],
                              .pooling = given[12],
                              .output_features = given[13],
                              .dense = given[14] ? 1 : 0,
                              .table_resident = given[15] ? 1 : 0};
  const stic_dense dense = {.rows = given[14], .columns = given[0]};
  const stic_file embeddings = {.bytes = given[15]}, trunk = {.bytes = given[16]};
  stic_package package = {.header = &header, .dense = &dense, .embeddings = &embeddings, .trunk = &trunk};
  package.most_slices = given[4];
  lay_out(&package);
  uint64_t bytes[STIC_REGIONS];
  needs(&package, given[4], bytes);
  printf("%llu", (unsigned long long)stic_scratch_bytes(&package));
  for (uint32_t r = 0; r < STIC_REGIONS; r++) printf(" %llu", (unsigned long long)bytes[r]);
  print_levels(&package);
  print_state(package, given[17], given[18]);
  printf("\n");
}

int main(int count, char **arguments) {
  enum { GIVEN = 19 };
  uint32_t given[GIVEN];
  (void)arguments;
  if (count == 1) print_facts();
  for (uint32_t i = 0; count > 1 && scanf("%u", &given[i]) == 1;) {
    i = (i + 1) % GIVEN;
    if (i == 0) print_sizes(given);
  }
  return 0;
}
