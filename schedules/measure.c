/* Time kernels inside the process that runs them. `stic tune` links this with the kernels, loads it here or on a device
 * behind the RPC tracker, and calls it as functions of TVM's FFI. Both return nanoseconds, -1 without memory. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tvm_ffi.h"

#define EXPORT __attribute__((visibility("default"))) int

enum { ROWS = 16, TOKENS = 16, ALIGN = 4096, FEATURES = 4096 };

void stic_dot(uint8_t *, int8_t *, int32_t *, float *, float *, float *, float *, float *, int32_t, int32_t, int32_t,
              int32_t);
typedef void rows_kernel(uint8_t *, uint8_t *, uint8_t *, uint8_t *, uint8_t *, uint8_t *, uint8_t *, uint8_t *,
                         int8_t *, int8_t *, int32_t *, int32_t, int32_t, int32_t);
rows_kernel stic_rows_b2, stic_rows_b4, stic_rows_b6, stic_rows_b8;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Zeroed memory whose pages exist. */
static void *fresh(size_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, ALIGN, bytes)) return NULL;
  memset(memory, 0, bytes);
  return memory;
}

static int64_t time_dot(int64_t k, int64_t tiles, int64_t calls) {
  const size_t outputs = (size_t)tiles * ROWS * TOKENS;
  uint8_t *panel = fresh((size_t)k * ROWS);
  int8_t *x = fresh((size_t)(k * tiles) * TOKENS);
  float *sums = fresh(outputs * sizeof *sums), *extra = fresh(outputs * sizeof *extra), *y = fresh(outputs * sizeof *y);
  float *rows = fresh(2 * ROWS * sizeof *rows), *tokens = fresh((size_t)tiles * TOKENS * sizeof *tokens);
  int64_t ns = -1;
  if (panel && x && sums && extra && y && rows && tokens) {
    for (int64_t call = -1; call < calls; call++) { /* the first one loads the caches */
      if (call == 0) ns = now_ns();
      stic_dot(panel, x, (int32_t *)(void *)sums, tokens, rows, rows + ROWS, extra, y, (int32_t)k,
               (int32_t)(k * TOKENS), ROWS, (int32_t)tiles);
    }
    ns = now_ns() - ns;
  }
  free(panel), free(x), free(sums), free(extra), free(y), free(rows), free(tokens);
  return ns;
}

/* One token through blocks of 16 x 4096 weights at 2, 4, 6 or 8 bits that fill `bytes`: more than any cache holds. */
static int64_t time_rows(int64_t bits, int64_t bytes) {
  rows_kernel *const kernels[] = {stic_rows_b2, stic_rows_b4, stic_rows_b6, stic_rows_b8};
  if (bits < 2 || bits > 8 || bits % 2) return -1;
  const size_t block = (size_t)ROWS * FEATURES / 8, blocks = (size_t)bytes / ((size_t)bits * block);
  const size_t plane =
      blocks * block + 5 * 64; /* not a multiple of 4096, at which planes would share lines of a cache */
  uint8_t *planes = fresh((size_t)bits * plane + ALIGN);
  int8_t *table = fresh(256), *x = fresh(16 * FEATURES);
  int32_t *acc = fresh(ROWS * TOKENS * sizeof *acc);
  int64_t ns = -1;
  if (planes && table && x && acc) {
    ns = now_ns();
    for (size_t b = 0; b < blocks; b++) {
      uint8_t *p[8];
      for (int i = 0; i < 8; i++) p[i] = i < bits ? planes + (size_t)i * plane + b * block : NULL;
      kernels[bits / 2 - 1](p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], table, x, acc, ROWS * FEATURES / 64, 8, 1);
    }
    ns = now_ns() - ns;
  }
  free(planes), free(table), free(x), free(acc);
  return ns;
}

static int give(stic_ffi_any *result, int64_t value) {
  *result = (stic_ffi_any){.type_index = STIC_FFI_INT, .v_int64 = value};
  return 0;
}

EXPORT __tvm_ffi_stic_time_dot(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result);
EXPORT __tvm_ffi_stic_time_dot(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  (void)self;
  return n == 3 ? give(result, time_dot(a[0].v_int64, a[1].v_int64, a[2].v_int64)) : -1;
}

EXPORT __tvm_ffi_stic_time_rows(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result);
EXPORT __tvm_ffi_stic_time_rows(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  (void)self;
  return n == 2 ? give(result, time_rows(a[0].v_int64, a[1].v_int64)) : -1;
}
