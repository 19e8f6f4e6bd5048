#if defined(__linux__)
#define _GNU_SOURCE /* O_DIRECT, MADV_DONTNEED, syscall */
#else
#define _POSIX_C_SOURCE 200809L
#define _DARWIN_C_SOURCE
#endif
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "format.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__linux__)
void stic_wait(stic_word *word, uint32_t seen) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); }

void stic_wake_all(stic_word *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

enum { BITS = 8 * sizeof(unsigned long) };

static uint32_t count(const stic_cpus *cpus) {
  uint32_t sum = 0;
  for (size_t i = 0; i < sizeof cpus->mask / sizeof *cpus->mask; i++)
    sum += (uint32_t)__builtin_popcountl(cpus->mask[i]);
  return sum;
}

stic_cpus stic_cpus_allowed(void) {
  stic_cpus found = {{0}, 0};
  if (syscall(SYS_sched_getaffinity, 0, sizeof found.mask, found.mask) < 0) return found;
  found.count = count(&found);
  return found;
}

stic_cpus stic_cpus_within(const stic_cpus *cpus, uint64_t set) {
  stic_cpus inside = {{0}, 0};
  for (size_t i = 0; i * BITS < 64; i++) inside.mask[i] = cpus->mask[i] & (unsigned long)(set >> i * BITS);
  inside.count = count(&inside);
  return inside.count ? inside : *cpus;
}

int stic_cpu_now(void) {
  unsigned cpu = 0;
  return syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 ? (int)cpu : -1;
}

int32_t stic_thread_id(void) { return (int32_t)syscall(SYS_gettid); }

void stic_confine(int32_t thread, const stic_cpus *cpus) {
  syscall(SYS_sched_setaffinity, thread, sizeof cpus->mask, cpus->mask);
}

void stic_keep_off(int32_t thread, const stic_cpus *allowed, int cpu) {
  stic_cpus left = *allowed;
  const size_t word = (size_t)cpu / BITS;
  if (word < sizeof left.mask / sizeof *left.mask) left.mask[word] &= ~(1ul << (size_t)cpu % BITS);
  stic_confine(thread, &left);
}
#else
stic_cpus stic_cpus_allowed(void) { return (stic_cpus){{0}, 0}; }
stic_cpus stic_cpus_within(const stic_cpus *cpus, uint64_t set) { return (void)set, *cpus; }
void stic_confine(int32_t thread, const stic_cpus *cpus) { (void)thread, (void)cpus; }
int stic_cpu_now(void) { return -1; }
int32_t stic_thread_id(void) { return 0; }
void stic_keep_off(int32_t thread, const stic_cpus *allowed, int cpu) { (void)thread, (void)allowed, (void)cpu; }

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

void stic_wait(stic_word *word, uint32_t seen) {
  pthread_mutex_lock(&mutex);
  if (atomic_load(word) == seen) pthread_cond_wait(&changed, &mutex);
  pthread_mutex_unlock(&mutex);
}

void stic_wake_all(stic_word *word) {
  (void)word;
  pthread_mutex_lock(&mutex);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
}
#endif

uint64_t stic_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void stic_sleep_until_ns(uint64_t time_ns) {
  for (uint64_t now; (now = stic_now_ns()) < time_ns;) {
    const uint64_t left = time_ns - now;
    const struct timespec t = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    nanosleep(&t, NULL);
  }
}

int stic_cpu_architecture(void) {
#if defined(__x86_64__)
  return STIC_X86_64;
#elif defined(__aarch64__)
  return STIC_AARCH64;
#else
  return -1;
#endif
}

uint32_t stic_cpu_features(void) {
  uint32_t found = 0;
#if defined(__x86_64__)
#define HAS(name, bit) \
  if (__builtin_cpu_supports(name)) found |= 1u << (bit)
  __builtin_cpu_init(); /* also asks the system whether it saves the wide registers */
  HAS("avx2", STIC_HAS_AVX2);
  HAS("fma", STIC_HAS_FMA);
  HAS("avx512f", STIC_HAS_AVX512F);
  HAS("avx512bw", STIC_HAS_AVX512BW);
  HAS("avx512vl", STIC_HAS_AVX512VL);
  HAS("avx512vnni", STIC_HAS_AVX512_VNNI);
  HAS("avx512vbmi", STIC_HAS_AVX512_VBMI);
#undef HAS
  /* gcc 10 and older know no names for these; without AVX the system does not save their registers. */
  uint32_t a, b, c, d;
  if (!__builtin_cpu_supports("avx")) return found;
  if (__get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1)) found |= 1u << STIC_HAS_F16C;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    const uint32_t last = a;
    if (c >> 8 & 1) found |= 1u << STIC_HAS_GFNI;
    if (last >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1)) found |= 1u << STIC_HAS_AVX_VNNI;
  }
