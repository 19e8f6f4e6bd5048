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
  STIC_MAJOR = 2,
  STIC_MINOR = 5,
  STIC_BLOCK = 4096, /* alignment of everything read with O_DIRECT */
  STIC_ALIGN = 64,   /* alignment of everything a kernel loads from */
  STIC_TILE = 16,    /* tokens in a tile, rows in a block */
  STIC_LEVELS = 8,
  STIC_FULL = 7, /* level of full precision */
  STIC_MATRICES = 4
};

enum { STIC_QKV, STIC_OUT, STIC_UP, STIC_DOWN };
enum { STIC_X86_64, STIC_AARCH64, STIC_ARCHITECTURES };
enum { STIC_LINEAR, STIC_GELU, STIC_GELU_TANH, STIC_RELU, STIC_TANH, STIC_ACTIVATIONS };
enum { STIC_MALI, STIC_ADRENO, STIC_GPU_STYLES };
enum { STIC_ON_CPU, STIC_ON_GPU, STIC_PLACES };
enum { STIC_POOL_TOKENS, STIC_POOL_FIRST, STIC_POOL_MEAN, STIC_POOLINGS };
enum { STIC_ROW_INT8, STIC_ROW_FLOAT16, STIC_ROW_TYPES };

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
  uint32_t architecture, features;
  uint32_t hidden, heads_per_slice, head_dim, slices, layers, neurons_per_slice;
  uint32_t vocabulary, max_length, types, row_stride;
  uint32_t nested, full_bits;
  uint32_t pooling, normalize, output_features;
  uint32_t threads, lanes, request_bytes, stack_bytes;
  uint32_t table_resident;
  uint32_t position_at, token_type_at, embedding_gamma_at, embedding_beta_at; /* in the trunk */
  uint32_t files_at, files;                                                   /* in index.bin, from here on */
  uint32_t layers_at, bits_at, records_at;
  uint32_t extents_at, extents, resident_extents;
  uint32_t dense_at, dense;
  uint32_t regions_at;
  uint64_t arena_bytes, claimed_bytes;
  uint32_t deadline_us, predicted_us;
  uint32_t load_first;      /* 1: read everything before computing anything */
  uint32_t interleave;      /* columns of a row that lie together in a block: 4 or 8 */
  uint64_t cores;           /* bit i: compute threads should run on processor i; 0: on any */
  uint32_t gpu_at;          /* in index.bin; 0: no GPU part */
  uint32_t plans_at, plans; /* in index.bin; 0: no plan family */
  uint32_t row_lanes;       /* IO lanes that read embedding rows, `lanes` of which read extents; 0: as many */
  uint32_t padding;         /* token id + 1 that positions skip; 0: none */
  uint32_t row_type;        /* of embedding rows: STIC_ROW_INT8 or STIC_ROW_FLOAT16 */
} stic_header;

typedef struct STIC_PACKED stic_file {
  char name[32];
  uint64_t bytes;
  uint32_t crc, reserved;
} stic_file;

typedef struct STIC_PACKED stic_layer {
  uint32_t slices, full;
  uint32_t qkv_scale_at, qkv_bias_at, out_scale_at, out_bias_at, attention_gamma_at, attention_beta_at;
  uint32_t up_scale_at, up_bias_at, down_scale_at, down_bias_at, ffn_gamma_at, ffn_beta_at;
} stic_layer;

typedef struct STIC_PACKED stic_record {
  uint64_t offset;
  uint32_t bytes, crc;
} stic_record;

typedef struct STIC_PACKED stic_extent {
  uint64_t file_offset, destination;
  uint32_t bytes;
  uint16_t layer, level, first, count;
  int32_t wait_layer;
} stic_extent;

typedef struct STIC_PACKED stic_dense {
  uint32_t rows, columns, activation, weight_at, bias_at, reserved;
} stic_dense;

typedef struct STIC_PACKED stic_region {
  uint64_t offset, bytes;
} stic_region;

typedef struct STIC_PACKED stic_plan_entry {
  uint32_t bits_at, extents_at, extents, resident_extents; /* as the header's fields of these names */
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

_Static_assert(sizeof(stic_header) == 236, "HEADER");
_Static_assert(sizeof(stic_file) == 48, "FILE");
_Static_assert(sizeof(stic_layer) == 56, "LAYER");
_Static_assert(sizeof(stic_record) == 16, "RECORD");
_Static_assert(sizeof(stic_extent) == 32, "EXTENT");
_Static_assert(sizeof(stic_dense) == 24, "DENSE");
_Static_assert(sizeof(stic_region) == 16, "REGION");
_Static_assert(sizeof(stic_plan_entry) == 88, "PLAN");
_Static_assert(sizeof(stic_gpu_part) == 56, "GPU");
_Static_assert(sizeof(stic_launch) == 56, "LAUNCH");

#endif
