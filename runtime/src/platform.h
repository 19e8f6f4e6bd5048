/* What C11 and POSIX do not give, in one place. Only platform.c differs between systems. */
#ifndef STIC_PLATFORM_H
#define STIC_PLATFORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A number that threads wait on. */
typedef _Atomic uint32_t stic_word;

/* Sleep while *word == seen; may return early. */
void stic_wait(stic_word *word, uint32_t seen);
void stic_wake_all(stic_word *word);

/* Change a number that threads wait on. */
static inline void stic_signal(stic_word *word) {
  atomic_fetch_add(word, 1);
  stic_wake_all(word);
}

/* Tell the CPU that this thread spins. */
static inline void stic_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

uint64_t stic_now_ns(void);
void stic_sleep_until_ns(uint64_t time_ns);

/* Processors that a thread may run on; none where the system does not say. */
typedef struct stic_cpus {
  unsigned long mask[1024 / (8 * sizeof(unsigned long))];
  uint32_t count;
} stic_cpus;

stic_cpus stic_cpus_allowed(void);

/* Those of `cpus` that are in a bit set over the first 64; all of them if none is. */
stic_cpus stic_cpus_within(const stic_cpus *cpus, uint64_t set);

/* The processor this thread runs on now; -1: unknown. */
int stic_cpu_now(void);

/* What the two functions below know this thread by. */
int32_t stic_thread_id(void);

/* Let a thread run on these processors only. A system that refuses leaves it as it is. */
void stic_confine(int32_t thread, const stic_cpus *cpus);

/* Let a thread run on all of `allowed` but one processor. A system that refuses leaves it as it is. */
void stic_keep_off(int32_t thread, const stic_cpus *allowed, int cpu);

/* STIC_X86_64 or STIC_AARCH64, or -1; and the bit set over STIC_HAS_* of what this CPU and system allow. */
int stic_cpu_architecture(void);
uint32_t stic_cpu_features(void);

/* Open for reading past the page cache; -1 with errno where the file system refuses. */
int stic_open_direct(const char *path);

/* Drop a range of a file from the page cache. */
void stic_forget_cached(int file, uint64_t offset, uint64_t bytes);

/* Zeroed, page-aligned memory; NULL if there is none. */
void *stic_map(size_t bytes);

/* The same in two steps: addresses, which must not be touched; then memory for some of them, of which there may be none.
 * `stic_allow` leaves it to the first touch to take it, page by page; until then it reads as zeros. */
void *stic_reserve(size_t bytes);
bool stic_fill(void *address, size_t bytes);
bool stic_allow(void *address, size_t bytes);

void stic_unmap(void *address, size_t bytes);

/* Give back the pages that lie inside; what they held is lost. */
void stic_discard(void *address, size_t bytes);

/* Peak resident memory of this process; 0 if unknown. */
uint64_t stic_peak_rss_bytes(void);

#endif
