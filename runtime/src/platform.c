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

void stic_wait(stic_word *word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

void stic_wake_all(stic_word *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

enum { BITS = 8 * sizeof(unsigned long) };

stic_cpus stic_cpus_allowed(void) {
  stic_cpus found = {{0}, 0};
  if (syscall(SYS_sched_getaffinity, 0, sizeof found.mask, found.mask) < 0) return found;
  for (size_t i = 0; i < sizeof found.mask / sizeof *found.mask; i++)
    found.count += (uint32_t)__builtin_popcountl(found.mask[i]);
  return found;
}

int stic_cpu_now(void) {
  unsigned cpu = 0;
  return syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 ? (int)cpu : -1;
}

int32_t stic_thread_id(void) { return (int32_t)syscall(SYS_gettid); }

void stic_keep_off(int32_t thread, const stic_cpus *allowed, int cpu) {
  stic_cpus left = *allowed;
  const size_t word = (size_t)cpu / BITS;
  if (word < sizeof left.mask / sizeof *left.mask) left.mask[word] &= ~(1ul << (size_t)cpu % BITS);
  syscall(SYS_sched_setaffinity, thread, sizeof left.mask, left.mask);
}
#else
stic_cpus stic_cpus_allowed(void) { return (stic_cpus){{0}, 0}; }
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
  uint32_t a = 1, b, c = 0, d; /* gcc 10 and older know no name for F16C */
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if ((c >> 29 & 1) && __builtin_cpu_supports("avx")) found |= 1u << STIC_HAS_F16C;
#elif defined(__aarch64__) && defined(__linux__)
  const unsigned long capabilities = getauxval(AT_HWCAP);
  if (capabilities >> 1 & 1) found |= 1u << STIC_HAS_ASIMD;
  if (capabilities >> 20 & 1) found |= 1u << STIC_HAS_ASIMDDP;
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

#if !defined(MAP_POPULATE)
#define MAP_POPULATE 0
#endif

void *stic_map(size_t bytes) {
  /* All pages at once: the memory that is claimed is held from the start, and no run pays for page faults. */
  void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  return address == MAP_FAILED ? NULL : address;
}

void stic_unmap(void *address, size_t bytes) {
  if (address) munmap(address, bytes);
}

void stic_discard(void *address, size_t bytes) {
#if defined(__linux__)
  madvise(address, bytes, MADV_DONTNEED);
#else
  memset(address, 0, bytes);
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
