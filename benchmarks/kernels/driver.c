/* Runs kernels as the engine's layers do (runtime/src/matrix.c), on the engine's own thread pool, without a package:
 *
 *     for each matrix; for each block of 16 rows, by any thread:
 *         gemm   for each slice: unpack into the thread's panel, outliers; dot over all slices
 *         gemv   for each slice: rows over the planes, outliers; finish
 *
 * and, beside them, the loops of loops_*.S that show what the machine can do at most. */
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "pool.h"

enum { TILE = STIC_TILE, STACK_BYTES = 1 << 18, SUM_CHUNK = 1 << 18, LOOP_PARTS = 8 };

typedef void (*loop)(uint64_t rounds);
typedef void (*sum)(const uint8_t *data, uint64_t bytes, uint64_t lanes[64]);

#if defined(__x86_64__)
#define LOOPS(L) \
  L(int8_avx512_vnni, 24 * 64) \
  L(int8_avx_vnni, 12 * 32) L(int8_avx2, 12 * 32) L(f32_avx512, 24 * 16) L(f32_avx2, 12 * 8)
#define SUMS(S) S(sum_avx512) S(sum_avx2)
#elif defined(__aarch64__)
#define LOOPS(L) L(int8_i8mm, 22 * 32) L(int8_asimddp, 22 * 16) L(int8_asimd, 12 * 16) L(f32_asimd, 22 * 4)
#define SUMS(S) S(sum_asimd)
#endif

#define DECLARE_LOOP(name, macs) void bench_##name(uint64_t rounds);
#define DECLARE_SUM(name) void bench_##name(const uint8_t *data, uint64_t bytes, uint64_t lanes[64]);
LOOPS(DECLARE_LOOP)
SUMS(DECLARE_SUM)

#define LOOP_ROW(name, macs) {#name, bench_##name, macs},
#define SUM_ROW(name) {#name, bench_##name},
static const struct {
  const char *name;
  loop run;
  uint32_t macs;
} loops[] = {LOOPS(LOOP_ROW)};
static const struct {
  const char *name;
  sum run;
} sums[] = {SUMS(SUM_ROW)};

struct bench {
  stic_pool pool;
  stic_kernels kernels; /* those that a product needs */
};

static bool find(bench *b, const char *name, void *function, char *message) {
  void *symbol = dlsym(b->kernels.library, name);
  memcpy(function, &symbol, sizeof symbol); /* ISO C has no cast from object to function pointer */
  if (!symbol) snprintf(message, BENCH_MESSAGE, "kernels.so has no function %s: compile it with this stic", name);
  return symbol != NULL;
}

static bool find_kernels(bench *b, const char *path, char *message) {
  stic_kernels *k = &b->kernels;
  k->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!k->library) {
    snprintf(message, BENCH_MESSAGE, "%s cannot be loaded: %s", path, dlerror());
    return false;
  }
  for (int bits = 2; bits <= 8; bits++) {
    char name[32];
    snprintf(name, sizeof name, "stic_unpack_b%d", bits);
    if (!find(b, name, &k->unpack[bits], message)) return false;
    snprintf(name, sizeof name, "stic_rows_b%d", bits);
    if (!find(b, name, &k->rows[bits], message)) return false;
  }
  return find(b, "stic_outliers", &k->outliers, message) && find(b, "stic_dot", &k->dot, message) &&
         find(b, "stic_rows_outliers", &k->rows_outliers, message) &&
         find(b, "stic_rows_finish", &k->rows_finish, message);
}

bench *bench_open(const char *kernels, uint32_t threads, char *message) {
  stic_error error = {0};
  bench *b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
  if (!b) {
    snprintf(message, BENCH_MESSAGE, "no memory for a thread pool");
    return NULL;
  }
  memset(b, 0, sizeof *b);
  if (stic_pool_start(&b->pool, threads, STACK_BYTES, &error)) {
    snprintf(message, BENCH_MESSAGE, "%s", error.text);
    bench_close(b);
    return NULL;
  }
  if (kernels && !find_kernels(b, kernels, message)) {
    bench_close(b);
    return NULL;
  }
  return b;
}

void bench_close(bench *b) {
  stic_pool_stop(&b->pool);
  if (b->kernels.library) dlclose(b->kernels.library);
  free(b);
}

void *bench_map(uint64_t bytes) { return stic_map(bytes); }
void bench_unmap(void *address, uint64_t bytes) { stic_unmap(address, bytes); }

static int64_t timed(bench *b, stic_item run, void *context, uint32_t items) {
  stic_pool_spread(&b->pool);
  const uint64_t start = stic_now_ns();
  stic_pool_run(&b->pool, run, context, items);
  return (int64_t)(stic_now_ns() - start);
}

typedef struct {
  loop run;
  uint64_t rounds;
} loop_job;

static void loop_item(void *context, uint32_t item, uint32_t thread) {
  const loop_job *job = context;
  (void)item, (void)thread;
  job->run(job->rounds);
}

int64_t bench_loop(bench *b, const char *name, uint64_t rounds, uint64_t *macs) {
  for (size_t i = 0; i < sizeof loops / sizeof *loops; i++)
    if (!strcmp(loops[i].name, name)) {
      loop_job job = {loops[i].run, rounds / LOOP_PARTS};
      *macs = job.rounds * loops[i].macs * LOOP_PARTS * b->pool.threads;
      return timed(b, loop_item, &job, LOOP_PARTS * b->pool.threads);
    }
  return -1;
}

