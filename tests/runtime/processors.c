/* usage: processors features        print the features of this CPU, a bit set
 *        processors pool CORES      start a pool of 3 threads with `cores` CORES, and print which processors may run
 *
 *     idle N N                      the workers before a run
 *     run N N                       the workers in a run
 *     caller N N N                  this thread before, in and after a run
 *     off N                         the processor that the workers kept off in the run; -1: none
 *     lane N                        a thread started like an IO lane
 *
 * N is a bit set over the first 64 processors. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

enum { THREADS = 3, STACK_BYTES = 65536 };

static uint64_t processors_of(int32_t thread) {
  cpu_set_t set;
  uint64_t bits = 0;
  if (sched_getaffinity(thread, sizeof set, &set)) exit(3);
  for (int i = 0; i < 64; i++) bits |= (uint64_t)(CPU_ISSET(i, &set) != 0) << i;
  return bits;
}

static void *other(void *mask) {
  *(uint64_t *)mask = processors_of(0);
  return NULL;
}

static void print(const char *name, const uint64_t *bits, int count) {
  printf("%s", name);
  for (int i = 0; i < count; i++) printf(" %" PRIu64, bits[i]);
  puts("");
}

static int show_pool(uint64_t cores) {
  static stic_pool pool;
  stic_error error;
  uint64_t caller[3] = {processors_of(0)}, idle[THREADS - 1], run[THREADS - 1], lane = 0;
  pthread_t thread;
  pool.cores = cores;
  if (stic_pool_start(&pool, THREADS, STACK_BYTES, &error)) return 3;
  if (stic_thread_start(&thread, STACK_BYTES, other, &lane, &error)) return 3;
  pthread_join(thread, NULL);
  for (int t = 1; t < THREADS; t++) idle[t - 1] = processors_of(pool.ids[t]);
  stic_pool_enter(&pool);
  caller[1] = processors_of(0);
  for (int t = 1; t < THREADS; t++) run[t - 1] = processors_of(pool.ids[t]);
  stic_pool_leave(&pool);
  caller[2] = processors_of(0);
  print("idle", idle, THREADS - 1);
  print("run", run, THREADS - 1);
  print("caller", caller, 3);
  printf("off %d\n", pool.kept_off);
  print("lane", &lane, 1);
  stic_pool_stop(&pool);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "features")) return printf("%" PRIu32 "\n", stic_cpu_features()) < 0;
  return argc == 3 && !strcmp(argv[1], "pool") ? show_pool(strtoull(argv[2], NULL, 0)) : 2;
}
