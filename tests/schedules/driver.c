/* Call kernels with arguments read from a file, each buffer ending at an unreadable page.

   driver KERNELS.so CASES RESULTS; a case is: int64 name length, name, int64 count, then for each argument int64 kind
   (0 scalar, 1 buffer, 2 the same as an earlier argument), int64 value, size or number, and the bytes of a buffer. All buffers are written back in order.

   Every kernel runs between two marks, for count_x86.c and count_qemu.c to count its instructions. The first pair is
   around a function that does nothing: what a call costs by itself. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define ARGUMENTS 17
#define MARK -1234 /* a descriptor that cannot exist: closing it changes nothing */

typedef void (*kernel_fn)(long, long, long, long, long, long, long, long, long, long, long, long, long, long, long,
                          long, long);

void mark(void);

static void need(int ok, const char *what) {
  if (!ok) {
    fprintf(stderr, "driver: %s\n", what);
    exit(2);
  }
}

/* Greatest power of two up to 64 that divides the size: the buffer then ends exactly at the guard page. */
static unsigned char *guarded(size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size + page - 1) / page * page;
  unsigned char *base = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  need(base != MAP_FAILED && mprotect(base + whole, page, PROT_NONE) == 0, "no memory");
  return base + whole - size;
}

static int64_t number(FILE *file) {
  int64_t value = 0;
  need(fread(&value, sizeof value, 1, file) == 1, "case file is cut short");
  return value;
}

/* count_x86.c replaces this one; count_qemu.c sees the system call. */
__attribute__((weak)) void mark(void) { close(MARK); }

static void nothing(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, long k, long l,
                    long m, long n, long o, long p, long q) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  (void)i, (void)j, (void)k, (void)l, (void)m, (void)n, (void)o, (void)p, (void)q;
}

__attribute__((noinline)) static void call(kernel_fn kernel, const long *a) {
  mark();
  kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16]);
  mark();
}

int main(int argc, char **argv) {
  need(argc == 4, "usage: driver KERNELS.so CASES RESULTS");
  void *library = dlopen(argv[1], RTLD_NOW);
  need(library != NULL, library == NULL ? dlerror() : "");
  FILE *cases = fopen(argv[2], "rb"), *results = fopen(argv[3], "wb");
  need(cases != NULL && results != NULL, "cannot open the case or result file");
  call(nothing, (long[ARGUMENTS]){0});
  int64_t length;
  while (fread(&length, sizeof length, 1, cases) == 1) {
    char name[64] = {0};
    unsigned char *buffers[ARGUMENTS] = {0};
    size_t sizes[ARGUMENTS] = {0};
    long a[ARGUMENTS] = {0};
    need(length < 64 && fread(name, 1, (size_t)length, cases) == (size_t)length, "bad name");
    int64_t count = number(cases);
    need(count <= ARGUMENTS, "too many arguments");
    for (int i = 0; i < count; i++) {
      int64_t kind = number(cases), value = number(cases);
      a[i] = kind == 2 ? a[value] : (long)value;
      if (kind == 1) {
        sizes[i] = (size_t)value;
        buffers[i] = guarded(sizes[i]);
        need(fread(buffers[i], 1, sizes[i], cases) == sizes[i], "case file is cut short");
        a[i] = (long)(uintptr_t)buffers[i];
      }
    }
    kernel_fn kernel = (kernel_fn)dlsym(library, name);
    need(kernel != NULL, "no such kernel");
    call(kernel, a);
    for (int i = 0; i < count; i++)
      if (buffers[i] != NULL) {
        need(fwrite(buffers[i], 1, sizes[i], results) == sizes[i], "cannot write results");
        size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (sizes[i] + page - 1) / page * page;
        munmap(buffers[i] + sizes[i] - whole, whole + page);
      }
  }
  need(fclose(results) == 0, "cannot write results");
  return 0;
}
