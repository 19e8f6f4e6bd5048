/* The kernels of kernels.cl, as the engine launches them. Arguments are memory objects first, then int32 scalars; what
 * both mean is said where a kernel is launched (gpu_layer.c, gpu_input.c). S: stored activations, half or float. Units are
 * what `group` of a launch record counts.
 *
 * | kernel    | memory objects                                                      | scalars            | units         |
 * |-----------|---------------------------------------------------------------------|--------------------|---------------|
 * | gemm_*    | weights as u8, u32, u16; codes; trunk; x S; xq; token scale, sum;   | entry, slices,     | rows, tokens  |
 * |           | y f32; out S                                                        | blocks, columns,   |               |
 * | gemv_*    | the same, for at most STIC_FEW_TOKENS tokens                        | x_rows, y_rows,    | rows          |
 * |           |                                                                     | scale_at, bias_at, |               |
 * |           |                                                                     | n, flags, x_first, |               |
 * |           |                                                                     | out_first          |               |
 * | quantize  | x S; xq; token scale, sum                                           | width, tiles       | tiles         |
 * | scores    | qkv S; scores f32                                                   | heads_per_slice,   | units, keys   |
 * |           |                                                                     | width, qkv_rows,   |               |
 * |           |                                                                     | n, first_tile,     |               |
 * |           |                                                                     | query_tiles        |               |
 * | softmax   | scores f32                                                          | n, count           | units         |
 * | values    | scores f32; qkv S; context S                                        | as scores, with    | units,        |
 * |           |                                                                     | context_rows after | features of a |
 * |           |                                                                     | qkv_rows           | head          |
 * | add_norm  | x S; y f32; trunk                                                   | gamma_at, beta_at, | tiles         |
 * |           |                                                                     | tiles              |               |
 * | embed     | rows; types; trunk; trunk as f16; x S                               | n, row_stride,     | tiles         |
 * |           |                                                                     | position_at,       |               |
 * |           |                                                                     | token_type_at,     |               |
 * |           |                                                                     | gamma_at, beta_at  |               |
 * | widen     | x S; y f32                                                          | count              | elements      |
 * | narrow    | y f32; x S                                                          | count              | elements      |
 *
 * A unit of attention is 16 queries of one head. */
#ifndef STIC_GPU_KERNELS_H
#define STIC_GPU_KERNELS_H

#include <stdint.h>

/* X(name, memory objects, scalars); products have one kernel for each width of weights. */
#define STIC_GPU_PRODUCTS(X) X(b2, 2) X(b3, 3) X(b4, 4) X(b5, 5) X(b6, 6) X(b7, 7) X(b8, 8) X(f16, 16) X(f32, 32)
#define STIC_GPU_STAGES(X) \
  X(quantize, 4, 2) \
  X(scores, 2, 6) \
  X(softmax, 1, 2) \
  X(values, 3, 7) \
  X(add_norm, 3, 3) \
  X(embed, 5, 6) \
  X(widen, 2, 1) \
  X(narrow, 2, 1)

enum { STIC_GPU_PRODUCT_OBJECTS = 11, STIC_GPU_PRODUCT_SCALARS = 12 };

enum {
#define NUMBER(name, width) STIC_KERNEL_gemm_##name,
  STIC_GPU_PRODUCTS(NUMBER)
#undef NUMBER
#define NUMBER(name, width) STIC_KERNEL_gemv_##name,
      STIC_GPU_PRODUCTS(NUMBER)
#undef NUMBER
#define NUMBER(name, objects, scalars) STIC_KERNEL_##name,
          STIC_GPU_STAGES(NUMBER)
#undef NUMBER
              STIC_KERNELS_OF_GPU
};

typedef struct stic_gpu_kernel {
  const char *name;
  uint32_t objects, scalars;
  uint32_t width; /* of weights; 0: for any */
} stic_gpu_kernel;

extern const stic_gpu_kernel stic_gpu_kernels[STIC_KERNELS_OF_GPU]; /* gpu_launch.c */

/* Bits of the products' `flags`. */
enum {
  STIC_GPU_JOINED = 1,     /* rows are the layer's, summed over slices, to y; else each slice has its own, to out */
  STIC_GPU_ACCUMULATE = 2, /* start from y, not from the bias */
  STIC_GPU_ACTIVATED = 4   /* the model's activation on top */
};

#endif
