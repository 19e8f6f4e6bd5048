/* The package on disk: twin of runtime/format.py, whose docstring is the specification.
 * Structures are packed because the header's 64-bit fields are not aligned. Little-endian machines only. */
#ifndef STIC_FORMAT_H
#define STIC_FORMAT_H

#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "stic packages are little-endian, and so must the machine be"
#endif

#define STIC_PACKED __attribute__((packed))

enum {
  STIC_MAJOR = 3,
  STIC_MINOR = 1,
  STIC_BLOCK = 4096, /* alignment of everything read with O_DIRECT */
  STIC_ALIGN = 64,   /* alignment of everything a kernel loads from */
  STIC_TILE = 16,    /* tokens in a tile, rows in a block of rows */
  STIC_GROUP = 64,   /* columns that share a ratio in a store with groups */
  STIC_LEVELS = 8,
  STIC_FULL = 7,  /* level of full precision */
  STIC_ROLES = 22 /* tensors of a block in the trunk */
};

#define STIC_ABSENT UINT32_MAX /* offset of a tensor that a model does not have */

enum { STIC_LAYER, STIC_ATTENTION, STIC_FEED_FORWARD, STIC_VOCABULARY, STIC_KINDS };
enum { STIC_QKV, STIC_OUT, STIC_UP, STIC_DOWN, STIC_HEAD, STIC_MATRICES, STIC_LAYER_MATRICES = STIC_HEAD };
enum { STIC_X86_64, STIC_AARCH64, STIC_MACHINES };
enum { STIC_NO_CACHE, STIC_CACHE_FLOAT16, STIC_CACHE_INT8, STIC_CACHES };
enum { STIC_LAYER_NORM, STIC_RMS_NORM, STIC_NORMS };
/* Bits of stic_block.flags. */
enum { STIC_PARALLEL = 1, STIC_WHOLE_HEAD_NORM = 2, STIC_LAYER_HEAD_NORM = 4, STIC_FLAGS = 7 };
enum { STIC_LINEAR, STIC_GELU, STIC_GELU_TANH, STIC_RELU, STIC_TANH, STIC_ACTIVATIONS };
enum { STIC_MALI, STIC_ADRENO, STIC_GPU_STYLES };
enum { STIC_ON_CPU, STIC_ON_GPU, STIC_PLACES };
enum { STIC_POOL_TOKENS, STIC_POOL_FIRST, STIC_POOL_MEAN, STIC_POOLINGS };
enum { STIC_ROW_INT8, STIC_ROW_FLOAT16, STIC_ROW_TIED, STIC_ROW_TYPES };

/* Bits of stic_header.features. */
enum {
  STIC_HAS_AVX2,
  STIC_HAS_FMA,
  STIC_HAS_F16C,
  STIC_HAS_AVX512F,
  STIC_HAS_AVX512BW,
  STIC_HAS_AVX512VL,
  STIC_HAS_AVX512_VNNI,
  STIC_HAS_AVX512_VBMI,
  STIC_HAS_ASIMD,
  STIC_HAS_ASIMDDP,
  STIC_HAS_GFNI,
  STIC_HAS_AVX_VNNI,
  STIC_HAS_I8MM,
  STIC_FEATURES
};

/* Places in the arena. */
enum {
  STIC_REGION_TRUNK,
  STIC_REGION_PRELOAD,
  STIC_REGION_TABLE,
  STIC_REGION_WORKING,
  STIC_REGION_X,
  STIC_REGION_Y,
  STIC_REGION_QKV,
  STIC_REGION_CONTEXT,
  STIC_REGION_FFN,
  STIC_REGION_QUANTIZED,
  STIC_REGION_TOKEN_SCALE,
  STIC_REGION_TOKEN_SUM,
  STIC_REGION_PANEL,
  STIC_REGION_SCRATCH,
  STIC_REGION_ROWS,
  STIC_REGION_STAGING,
  STIC_REGION_IDS,
  STIC_REGION_TYPES,
  STIC_REGION_HEAD,
  STIC_REGION_OUTPUT,
  STIC_REGION_NORMED,
  STIC_REGION_TURNS,
  STIC_REGION_CACHE,
  STIC_REGION_LOGITS,
  STIC_REGIONS
};

/* Places in the GPU's state buffer. */
enum {
  STIC_GPU_X,
  STIC_GPU_Y,
  STIC_GPU_QKV,
  STIC_GPU_CONTEXT,
  STIC_GPU_FFN,
  STIC_GPU_QUANTIZED,
  STIC_GPU_TOKEN_SCALE,
  STIC_GPU_TOKEN_SUM,
  STIC_GPU_SCORES,
  STIC_GPU_ROWS,
  STIC_GPU_TYPES,
  STIC_GPU_REGIONS
};

