/* A package's index, parsed: every number in it has been bounded, so that the rest of the engine need not doubt it. */
#ifndef STIC_PACKAGE_H
#define STIC_PACKAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "format.h"

/* Where the parts of a record of one level are, by matrix. */
typedef struct stic_layout {
  uint32_t planes;         /* of this level, in each matrix */
  uint32_t plane_at[4][8]; /* [0] is the weight at full precision */
  uint32_t table_at[4];
  uint32_t blocks_at[4]; /* where `has_outliers` */
  uint32_t end;          /* the record's size without outliers; they start here */
  bool has_outliers;
} stic_layout;

enum { STIC_MOST_LANES = 16, STIC_MOST_LAYERS = 256, STIC_MOST_PLANS = 64, STIC_MOST_EXTENTS = 1 << 20 };

typedef struct stic_package {
  const uint8_t *index; /* index.bin, not owned; the tables point into it */
  const stic_header *header;
  const stic_file *files;
  const stic_layer *layers;   /* where each is in the trunk; what is kept of it says `kept` */
  const stic_record *records; /* (layers, STIC_LEVELS, slices) */
  const stic_dense *dense;
  const stic_region *region_table;
  const stic_plan_entry *family;                          /* NULL: the header's plan is the only one */
  uint32_t plans;                                         /* at least 1 */
  const stic_file *trunk, *embeddings, *shards, *kernels; /* entries of `files` */
  const stic_gpu_part *gpu; /* NULL: no layer is placed on a GPU, and what follows is not set */
  const stic_file *program; /* kernels.cl */
  const stic_launch *launches;
  const uint8_t *places;    /* (layers) STIC_ON_CPU or STIC_ON_GPU */
  const stic_region *state; /* (STIC_GPU_REGIONS) in the state buffer */
  /* What the plan that is selected says. */
  uint32_t number;
  stic_plan_entry plan;
  const uint8_t *bits; /* (layers, slices) */
  const stic_extent *extents;
  stic_region regions[STIC_REGIONS];
  struct stic_kept {
    uint32_t slices, full; /* kept, and of them at full precision; 0, 0: the layer is left out */
  } kept[STIC_MOST_LAYERS];
  uint32_t most_slices; /* kept of any layer */

  uint32_t padded_hidden;       /* HP */
  uint32_t attention_width;     /* A */
  uint32_t ffn_width;           /* FP */
  uint32_t tiles;               /* of the longest input */
  uint32_t row_lanes;           /* IO lanes that read embedding rows */
  uint32_t staging_bytes;       /* each one's buffer for a row read */
  uint32_t rows[4], columns[4]; /* of the matrices of a shard */
  stic_layout layouts[STIC_LEVELS];
} stic_package;