#elif defined(__aarch64__) && defined(__linux__)
  const unsigned long capabilities = getauxval(AT_HWCAP);
  if (capabilities >> 1 & 1) found |= 1u << STIC_HAS_ASIMD;
  if (capabilities >> 20 & 1) found |= 1u << STIC_HAS_ASIMDDP;
  if (getauxval(AT_HWCAP2) >> 13 & 1) found |= 1u << STIC_HAS_I8MM;
#endif
  return found;
}

int stic_open_direct(const char *path) {
#if defined(O_DIRECT)
  return open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
#else
  (void)path;
  errno = EINVAL;
  return -1;
#endif
}

void stic_forget_cached(int file, uint64_t offset, uint64_t bytes) {
#if defined(POSIX_FADV_DONTNEED)
  posix_fadvise(file, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
#else
  (void)file, (void)offset, (void)bytes;
#endif
}

#if defined(__linux__)
enum { POPULATE_WRITE = 23 }; /* MADV_POPULATE_WRITE, since Linux 5.14; headers may be older than the system */
#endif

void *stic_reserve(size_t bytes) {
  void *address = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return address == MAP_FAILED ? NULL : address;
}

/* Whole pages around `bytes` from `address`. */
static uintptr_t pages_around(void *address, size_t bytes, size_t *size) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)address / page * page;
  *size = ((uintptr_t)address + bytes + page - 1) / page * page - first;
  return first;
}

bool stic_allow(void *address, size_t bytes) {
  size_t size;
  const uintptr_t first = pages_around(address, bytes, &size);
  return !mprotect((void *)first, size, PROT_READ | PROT_WRITE);
}

bool stic_fill(void *address, size_t bytes) {
  if (!stic_allow(address, bytes)) return false;
  size_t size;
  const uintptr_t first = pages_around(address, bytes, &size), page = (uintptr_t)sysconf(_SC_PAGESIZE);
  /* All pages at once: the memory that is claimed is held from the start, and no run pays for page faults. */
#if defined(__linux__)
  if (!madvise((void *)first, size, POPULATE_WRITE)) return true;
#endif
  for (uintptr_t at = first; at < first + size; at += page) *(volatile uint8_t *)at += 0;
  return true;
}

void *stic_map(size_t bytes) {
  void *address = stic_reserve(bytes);
  if (!address || stic_fill(address, bytes)) return address;
  stic_unmap(address, bytes);
  return NULL;
}

void stic_unmap(void *address, size_t bytes) {
  if (address) munmap(address, bytes);
}

void stic_discard(void *address, size_t bytes) {
  /* The system would round to whole pages by itself, but at the end upwards: into what is still used. */
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = ((uintptr_t)address + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)address + bytes) / page * page;
#if defined(__linux__)
  if (first < end) madvise((void *)first, end - first, MADV_DONTNEED);
#else
  if (first < end) memset((void *)first, 0, end - first);
#endif
}

uint64_t stic_peak_rss_bytes(void) {
  unsigned long long kib = 0;
  char line[128];
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %llu kB", &kib) == 1) break;
  if (file) fclose(file);
  return kib * 1024;
}
