/* Count the instructions that a program executes between marks, as a plugin of qemu-user (TCG plugin API 1): exact, and
   the same in every run.

   cc -shared -fPIC -o count_qemu.so count_qemu.c
   qemu-aarch64 -plugin ./count_qemu.so,counts=COUNTS PROGRAM ARGUMENTS..

   A mark is close(MARK), as in driver.c. For every second mark COUNTS gets a line with the instructions executed since
   the mark before it. Distributions ship QEMU without qemu-plugin.h, hence the prototypes. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MARK -1234
#define SYS_CLOSE 57 /* of aarch64, whatever this machine is */
#define ADD_U64 0

typedef uint64_t plugin_id;
struct block;
typedef void (*on_translation)(plugin_id, struct block *);
typedef void (*on_syscall)(plugin_id, unsigned vcpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int operation, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct block *);

int qemu_plugin_version = 1;
static uint64_t executed, at_mark;
static unsigned marks;
static FILE *counts;

static void translated(plugin_id id, struct block *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned vcpu, int64_t number, uint64_t descriptor, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)vcpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != SYS_CLOSE || (int)descriptor != MARK) return;
  if (marks++ % 2 == 1) {
    fprintf(counts, "%llu\n", (unsigned long long)(executed - at_mark));
    fflush(counts);
  }
  at_mark = executed;
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "counts=", 7) != 0 || (counts = fopen(argv[0] + 7, "w")) == NULL) {
    fprintf(stderr, "count_qemu: usage: -plugin count_qemu.so,counts=FILE\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
