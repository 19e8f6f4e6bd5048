/* What driver.py and driver.c share. Times are nanoseconds, taken inside, around the work alone. */
#ifndef BENCH_DRIVER_H
#define BENCH_DRIVER_H

#include <stdint.h>

enum { BENCH_MESSAGE = 512 }; /* bytes of a sentence */

typedef struct bench bench;

/* One slice of a matrix, (n, ks) codes: as a record of a package holds it. */
typedef struct {
  uint8_t *planes[8]; /* (n * ks / 8) bytes each; NULL from `bits` on */
  int8_t *table;      /* (2^bits) */
  uint16_t *entries;  /* {position, float16 value}, block by block */
  uint32_t *starts;   /* (n / 16 + 1): first entry of each block of 16 rows */
} bench_slice;

typedef struct {
  float *scale, *bias; /* (n) */
} bench_rows;

/* y = W x for each of `count` matrices, one after the other. */
typedef struct {
  uint32_t bits, count, slices, n, ks, tokens, interleave;
  uint32_t x_pitch;   /* bytes of x from one group of q features to the next: 16 q, or less for few tokens */
  bench_slice *parts; /* (count, slices) */
  bench_rows *rows;   /* (count) */
  int8_t *x;          /* (tiles, slices * ks / q, 16, q) */
  int32_t *xsum;      /* (tiles, 16) */
  float *xscale;      /* (tiles, 16) */
  float *y;           /* (tiles, n, 16): the last matrix's */
  float *extra;       /* (threads, tiles, 16, 16), zero */
  uint8_t *panels;    /* (threads, 16 * slices * ks) */
} bench_product;

/* NULL, with a sentence in `message`, where the kernels or the threads cannot be had. kernels: NULL for
 * loops and sums alone. */
bench *bench_open(const char *kernels, uint32_t threads, char *message);
void bench_close(bench *b);

/* Zeroed memory of the kind that the engine's arena is made of. */
void *bench_map(uint64_t bytes);
void bench_unmap(void *address, uint64_t bytes);

/* Run about `rounds` rounds of a loop, such as "int8_avx512_vnni", on each thread. Returns -1 where this build has no
 * such loop; *macs: the multiply-adds of all threads. */
int64_t bench_loop(bench *b, const char *name, uint64_t rounds, uint64_t *macs);

/* Add up `bytes` (a multiple of 512) as 64-bit words, on all threads. */
int64_t bench_sum(bench *b, const char *name, const uint8_t *data, uint64_t bytes, uint64_t *sum);

/* All matrices by unpack and dot (any tokens), or by the kernels for few rows (at most 16 tokens). */
int64_t bench_gemm(bench *b, const bench_product *product);
int64_t bench_gemv(bench *b, const bench_product *product);

#endif
