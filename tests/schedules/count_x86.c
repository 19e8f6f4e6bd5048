/* Count the instructions that a kernel executes on x86-64, by single steps: exact, the same in every run, and for every
   extension that the processor has. Linked with driver.c, whose mark() this replaces.

   Between two marks the trap flag is set, so that the processor raises SIGTRAP after every instruction; the handler
   counts. For every second mark the file named by STIC_COUNTS gets a line with the instructions since the mark before
   it. A step takes some microseconds, but only what lies between marks is stepped through. No tracer is involved, so
   it works where ptrace is refused. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

/* Change the flags on the stack, below the 128 bytes that the ABI lets a function use without asking. */
#define FLAGS(change) "leaq -128(%%rsp), %%rsp\n\tpushfq\n\t" change "\n\tpopfq\n\tleaq 128(%%rsp), %%rsp"

void mark(void);

static volatile unsigned long long executed;

static void step(int signal) {
  (void)signal;
  executed++;
}

void mark(void) {
  static FILE *counts;
  static int counting;
  if (counting) {
    __asm__ volatile(FLAGS("andq $~0x100, (%%rsp)")::: "cc", "memory");
    counting = 0;
    fprintf(counts, "%llu\n", executed);
    fflush(counts);
    return;
  }
  if (counts == NULL) {
    struct sigaction action = {.sa_handler = step};
    const char *name = getenv("STIC_COUNTS");
    if (name == NULL || (counts = fopen(name, "w")) == NULL || sigaction(SIGTRAP, &action, NULL) != 0) {
      fprintf(stderr, "count_x86: STIC_COUNTS must name a file that can be written\n");
      exit(2);
    }
  }
  counting = 1;
  executed = 0;
  __asm__ volatile(FLAGS("orq $0x100, (%%rsp)")::: "cc", "memory");
}
