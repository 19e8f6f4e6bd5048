/* A worker that finds no work spins for some tens of microseconds, the gap between two stages of a layer, and then
 * sleeps: on a machine whose cores are busy with something else, longer spinning costs more than waking up. */
#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <signal.h>
#include <string.h>

enum { SPIN_NS = 30000, SPINS_BETWEEN_CLOCKS = 32 };

static bool spin_until_changed(stic_word *word, uint32_t seen) {
  const uint64_t start = stic_now_ns();
  do
    for (int i = 0; i < SPINS_BETWEEN_CLOCKS; i++) {
      if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
      stic_relax();
    }
  while (stic_now_ns() - start < SPIN_NS);
  return false;
}

/* Take items until none is left, many at first and single ones at the end: neighbours share cache lines and pages, and
 * the last items even out what the threads had. The generation inside the ticket keeps a thread that comes late for one
 * job from taking items of the next by the first one's numbers. */
static void work(stic_pool *pool, uint32_t thread) {
  uint64_t ticket = atomic_load(&pool->ticket);
  for (uint32_t left; (left = (uint32_t)ticket) > 0;) {
    const uint32_t share = left / (2 * pool->threads), taken = share ? share : 1;
    if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket - taken)) continue;
    /* The job cannot change before the items just taken are finished. */
    const uint32_t first = pool->count - left;
    for (uint32_t i = 0; i < taken; i++) pool->run(pool->context, first + i, thread);
    if (atomic_fetch_sub(&pool->pending, taken) == taken && atomic_load(&pool->caller_sleeps))
      stic_wake_all(&pool->pending);
    ticket = atomic_load(&pool->ticket);
  }
}

typedef struct {
  stic_pool *pool;
  uint32_t thread;
  stic_word taken;
} start_argument;

static void *worker(void *argument) {
  start_argument *start = argument;
  stic_pool *pool = start->pool;
  const uint32_t thread = start->thread;
  uint32_t seen = 0;
  pool->ids[thread] = stic_thread_id();
  if (pool->cores) stic_confine(pool->ids[thread], &pool->allowed);
  atomic_store(&start->taken, 1);
  stic_wake_all(&start->taken);
  for (;;) {
    if (!spin_until_changed(&pool->generation, seen)) {
      atomic_fetch_add(&pool->sleepers, 1);
      while (atomic_load(&pool->generation) == seen) stic_wait(&pool->generation, seen);
      atomic_fetch_sub(&pool->sleepers, 1);
    }
    seen = atomic_load(&pool->generation);
    if (atomic_load(&pool->stop)) return NULL;
    work(pool, thread);
  }
}

stic_status stic_thread_start(pthread_t *thread, uint32_t stack_bytes, void *(*body)(void *), void *argument,
                              stic_error *error) {
  sigset_t all, before;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  int failed = pthread_attr_setstacksize(&attributes, stack_bytes);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  if (!failed) failed = pthread_create(thread, &attributes, body, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  if (failed)
    return stic_fail(error, STIC_OUT_OF_THREADS, "cannot start a thread with a stack of %u bytes (%s)", stack_bytes,
                     strerror(failed));
  return STIC_OK;
}

stic_status stic_pool_start(stic_pool *pool, uint32_t threads, uint32_t stack_bytes, stic_error *error) {
  const stic_cpus callers = stic_cpus_allowed();
  pool->threads = threads;
  pool->allowed = stic_cpus_within(&callers, pool->cores);
  pool->kept_off = -1;
  for (uint32_t t = 1; t < threads; t++) {
    start_argument start = {pool, t, 0};
    const stic_status status = stic_thread_start(&pool->handles[t], stack_bytes, worker, &start, error);
    if (status) return status;
    pool->started++;
    while (!atomic_load(&start.taken)) stic_wait(&start.taken, 0);
  }
  return STIC_OK;
}

void stic_pool_spread(stic_pool *pool) {
  const int cpu = stic_cpu_now();
  if (cpu < 0 || cpu == pool->kept_off || pool->allowed.count < 2) return;
  for (uint32_t t = 1; t <= pool->started; t++) stic_keep_off(pool->ids[t], &pool->allowed, cpu);
  pool->kept_off = cpu;
}

void stic_pool_enter(stic_pool *pool) {
  if (pool->cores) {
    pool->callers = stic_cpus_allowed();
    const stic_cpus inside = stic_cpus_within(&pool->callers, pool->cores);
    pool->moved = inside.count < pool->callers.count;
    if (pool->moved) stic_confine(0, &inside);
  }
  stic_pool_spread(pool);
}

void stic_pool_leave(stic_pool *pool) {
  if (pool->moved) stic_confine(0, &pool->callers);
  pool->moved = false;
}

void stic_pool_run(stic_pool *pool, stic_item run, void *context, uint32_t count) {
  if (pool->started == 0 || count <= 1) {
    for (uint32_t i = 0; i < count; i++) run(context, i, 0);
    return;
  }
  pool->run = run;
  pool->context = context;
  pool->count = count;
  atomic_store(&pool->pending, count);
  const uint32_t generation = atomic_load(&pool->generation) + 1;
  atomic_store(&pool->ticket, (uint64_t)generation << 32 | count);
  atomic_store(&pool->generation, generation);
  if (atomic_load(&pool->sleepers)) stic_wake_all(&pool->generation);
  work(pool, 0);
  for (uint32_t left; (left = atomic_load(&pool->pending));) {
    if (spin_until_changed(&pool->pending, left)) continue;
    atomic_store(&pool->caller_sleeps, 1);
    if ((left = atomic_load(&pool->pending))) stic_wait(&pool->pending, left);
    atomic_store(&pool->caller_sleeps, 0);
  }
}

void stic_pool_stop(stic_pool *pool) {
  atomic_store(&pool->stop, true);
  atomic_fetch_add(&pool->generation, 1);
  stic_wake_all(&pool->generation);
  for (uint32_t t = 1; t <= pool->started; t++) pthread_join(pool->handles[t], NULL);
  pool->started = 0;
}