typedef struct STIC_PACKED stic_header {
  char magic[8]; /* "STICPKG\0" */
  uint32_t major, minor;
  uint32_t index_bytes, index_crc;
  uint32_t machine, features;
  uint64_t cores;      /* bit i: compute threads should run on processor i; 0: on any */
  uint32_t interleave; /* columns of a row that lie together in a block of rows: 4 or 8 */
  uint32_t group;      /* 0 or STIC_GROUP */
  uint32_t nested, full_bits;
  uint32_t row_stride, row_type, table_resident; /* of embeddings.bin; 0 where rows are tied */
  uint32_t threads, lanes;
  uint32_t row_lanes; /* IO lanes that read embedding rows, `lanes` of which read extents; 0: as many */
  uint32_t request_bytes, stack_bytes;
  uint32_t model_at; /* in index.bin, from here on */
  uint32_t files_at, files;
  uint32_t shapes_at, shapes;
  uint32_t blocks_at, blocks;
  uint32_t records_at;
  uint32_t dense_at, dense;
  uint32_t regions_at;
  uint32_t plans_at, plans;
  uint32_t gpu_at; /* 0: no GPU part */
} stic_header;

typedef struct STIC_PACKED stic_model {
  uint32_t hidden, vocabulary;
  uint32_t max_length; /* tokens: longest input of an encoder, context of a decoder */
  uint32_t chunk;      /* tokens that are computed at once, at most */
  uint32_t causal;     /* 1: a decoder */
  uint32_t types;
  uint32_t padding; /* token id + 1 that positions skip; 0: none */
  uint32_t pooling, normalize, output_features;
  uint32_t norm, cache;
  uint32_t rotaries, rotary_features;
  float embedding_multiplier;
  uint32_t position_at, token_type_at, embedding_gamma_at, embedding_beta_at, rotary_at; /* in the trunk */
} stic_model;

typedef struct STIC_PACKED stic_file {
  char name[32];
  uint64_t bytes;
  uint32_t crc, reserved;
} stic_file;

typedef struct STIC_PACKED stic_shape {
  uint32_t kind, slices;
  uint32_t heads_per_slice, key_heads_per_slice, head_dim;
  uint32_t neurons_per_slice, gated;
  uint32_t rows_per_slice;
} stic_shape;

/* A linear map's place in the trunk, and a norm's. */
typedef struct STIC_PACKED stic_linear {
  uint32_t scale_at, bias_at;
} stic_linear;

typedef struct STIC_PACKED stic_norm {
  uint32_t gamma_at, beta_at;
} stic_norm;

typedef struct STIC_PACKED stic_block {
  uint32_t shape, flags;
  uint32_t window, rotary;
  float softcap;
  stic_linear matrix[STIC_MATRICES];
  stic_norm input, branch, post, attention;
  stic_norm query_norm, key_norm;
} stic_block;

typedef struct STIC_PACKED stic_record {
  uint64_t offset;
  uint32_t bytes, crc;
} stic_record;

typedef struct STIC_PACKED stic_extent {
  uint64_t file_offset, destination;
  uint32_t bytes;
  uint16_t block, level, first, count;
  int32_t wait_block;
} stic_extent;

typedef struct STIC_PACKED stic_dense {
  uint32_t rows, columns, activation, weight_at, bias_at, reserved;
} stic_dense;

typedef struct STIC_PACKED stic_region {
  uint64_t offset, bytes;
} stic_region;

typedef struct STIC_PACKED stic_plan_entry {
  uint32_t bits_at, extents_at, extents, resident_extents; /* in index.bin, and how long */
  uint32_t load_first, deadline_us, predicted_us, reserved;
  uint64_t arena_bytes, claimed_bytes;
  stic_region preload, working;
  double quality;
} stic_plan_entry;

typedef struct STIC_PACKED stic_gpu_part {
  uint32_t storage_bits, style, fallback;
  uint32_t launches_at, launches, places_at, state_at, scores_tiles; /* tables in index.bin */
  uint64_t state_bytes;
  uint32_t reserved[4];
} stic_gpu_part;

typedef struct STIC_PACKED stic_launch {
  char name[24];
  uint32_t local[3], group[3]; /* work-items, and units of work, of a work-group */
  uint32_t local_bytes, reserved;
} stic_launch;

_Static_assert(sizeof(stic_header) == 144, "HEADER");
_Static_assert(sizeof(stic_model) == 80, "MODEL");
_Static_assert(sizeof(stic_file) == 48, "FILE");
_Static_assert(sizeof(stic_shape) == 32, "SHAPE");
_Static_assert(sizeof(stic_block) == 108, "BLOCK_ENTRY");
_Static_assert(sizeof(stic_record) == 16, "RECORD");
_Static_assert(sizeof(stic_extent) == 32, "EXTENT");
_Static_assert(sizeof(stic_dense) == 24, "DENSE");
_Static_assert(sizeof(stic_region) == 16, "REGION");
_Static_assert(sizeof(stic_plan_entry) == 88, "PLAN");
_Static_assert(sizeof(stic_gpu_part) == 56, "GPU");
_Static_assert(sizeof(stic_launch) == 56, "LAUNCH");

#endif
