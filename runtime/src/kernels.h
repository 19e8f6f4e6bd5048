/* The compiled kernels: plain C functions in kernels.so. Sizes are int32; every pointer is 64-byte aligned unless said
 * otherwise. Activations are feature-major in tiles of 16 tokens: (tiles, features, 16). */
#ifndef STIC_KERNELS_H
#define STIC_KERNELS_H

#include "package.h"

enum { STIC_FEW_TOKENS = 8 }; /* up to which weights are not unpacked into memory */

typedef uint16_t stic_half; /* bits of an IEEE 754 half */

typedef struct stic_kernels {
  void *library;
  /* Sum the three embeddings of n tokens (rows: int8 features, then float scale; or halfs) and normalise them into x. */
  void (*embed)(const uint8_t *rows, const stic_half *position, const stic_half *token_type, const int32_t *type_ids,
                const float *gamma, const float *beta, float *x, int32_t n, int32_t row_stride);
  /* One tile of k features -> int8 (k/q, 16, q), scale (16), sum of the int8 values (16). */
  void (*quantize)(const float *x, int8_t *q, float *scale, int32_t *sum, int32_t k);
  /* The model's activation, in place, on `count` vectors of 16. */
  void (*activation)(float *x, int32_t count);
  /* 64 * groups codes, given by their planes, through the table into a panel (k/q, 16 rows, q); [b] for b bits. */
  void (*unpack[9])(const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *,
                    const uint8_t *, const uint8_t *, const uint8_t *, const int8_t *table, uint8_t *panel,
                    int32_t groups);
  /* extra[t][n] += (value - scale[n] * dense) * x[t][k] for the entries (position in the panel, value). */
  void (*outliers)(const uint16_t *entries, const float *scale, const int8_t *x, float *extra, int32_t count,
                   int32_t dense, int32_t x_pitch, int32_t x_tile, int32_t tiles);
  /* y[t][0..15] = bias + token scale * (scale * (panel (k/q, 16, q) times x) + extra), extra (tiles, 16, 16) := 0;
   * dot_activated puts the model's activation on top. */
  void (*dot)(const uint8_t *panel, const int8_t *x, const int32_t *token_sum, const float *token_scale,
              const float *scale, const float *bias, float *extra, float *y, int32_t k, int32_t x_tile, int32_t y_rows,
              int32_t tiles);
  void (*dot_activated)(const uint8_t *panel, const int8_t *x, const int32_t *token_sum, const float *token_scale,
                        const float *scale, const float *bias, float *extra, float *y, int32_t k, int32_t x_tile,
                        int32_t y_rows, int32_t tiles);
  /* The same for up to STIC_FEW_TOKENS tokens, straight from the planes: acc (16 tokens, 16 rows) += the products,
   * extra (16 tokens, 16 rows) += the outliers' share; then y of one tile from both. */
  void (*rows[9])(const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *,
                  const uint8_t *, const uint8_t *, const int8_t *table, const int8_t *x, int32_t *acc, int32_t groups,
                  int32_t x_pitch, int32_t rows);
  void (*rows_outliers)(const uint16_t *entries, const float *scale, const int8_t *x, float *extra, int32_t count,
                        int32_t dense, int32_t x_pitch, int32_t rows);
  void (*rows_finish)(const int32_t *acc, const int32_t *token_sum, const float *token_scale, const float *scale,
                      const float *bias, const float *extra, float *y, int32_t rows);
  void (*rows_finish_activated)(const int32_t *acc, const int32_t *token_sum, const float *token_scale,
                                const float *scale, const float *bias, const float *extra, float *y, int32_t rows);
  /* y[t][0..15] += w (16, ks) times x. */
  void (*matmul_f16)(const stic_half *w, const float *x, float *y, int32_t ks, int32_t x_rows, int32_t y_rows,
                     int32_t tiles);
  void (*matmul_f32)(const float *w, const float *x, float *y, int32_t ks, int32_t x_rows, int32_t y_rows,
                     int32_t tiles);
  void (*bias)(float *y, const float *bias, int32_t y_rows, int32_t tiles);
  /* One head, `queries` tiles of queries, keys 0..rows-1. For T tiles of keys and D padded head features, floats has
   * room for 272 T + 2 D, bytes for 32 T D + 256 T + 16 D. */
  void (*attention)(const float *q, const float *k, const float *v, float *out, float *floats, int8_t *bytes,
                    int32_t qkv_rows, int32_t out_rows, int32_t rows, int32_t queries);
  /* One tile: x = LayerNorm(x + y). */
  void (*add_norm)(float *x, const float *y, const float *gamma, const float *beta);

  /* What follows are decoders' (docs/decoders.md). Groups are of STIC_GROUP columns of a slice. */
  /* n rows of embeddings.bin, with their rows of positions or NULL, into x (ceil(n/16), HP, 16). */
  void (*embed_plain)(const uint8_t *rows, const stic_half *position, float *x, int32_t n, int32_t row_stride);
  /* One tile of a slice's k columns -> int8 (k/q, 16, q), scale (groups, 16), what products start from (groups, 16). */
  void (*quantize_grouped)(const float *x, int8_t *q, float *scale, int32_t *offset, int32_t k);
  /* One slice: acc (tiles, 16 rows, 16 tokens) += ratio (groups, 16) * scale * (panel times x); then y = bias + scale of
   * the rows * acc, and acc = 0. */
  void (*dot_grouped)(const uint8_t *panel, const int8_t *x, const int32_t *offset, const float *scale,
                      const uint8_t *ratio, float *acc, int32_t k, int32_t x_tile, int32_t g_tile, int32_t tiles);
  void (*dot_grouped_finish)(float *acc, const float *scale, const float *bias, float *y, int32_t y_rows,
                             int32_t tiles);
  /* The same for up to STIC_FEW_TOKENS tokens, straight from the planes: acc (tokens, 16 rows). */
  void (*rows_grouped[9])(const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *, const uint8_t *,
                          const uint8_t *, const uint8_t *, const uint8_t *, const int8_t *table, const int8_t *x,
                          const int32_t *offset, const float *scale, const uint8_t *ratio, float *acc, int32_t k,
                          int32_t x_pitch, int32_t rows);
  void (*rows_grouped_finish)(float *acc, const float *scale, const float *bias, float *y, int32_t rows);
  /* One tile: y = the norm of x over `features`; y may be x; its rows from there to `padded` become zero. */
  void (*rms_norm)(const float *x, const float *gamma, float *y, int32_t features, int32_t padded);
  void (*layer_norm)(const float *x, const float *gamma, const float *beta, float *y, int32_t features, int32_t padded);
  /* In place, on `count` vectors of 16: x += y; gate = act(gate) * up; x = c tanh(x / c). */
  void (*add)(float *x, const float *y, int32_t count);
  void (*gate)(float *gate, const float *up, int32_t count);
  void (*softcap)(float *x, int32_t count);
  /* Turn `heads` heads, `pitch` rows apart, by a tile's turns (features, 16). */
  void (*rope)(float *x, const float *turns, int32_t heads, int32_t pitch, int32_t features);
  /* n tokens of a tile, one key head: k, v (head_dim, 16) to their places in its part of the cache. */
  void (*cache_store_f16)(const float *k, const float *v, stic_half *keys, stic_half *values, int32_t position,
                          int32_t n);
  void (*cache_store_i8)(const float *k, const float *v, int8_t *keys, float *key_scale, int8_t *values,
                         float *value_scale, int32_t position, int32_t n);
  /* n tokens of a tile, `queries` heads of one key head: q, out (queries, head_dim, 16); scratch (4, context). */
  void (*cached_attention_f16)(const float *q, const stic_half *keys, const stic_half *values, float *out,
                               float *scratch, int32_t queries, int32_t position, int32_t n, int32_t window,
                               int32_t context);
  void (*cached_attention_i8)(const float *q, const int8_t *keys, const float *key_scale, const int8_t *values,
                              const float *value_scale, float *out, float *scratch, int32_t queries, int32_t position,
                              int32_t n, int32_t window, int32_t context);
} stic_kernels;

/* Check that this CPU can run what the package was compiled for. */
stic_status stic_kernels_check_cpu(const stic_package *package, stic_error *error);

/* Load the library at `path`, which has been verified, and find the kernels this package needs. */
stic_status stic_kernels_load(const stic_package *package, const char *path, stic_kernels *kernels, stic_error *error);

void stic_kernels_unload(stic_kernels *kernels);

#endif
