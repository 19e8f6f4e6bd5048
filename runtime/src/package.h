/* A package's index, parsed: every number in it has been bounded, so that the rest of the engine need not doubt it. */
#ifndef STIC_PACKAGE_H
#define STIC_PACKAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "format.h"

enum {
  STIC_MOST_LANES = 16,
  STIC_MOST_SHAPES = 32,
  STIC_MOST_BLOCKS = 512,
  STIC_MOST_PLANS = 64,
  STIC_MOST_EXTENTS = 1 << 20
};

/* Where the parts of a record of one shape and level are, by matrix; 0 of a matrix that the shape does not have. */
typedef struct stic_layout {
  uint32_t planes;                  /* of this level, in each matrix, stic_plane_bytes apart */
  uint32_t plane_at[STIC_MATRICES]; /* the weight at full precision */
  uint32_t table_at[STIC_MATRICES];
  uint32_t blocks_at[STIC_MATRICES]; /* where `has_outliers` */
  uint32_t ratios_at[STIC_MATRICES]; /* where `has_ratios` */
  uint32_t end;                      /* the record's size without outliers; they start here */
  bool has_outliers, has_ratios;
} stic_layout;

/* A shape, with what follows from it. Matrices that its kind does not have are of 0 rows and columns. */
typedef struct stic_cut {
  stic_shape entry;
  uint32_t attention_width, key_width; /* A, C */
  uint32_t ffn_width;                  /* F */
  uint32_t rows[STIC_MATRICES], columns[STIC_MATRICES];
  stic_layout layouts[STIC_LEVELS];
} stic_cut;

typedef struct stic_package {
  const uint8_t *index; /* index.bin, not owned; the tables point into it */
  const stic_header *header;
  const stic_model *model;
  const stic_file *files;
  const stic_shape *shapes;   /* see `cuts` */
  const stic_block *blocks;   /* what is kept of each says `kept` */
  const stic_record *records; /* of each block (STIC_LEVELS, slices): see stic_record_index */
  const stic_dense *dense;
  const stic_region *region_table; /* of all regions but the weights' */
  const stic_plan_entry *plans;
  const stic_file *trunk, *embeddings, *shards, *kernels; /* entries of `files` */
  const stic_gpu_part *gpu; /* NULL: no block is placed on a GPU, and what follows is not set */
  const stic_file *program; /* kernels.cl */
  const stic_launch *launches;
  const uint8_t *places;    /* (blocks) STIC_ON_CPU or STIC_ON_GPU */
  const stic_region *state; /* (STIC_GPU_REGIONS) in the state buffer */
  /* What the plan that is selected says. */
  uint32_t number;
  stic_plan_entry plan;
  const uint8_t *bits; /* of each block (slices): see stic_bits */
  const stic_extent *extents;
  stic_region regions[STIC_REGIONS];
  struct stic_kept {
    uint16_t slices, full; /* kept, and of them at full precision; 0, 0: the block is left out */
  } kept[STIC_MOST_BLOCKS];

  stic_cut cuts[STIC_MOST_SHAPES];            /* of table SHAPE */
  uint32_t first_slice[STIC_MOST_BLOCKS + 1]; /* slices of the blocks before; the last of all */
  uint32_t most_slices;                       /* of any block */
  uint32_t widest_head;                       /* head_dim of any shape */
  uint32_t padded_hidden;                     /* HP */
  uint32_t tiles;                             /* of what is computed at once */
  uint32_t row_lanes;                         /* IO lanes that read embedding rows */
  uint32_t staging_bytes;                     /* each one's buffer for what it reads of a row */
} stic_package;

