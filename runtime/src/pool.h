/* Compute threads: the caller and `threads - 1` of the pool's own run the items of one job at a time. */
#ifndef STIC_POOL_H
#define STIC_POOL_H

#include <pthread.h>

#include "error.h"
#include "platform.h"

enum { STIC_MOST_THREADS = 64 };

typedef void (*stic_item)(void *context, uint32_t item, uint32_t thread);

typedef struct stic_pool {
  uint32_t threads; /* the caller's included */
  uint32_t started;
  pthread_t handles[STIC_MOST_THREADS];
  int32_t ids[STIC_MOST_THREADS]; /* for stic_keep_off */
  uint64_t cores;                 /* bit set of the processors to compute on; 0: any */
  stic_cpus allowed;              /* to the workers */
  stic_cpus callers;              /* processors of the caller, while it is `moved` */
  bool moved;
  int kept_off; /* processor that the workers keep off; -1: none */
  stic_item run;
  void *context;
  uint32_t count;
  _Alignas(64) _Atomic uint64_t ticket; /* generation << 32 | items not yet taken */
  _Alignas(64) stic_word pending;       /* items not yet finished */
  stic_word caller_sleeps;
  _Alignas(64) stic_word generation;
  stic_word sleepers;
  _Atomic bool stop;
} stic_pool;

/* Memory that is zeroed but for `cores` in, running pool out. The workers keep to those of `cores` that exist and that
 * this thread may use; where there is none, to those of this thread. */
stic_status stic_pool_start(stic_pool *pool, uint32_t threads, uint32_t stack_bytes, stic_error *error);

/* Have the workers keep off the processor that the caller runs on. Schedulers like to wake a thread beside its waker,
 * and until they notice, milliseconds later, two threads share one processor while another one idles. */
void stic_pool_spread(stic_pool *pool);

/* Before a number of jobs: the caller, too, keeps to `cores`, and then the workers keep off its processor. */
void stic_pool_enter(stic_pool *pool);

/* After them, on the same thread: the caller may run where it could before. May be called without stic_pool_enter. */
void stic_pool_leave(stic_pool *pool);

/* Run items 0..count-1, each once, on any thread; returns when all are done. */
void stic_pool_run(stic_pool *pool, stic_item run, void *context, uint32_t count);

void stic_pool_stop(stic_pool *pool);

/* Start a thread with this stack and all signals blocked, so that they reach the program's own threads. */
stic_status stic_thread_start(pthread_t *thread, uint32_t stack_bytes, void *(*body)(void *), void *argument,
                              stic_error *error);

#endif