static inline uint64_t stic_pad(uint64_t n, uint64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

static inline uint32_t stic_bits(const stic_package *p, uint32_t layer, uint32_t slice) {
  return p->bits[layer * p->header->slices + slice];
}

static inline uint32_t stic_record_index(const stic_package *p, uint32_t layer, uint32_t level, uint32_t slice) {
  return (layer * STIC_LEVELS + level) * p->header->slices + slice;
}

/* Levels first..last that a shard at `bits` reads. */
static inline void stic_levels_of(const stic_package *p, uint32_t bits, uint32_t *first, uint32_t *last) {
  *last = bits > 8 ? STIC_FULL : bits - 2;
  *first = bits > 8 || !p->header->nested ? *last : 0;
}

static inline uint32_t stic_bits_of_level(uint32_t level) { return level + 2; }

/* Floats at the start of a thread's share of region `scratch` in which outliers are summed; zero between blocks. */
static inline uint64_t stic_extra_floats(const stic_package *p) { return (uint64_t)p->tiles * STIC_TILE * STIC_TILE; }

/* A thread's share of region `scratch`: those, then what attention keeps for T keys and D features of a head, padded. */
static inline uint64_t stic_scratch_bytes(const stic_package *p) {
  const uint64_t keys = (uint64_t)p->tiles * STIC_TILE, width = stic_pad(p->header->head_dim, STIC_TILE);
  return 4 * (stic_extra_floats(p) + keys * (STIC_TILE + 1) + 2 * width) + 2 * keys * width +
         STIC_TILE * (keys + width);
}

/* Parse index.bin, `size` bytes that must outlive the result, and select its first plan. Reads nothing else; changes
 * nothing but *package. */
stic_status stic_package_parse(const void *index, size_t size, stic_package *package, stic_error *error);

/* Part of parsing (package_extents.c): every planned record is read exactly once, into its place, and the order of
 * loading can neither overwrite bytes in use nor wait for itself. */
stic_status stic_package_check_extents(const stic_package *package, stic_error *error);

/* Part of parsing (package_memory.c): the regions hold what will be written to them, and what is trusted after it was
 * checked shares no byte with anything else. */
stic_status stic_package_check_memory(const stic_package *package, stic_error *error);

/* A plan of the package, of which there is one even without a family; and to have the package say what is so under it
 * (package_plans.c). */
stic_plan_entry stic_package_plan(const stic_package *package, uint32_t number);
void stic_package_select(stic_package *package, uint32_t number);

/* The best plan among those that a deadline and memory allow, where 0 is no limit. STIC_NO_PLAN if there is none. */
stic_status stic_package_choose(const stic_package *package, uint32_t deadline_us, uint64_t memory_bytes,
                                uint32_t *number, stic_error *error);

/* Part of parsing (package_plans.c). The first checks the table of plans by itself, without other tables. The second
 * checks that the selected plan agrees with the others in what all plans share. */
stic_status stic_package_check_plans(const stic_package *package, stic_error *error);
stic_status stic_package_check_family(const stic_package *package, stic_error *error);

/* Part of parsing (package_gpu.c): the GPU part's tables, launches and state regions are sound. */
stic_status stic_package_check_gpu(stic_package *package, stic_error *error);

/* Bytes of regions `preload` and `working`, which a GPU reads as one stretch that starts the arena. */
static inline uint64_t stic_weights_bytes(const stic_package *p) {
  return stic_pad(p->regions[STIC_REGION_PRELOAD].bytes, STIC_BLOCK) +
         stic_pad(p->regions[STIC_REGION_WORKING].bytes, STIC_BLOCK);
}

/* Check the inside of a record whose CRC holds: code tables, outliers, finite weights. `size` is the record's. */
stic_status stic_record_check(const stic_package *package, uint32_t level, const uint8_t *record, uint32_t size,
                              stic_error *error);

/* Bytes of an embedding row that its CRC, which follows them, covers. */
static inline uint64_t stic_row_checked(const stic_header *h) {
  return h->row_type == STIC_ROW_FLOAT16 ? stic_pad(2 * (uint64_t)h->hidden, 4) : stic_pad(h->hidden, 4) + 4;
}

/* Check the row of a token in embeddings.bin. */
stic_status stic_row_check(const stic_package *package, const uint8_t *row, int32_t id, stic_error *error);

/* The outliers of one matrix in a record that was checked: its block starts and its entries (position, fp16 bits). */
const uint32_t *stic_record_outliers(const stic_package *package, uint32_t level, const uint8_t *record,
                                     uint32_t matrix, const uint16_t **entries);

/* Whether so many floats of 16 or 32 bits are numbers. */
bool stic_finite(const void *numbers, uint64_t count, uint32_t bits);

/* The tensors of trunk.bin (trunk.c): each lies inside of it; and, in the file's contents, are finite numbers. */
stic_status stic_trunk_check_places(const stic_package *package, stic_error *error);
stic_status stic_trunk_check(const stic_package *package, const uint8_t *trunk, stic_error *error);

/* One check of a package. `name` is that of the same check in Python: tests compare the names, and see in the error
 * which one failed. */
#define STIC_REQUIRE(name, condition, ...) \
  do { \
    if (!(condition)) { \
      error->check = #name; \
      return stic_fail(error, STIC_PACKAGE_CORRUPT, __VA_ARGS__); \
    } \
  } while (0)

#endif
