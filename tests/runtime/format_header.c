/* Prints what the engine's headers and sources say of the format, for a test to compare with Python.
 *
 *     format_header            one fact a line: a name, then numbers. Enumerators and fields are those of facts.inc,
 *                              which the test writes from format.h and from Python's structures
 *     format_header shapes     for each line of numbers on standard input, an engine's sizes of that model, in a line */
#include <stdio.h>
#include <string.h>

/* What these keep to themselves is compared as well. */
#include "kernels.c"
#include "package.c"
#include "package_memory.c"
#include "package_model.c"
#define place_tables place_gpu_tables
#include "package_gpu.c"

#include "gpu.h"
#include "io.h"

/* 0: neither a number nor one of them, but an array or a structure */
#define KIND(number) \
  _Generic((number), uint16_t: 'u', uint32_t: 'u', uint64_t: 'u', int32_t: 'i', float: 'f', double: 'f', default: 0)
#define NUMBER(name) printf("%s %lld\n", #name, (long long)(name));
#define FIELD(structure, name) \
  printf("%s.%s %zu %zu %d\n", #structure, #name, offsetof(structure, name), sizeof(((structure *)0)->name), \
         KIND(((structure *)0)->name));
#define STRUCTURE(name) printf("%s %zu\n", #name, sizeof(name));

static void print_limits(const char *structure, const stic_limit *of, size_t count) {
  for (size_t i = 0; i < count; i++) printf("limit.%s.%s %u %u\n", structure, of[i].name, of[i].least, of[i].most);
}

static void print_facts(void) {
#include "facts.inc"
  printf("lane_stack_bytes %d\n", STIC_LANE_STACK_BYTES);
  NUMBER(MOST_LAUNCHES)
  printf("codes_bytes %zu\n", STIC_CODES_ENTRY * sizeof *((stic_gpu *)0)->entries);
  for (uint32_t level = 0; level < STIC_FULL; level++) printf("level_bits.%u %u\n", level, stic_bits_of_level(level));
  print_limits("header", limits, sizeof limits / sizeof *limits);
  print_limits("model", of_model, sizeof of_model / sizeof *of_model);
  print_limits("shape", of_shape, sizeof of_shape / sizeof *of_shape);
  for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) printf("machine.%s %zu\n", machines[i], i);
}

static void print_levels(const stic_package *p) {
  for (uint32_t bits = 2; bits <= 8; bits++) {
    uint32_t first, last;
    stic_levels_of(p, bits, &first, &last);
    printf(" %u %u", first, last);
  }
}

static void print_layouts(const stic_package *p, const stic_cut *cut) {
  for (uint32_t level = 0; level < STIC_LEVELS; level++) {
    const stic_layout *layout = &cut->layouts[level];
    if (level == STIC_FULL && !p->header->full_bits) continue;
    printf(" %u", layout->planes);
    for (uint32_t m = 0; m < STIC_MATRICES; m++) {
      if (!cut->rows[m]) continue;
      printf(" %u %u", cut->rows[m], cut->columns[m]);
      for (uint32_t plane = 0; plane < layout->planes; plane++)
        printf(" %u", layout->plane_at[m] + plane * stic_plane_bytes(cut, m));
      if (level != STIC_FULL) printf(" %u", layout->table_at[m]);
      if (layout->has_outliers) printf(" %u", layout->blocks_at[m]);
      if (layout->has_ratios) printf(" %u", layout->ratios_at[m]);
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

enum { OF_MODEL = 15, OF_SHAPE = 8, MOST_GIVEN = 4 };

static void scan(uint32_t *numbers, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    if (scanf("%u", &numbers[i]) != 1) numbers[i] = 0;
}

/* A model's numbers, the number of its blocks, and a shape of each. */
static bool print_sizes(void) {
  uint32_t g[OF_MODEL], count, scores_tiles, storage_bits;
  if (scanf("%u %u %u", &count, &storage_bits, &scores_tiles) != 3 || count > MOST_GIVEN) return false;
  scan(g, OF_MODEL);
  const stic_model model = {.hidden = g[0],
                            .max_length = g[1],
                            .chunk = g[2],
                            .causal = g[3],
                            .pooling = g[4],
                            .output_features = g[5],
                            .cache = g[3] ? 1 + g[4] : 0,
                            .rotaries = g[3],
                            .rotary_features = g[3] * 8};
  stic_shape shapes[MOST_GIVEN];
  stic_block blocks[MOST_GIVEN] = {0};
  for (uint32_t i = 0; i < count; i++) {
    scan((uint32_t *)&shapes[i], OF_SHAPE);
    blocks[i].shape = i;
  }
  const stic_header header = {.blocks = count,
                              .shapes = count,
                              .threads = g[6],
                              .lanes = g[7],
                              .row_lanes = g[8],
                              .row_stride = g[9],
                              .nested = g[10],
                              .full_bits = g[11],
                              .group = g[3] ? STIC_GROUP : 0,
                              .dense = g[12] ? 1 : 0,
                              .table_resident = g[13] ? 1 : 0};
  const stic_dense dense = {.rows = g[12], .columns = g[0]};
  const stic_file embeddings = {.bytes = g[13]}, trunk = {.bytes = g[14]};
  static stic_package package;
  stic_error error;
  package = (stic_package){.header = &header,
                           .model = &model,
                           .shapes = shapes,
                           .blocks = blocks,
                           .dense = &dense,
                           .embeddings = &embeddings,
                           .trunk = &trunk};
  lay_out(&package);
  for (uint32_t i = 0; i < count; i++) {
    if (check_shape(&package, i, &error)) printf("(%s)", error.text);
    package.first_slice[i + 1] = package.first_slice[i] + shapes[i].slices;
    package.kept[i].slices = (uint16_t)shapes[i].slices;
  }
  uint64_t bytes[STIC_REGIONS];
  needs(&package, false, bytes);
  printf("%llu", (unsigned long long)stic_scratch_bytes(&package));
  for (uint32_t r = 0; r < STIC_REGIONS; r++) printf(" %llu", (unsigned long long)bytes[r]);
  print_levels(&package);
  for (uint32_t i = 0; i < count; i++) print_layouts(&package, &package.cuts[i]);
  if (!model.causal) print_state(package, storage_bits, scores_tiles);
  printf("\n");
  return true;
}

int main(int count, char **arguments) {
  (void)arguments;
  if (count == 1) print_facts();
  while (count > 1 && print_sizes()) continue;
  return 0;
}