static inline uint64_t stic_pad(uint64_t n, uint64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* How a block is cut. */
static inline const stic_cut *stic_cut_of(const stic_package *p, uint32_t block) {
  return &p->cuts[p->blocks[block].shape];
}

static inline uint32_t stic_slices(const stic_package *p, uint32_t block) {
  return p->first_slice[block + 1] - p->first_slice[block];
}

static inline uint32_t stic_bits(const stic_package *p, uint32_t block, uint32_t slice) {
  return p->bits[p->first_slice[block] + slice];
}

/* Records of all blocks. */
static inline uint32_t stic_records(const stic_package *p) { return STIC_LEVELS * p->first_slice[p->header->blocks]; }

static inline uint32_t stic_record_index(const stic_package *p, uint32_t block, uint32_t level, uint32_t slice) {
  return p->first_slice[block] * STIC_LEVELS + level * stic_slices(p, block) + slice;
}

/* Bytes between the planes of a matrix in a record. */
static inline uint32_t stic_plane_bytes(const stic_cut *cut, uint32_t matrix) {
  return (uint32_t)stic_pad((uint64_t)cut->rows[matrix] * cut->columns[matrix] / 8, STIC_ALIGN);
}

/* Groups of so many columns. */
static inline uint32_t stic_groups(uint32_t columns) { return (columns + STIC_GROUP - 1) / STIC_GROUP; }

/* Levels first..last that a shard at `bits` reads. */
static inline void stic_levels_of(const stic_package *p, uint32_t bits, uint32_t *first, uint32_t *last) {
  *last = bits > 8 ? STIC_FULL : bits - 2;
  *first = bits > 8 || !p->header->nested ? *last : 0;
}

static inline uint32_t stic_bits_of_level(uint32_t level) { return level + 2; }

/* Floats at the start of an encoder thread's share of region `scratch` in which outliers are summed; zero between
 * blocks of rows. */
static inline uint64_t stic_extra_floats(const stic_package *p) { return (uint64_t)p->tiles * STIC_TILE * STIC_TILE; }

/* A thread's share of region `scratch`, for the widest head: of an encoder those, then what attention keeps for T keys
 * and D features of a head, padded; of a decoder what attention over the cache keeps for 8 queries. */
static inline uint64_t stic_scratch_bytes(const stic_package *p) {
  const uint64_t keys = stic_pad(p->model->max_length, STIC_TILE), width = stic_pad(p->widest_head, STIC_TILE);
  if (p->model->causal) return 4 * 8 * (keys + STIC_TILE + width);
  return 4 * (stic_extra_floats(p) + keys * (STIC_TILE + 1) + 2 * width) + 2 * keys * width +
         STIC_TILE * (keys + width);
}

/* Where the parts of the cache of one key head are, from its start: keys (T / 16, head_dim, 16), values (T, D) for T
 * tokens and D features, padded; of int8 the scales (T) of both. */
typedef struct stic_cache_layout {
  uint64_t values_at, key_scales_at, value_scales_at, bytes;
} stic_cache_layout;

stic_cache_layout stic_cache_lay_out(const stic_model *model, uint32_t head_dim);

/* Parse index.bin, `size` bytes that must outlive the result, and select its first plan. Reads nothing else; changes
 * nothing but *package. */
stic_status stic_package_parse(const void *index, size_t size, stic_package *package, stic_error *error);

/* Part of parsing (package_extents.c): every planned record is read exactly once, into its place, and the order of
 * loading can neither overwrite bytes in use nor wait for itself. */
stic_status stic_package_check_extents(const stic_package *package, stic_error *error);

/* Part of parsing (package_memory.c): the regions hold what will be written to them, and what is trusted after it was
 * checked shares no byte with anything else. */
stic_status stic_package_check_memory(const stic_package *package, stic_error *error);

/* Have the package say what is so under one of its plans (package_plans.c). */
void stic_package_select(stic_package *package, uint32_t number);

/* The best plan among those that a deadline and memory allow, where 0 is no limit. STIC_NO_PLAN if there is none. */
stic_status stic_package_choose(const stic_package *package, uint32_t deadline_us, uint64_t memory_bytes,
                                uint32_t *number, stic_error *error);

/* Least and most of a field, a uint32_t at a place in a structure; and the check of those of one (package.c). */
typedef struct stic_limit {
  size_t at;
  const char *name;
  uint32_t least, most;
} stic_limit;
stic_status stic_check_limits(const void *structure, const stic_limit *limits, size_t count, stic_error *error);

/* Part of parsing (package_model.c): what the model is, how its blocks are cut, and that both go together. Lays out what
 * follows from the tables. */
stic_status stic_package_check_model(stic_package *package, stic_error *error);

/* Part of parsing (package_plans.c). The first checks the table of plans by itself, without other tables. The second
 * checks that the selected plan, one of several, agrees with the others in what all plans share. */
stic_status stic_package_check_plans(const stic_package *package, stic_error *error);
stic_status stic_package_check_family(const stic_package *package, stic_error *error);

/* Part of parsing (package_gpu.c): the GPU part's tables, launches and state regions are sound. */
stic_status stic_package_check_gpu(stic_package *package, stic_error *error);

/* Bytes of regions `preload` and `working`, which a GPU reads as one stretch that starts the arena. */
static inline uint64_t stic_weights_bytes(const stic_package *p) {
  return stic_pad(p->regions[STIC_REGION_PRELOAD].bytes, STIC_BLOCK) +
         stic_pad(p->regions[STIC_REGION_WORKING].bytes, STIC_BLOCK);
}

/* Check the inside of a block's record whose CRC holds: code tables, outliers, finite weights. `size` is the record's. */
stic_status stic_record_check(const stic_package *package, uint32_t block, uint32_t level, const uint8_t *record,
                              uint32_t size, stic_error *error);

/* Whether embedding rows are those of the vocabulary block. */
static inline bool stic_tied(const stic_package *p) { return p->header->row_type == STIC_ROW_TIED; }

/* Bytes of an embedding row that its CRC, which follows them, covers. */
static inline uint64_t stic_row_checked(const stic_package *p) {
  const uint64_t hidden = p->model->hidden;
  return p->header->row_type == STIC_ROW_FLOAT16 ? stic_pad(2 * hidden, 4) : stic_pad(hidden, 4) + 4;
}

/* Check the row of a token in embeddings.bin. */
stic_status stic_row_check(const stic_package *package, const uint8_t *row, int32_t id, stic_error *error);

/* The outliers of one matrix in a record that was checked, of a shape and level: its block starts and its entries
 * (position, fp16 bits). */
const uint32_t *stic_record_outliers(const stic_cut *cut, uint32_t level, const uint8_t *record, uint32_t matrix,
                                     const uint16_t **entries);

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