typedef struct {
  sum run;
  const uint8_t *data;
  uint64_t bytes;
  _Atomic uint64_t total;
} sum_job;

static void sum_item(void *context, uint32_t item, uint32_t thread) {
  sum_job *job = context;
  const uint64_t at = (uint64_t)item * SUM_CHUNK, left = job->bytes - at;
  uint64_t lanes[64] = {0}, total = 0;
  (void)thread;
  job->run(job->data + at, left < SUM_CHUNK ? left : SUM_CHUNK, lanes);
  for (int i = 0; i < 64; i++) total += lanes[i];
  atomic_fetch_add(&job->total, total);
}

int64_t bench_sum(bench *b, const char *name, const uint8_t *data, uint64_t bytes, uint64_t *total) {
  for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
    if (!strcmp(sums[i].name, name)) {
      sum_job job = {sums[i].run, data, bytes, 0};
      const int64_t ns = timed(b, sum_item, &job, (uint32_t)((bytes + SUM_CHUNK - 1) / SUM_CHUNK));
      *total = atomic_load(&job.total);
      return ns;
    }
  return -1;
}

typedef struct {
  bench *b;
  const bench_product *p;
  const bench_slice *parts; /* of this matrix */
  const bench_rows *rows;
} product_job;

/* What the exact weights of a block of 16 rows add, (tiles, 16, 16). */
static void outliers_of(const product_job *job, uint32_t slice, uint32_t block, float *extra, uint32_t tiles) {
  const bench_product *p = job->p;
  const bench_slice *s = &job->parts[slice];
  const uint32_t first = s->starts[block], count = s->starts[block + 1] - first;
  const int32_t dense = s->table[1u << (p->bits - 1)];
  if (count)
    job->b->kernels.outliers(s->entries + 2 * (size_t)first, job->rows->scale + block * TILE,
                             p->x + (size_t)slice * p->ks * TILE, extra, (int32_t)count, dense, (int32_t)p->x_pitch,
                             (int32_t)(p->slices * p->ks * TILE), (int32_t)tiles);
}

static void planes_of(const product_job *job, uint32_t slice, uint32_t block, uint8_t *at[8]) {
  for (uint32_t i = 0; i < job->p->bits; i++) at[i] = job->parts[slice].planes[i] + (size_t)block * 2 * job->p->ks;
}

static void gemm_block(void *context, uint32_t block, uint32_t thread) {
  const product_job *job = context;
  const bench_product *p = job->p;
  const stic_kernels *kernels = &job->b->kernels;
  const uint32_t tiles = (p->tokens + TILE - 1) / TILE, k = p->slices * p->ks;
  float *extra = p->extra + (size_t)thread * tiles * TILE * TILE, *y = p->y + (size_t)block * TILE * TILE;
  uint8_t *panel = p->panels + (size_t)thread * TILE * k, *at[8] = {NULL};
  for (uint32_t slice = 0; slice < p->slices; slice++) {
    planes_of(job, slice, block, at);
    kernels->unpack[p->bits](at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], job->parts[slice].table,
                             panel + (size_t)slice * TILE * p->ks, (int32_t)(p->ks / 4));
    outliers_of(job, slice, block, extra, tiles);
  }
  kernels->dot(panel, p->x, p->xsum, p->xscale, job->rows->scale + block * TILE, job->rows->bias + block * TILE, extra,
               y, (int32_t)k, (int32_t)(k * TILE), (int32_t)p->n, (int32_t)tiles);
}

static void gemv_block(void *context, uint32_t block, uint32_t thread) {
  const product_job *job = context;
  const bench_product *p = job->p;
  const stic_kernels *kernels = &job->b->kernels;
  _Alignas(64) int32_t acc[TILE * TILE] = {0};
  _Alignas(64) float extra[TILE * TILE] = {0};
  uint8_t *at[8] = {NULL};
  (void)thread;
  for (uint32_t slice = 0; slice < p->slices; slice++) {
    int8_t *x = p->x + (size_t)slice * p->ks / p->interleave * p->x_pitch;
    planes_of(job, slice, block, at);
    kernels->rows[p->bits](at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], job->parts[slice].table, x, acc,
                           (int32_t)(p->ks / 4), (int32_t)p->x_pitch, (int32_t)p->tokens);
    const uint32_t *starts = job->parts[slice].starts;
    kernels->rows_outliers(job->parts[slice].entries + 2 * (size_t)starts[block], job->rows->scale + block * TILE, x,
                           extra, (int32_t)(starts[block + 1] - starts[block]),
                           job->parts[slice].table[1 << (p->bits - 1)], (int32_t)p->x_pitch, (int32_t)p->tokens);
  }
  kernels->rows_finish(acc, p->xsum, p->xscale, job->rows->scale + block * TILE, job->rows->bias + block * TILE, extra,
                       p->y + (size_t)block * TILE * TILE, (int32_t)p->tokens);
}

static int64_t product(bench *b, const bench_product *p, stic_item run) {
  int64_t ns = 0;
  for (uint32_t i = 0; i < p->count; i++) {
    product_job job = {b, p, p->parts + (size_t)i * p->slices, p->rows + i};
    ns += timed(b, run, &job, p->n / TILE);
  }
  return ns;
}

int64_t bench_gemm(bench *b, const bench_product *p) { return product(b, p, gemm_block); }
int64_t bench_gemv(bench *b, const bench_product *p) { return product(b, p, gemv_block); }
