/* Layers on a GPU, through OpenCL.
 *
 * The weights' stretch of the arena is then one memory object that GPU, IO lanes and CPU share: a lane maps an extent,
 * reads into it and unmaps it; compute puts a barrier for those unmappings before the layer. Commands go to two in-order
 * queues, mappings and kernels. A layer's kernels are enqueued as soon as its weights are there, while the layer before
 * may still run; what lies free after a layer is told to the lanes by a callback of its last kernel.
 *
 * By the letter of OpenCL (1.2, 5.4.3) a kernel must not read an object while any part of it is mapped for writing. The
 * engine relies on less: parts that are mapped while a kernel runs are never among those it reads, and where GPU and
 * CPU share memory, mapping is maintenance of caches for a range. One object for each extent would be within the letter,
 * but a kernel reads from a hundred of them. */
#ifndef STIC_GPU_H
#define STIC_GPU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "files.h"
#include "gpu_kernels.h"
#include "opencl.h"
#include "platform.h"
#include "trace.h"

typedef struct stic_io stic_io;
typedef struct stic_session stic_session;

/* What the device allows. */
typedef struct stic_gpu_limits {
  cl_ulong allocation_bytes, memory_bytes, local_bytes;
  size_t group_items, items[3];
  cl_uint align_bits; /* of the start of a part of a memory object */
} stic_gpu_limits;

/* A stage of a run, for the trace: its first and its last kernel. */
typedef struct stic_gpu_stage {
  uint32_t kind;
  int32_t layer;
  cl_event first, last; /* the same where there is one */
} stic_gpu_stage;

/* What the callback of a layer's last kernel is given. */
typedef struct stic_gpu_layer_end {
  struct stic_gpu *gpu;
  uint32_t computed; /* layers below this one have been computed */
} stic_gpu_layer_end;

typedef struct stic_gpu {
  bool on;               /* else nothing below is set, except `device_text` */
  bool lost;             /* a command failed: no run can succeed any more */
  char device_text[560]; /* the device and its driver, or why there is none */
  const stic_opencl *cl;
  const stic_package *package;
  const uint64_t *record_at; /* the session's */
  stic_io *io;
  stic_trace *trace;

  /* gpu_device.c */
  cl_device_id device;
  char key[1024];   /* device, driver and versions: what a compiled program depends on */
  uint32_t version; /* of OpenCL, 10 * major + minor */
  stic_gpu_limits limits;
  uint32_t dot;      /* STIC_DOT: 0 float arithmetic, else what multiplies int8 */
  bool may_be_float; /* int8 was not asked for */
  cl_context context;
  cl_command_queue queue, mappings;

  /* gpu_program.c */
  uint32_t builds; /* programs compiled from source */
  struct {
    cl_kernel kernel;
    const stic_launch *launch;
  } kernels[STIC_KERNELS_OF_GPU];

  /* gpu_memory.c */
  pthread_mutex_t mutex; /* guards `map` */
  cl_mem weights, state, trunk, codes, regions[STIC_GPU_REGIONS];
  uint8_t *arena;      /* the weights lie in it where the driver's own memory does not do; else NULL */
  uint8_t *base;       /* address of the weights wherever they are mapped */
  uint32_t shift;      /* of it in the memory object */
  void **map;          /* [extents] NULL: not mapped */
  cl_event *ready;     /* [extents] unmapped, and no layer waits for it yet */
  cl_event *wait_list; /* [extents] */

  /* gpu_codes.c */
  uint32_t *entries;      /* [layers][STIC_LAYER_MATRICES][slices][12], what `codes` holds */
  _Atomic uint8_t *stale; /* [layers] 1: changed since it was written to `codes` */

  /* A run. */
  stic_gpu_stage *stages;
  uint32_t stage_capacity, stage_count;
  uint64_t first_queued_ns; /* when the first kernel was, in the trace's time */
  stic_gpu_layer_end *ends; /* [layers] */
  stic_word under_way;      /* layers enqueued and not reported by their callback */
  _Atomic uint64_t idle_ns; /* when the last of them was, in the trace's time */
  _Atomic int32_t failure;  /* of a command, as its event tells it */
} stic_gpu;

enum { STIC_CODES_ENTRY = 12 }; /* uint32 for each matrix of a slice */

#define STIC_CL(gpu, call) stic_gpu_check(gpu, (gpu)->cl->call, "cl" #call, error)

/* STIC_OK, or STIC_GPU with the sentence that function `call` failed; its arguments are cut off. */
stic_status stic_gpu_check(stic_gpu *gpu, cl_int code, const char *call, stic_error *error);

/* Choose a device and an arithmetic (0: as the device has it, 1: float, 2: int8); make queues (gpu_device.c). */
stic_status stic_gpu_find_device(stic_gpu *gpu, uint32_t arithmetic, stic_error *error);

/* Load the program for this device from the package's folder, or compile it and leave it there; make its kernels and
 * hold their launches against the device's limits (gpu_program.c, gpu_cache.c). */
stic_status stic_gpu_make_program(stic_gpu *gpu, const char *path, stic_error *error);
cl_program stic_gpu_cache_read(stic_gpu *gpu, const char *path, const char *options);
void stic_gpu_cache_write(stic_gpu *gpu, const char *path, const char *options, cl_program program);

/* Take the object for weights, at first and after an eviction, and give it up. `probe` is read from to see whether
 * storage can read straight into it; NULL: not again (gpu_memory.c). */
stic_status stic_gpu_take_weights(stic_gpu *gpu, uint8_t *arena, const stic_source *probe, stic_error *error);
void stic_gpu_drop_weights(stic_gpu *gpu);
stic_status stic_gpu_take_memory(stic_gpu *gpu, const void *trunk, stic_error *error);
uint64_t stic_gpu_bytes(const stic_gpu *gpu);

/* An extent is about to be read: its place may be written to. It has been read and checked: hand it to the GPU, if its
 * layer runs there (gpu_mapping.c). Any thread. */
stic_status stic_gpu_open_extent(stic_gpu *gpu, uint32_t extent, stic_error *error);
stic_status stic_gpu_close_extent(stic_gpu *gpu, uint32_t extent, stic_error *error);

/* Before a layer's kernels: wait on the device for its extents. After a layer on the CPU: its streamed extents' places
 * are free. After a pass that failed: unmap what was left. */
stic_status stic_gpu_await_extents(stic_gpu *gpu, uint32_t layer, stic_error *error);
stic_status stic_gpu_release_extents(stic_gpu *gpu, uint32_t layer, stic_error *error);
void stic_gpu_unmap_rest(stic_gpu *gpu);

/* Where the parts of a layer's records are: all that the plan knows; what a record tells when it was read; write it to
 * the device if it changed (gpu_codes.c). */
void stic_gpu_place_codes(stic_gpu *gpu);
void stic_gpu_note_record(stic_gpu *gpu, const stic_extent *extent, uint32_t slice, const uint8_t *record);
stic_status stic_gpu_write_codes(stic_gpu *gpu, uint32_t layer, stic_error *error);

/* Enqueue one kernel for so many units of work; its event goes to the stage under way (gpu_launch.c). */
void stic_gpu_begin_stage(stic_gpu *gpu, uint32_t kind, int32_t layer);
stic_status stic_gpu_launch(stic_gpu *gpu, uint32_t kernel, const uint32_t units[2], const cl_mem *objects,
                            const int32_t *scalars, stic_error *error);

/* Enqueue what embeds n tokens; what brings hidden states here from region `x` of the arena; what brings them back, and
 * wait for it; the stages of a layer (gpu_input.c, gpu_layer.c). */
stic_status stic_gpu_embed(stic_gpu *gpu, const void *rows, const int32_t *types, uint32_t n, stic_error *error);
stic_status stic_gpu_give(stic_gpu *gpu, const float *x, uint32_t n, stic_error *error);
stic_status stic_gpu_fetch(stic_gpu *gpu, float *x, uint32_t n, stic_error *error);
stic_status stic_gpu_layer_stages(stic_gpu *gpu, uint32_t layer, uint32_t n, stic_error *error);

/* Run a layer whose extents have been read; `computed` layers have been computed when it is done. Returns when it is
 * enqueued (gpu_run.c, as what follows). */
stic_status stic_gpu_compute_layer(stic_gpu *gpu, uint32_t layer, uint32_t computed, uint32_t n, stic_error *error);

/* Since when the GPU has had nothing to do, at the earliest `begin_ns`, in the trace's time; UINT64_MAX: it is busy. */
uint64_t stic_gpu_idle_since(const stic_gpu *gpu, uint64_t begin_ns);

/* Before a run, and, once all commands are done, after it; where it failed, every extent is unmapped that is not held
 * on to. `status` is the run's; the run's length bounds the events that the trace gets. */
stic_status stic_gpu_begin(stic_gpu *gpu, stic_error *error);
stic_status stic_gpu_finish(stic_gpu *gpu, stic_error *error);
void stic_gpu_end(stic_gpu *gpu, stic_status status, uint64_t run_ns);

/* Empty the preload buffer: the weights' object goes as a whole. */
void stic_gpu_evict(stic_gpu *gpu);

/* Open the device for a package whose bookkeeping the session has taken, and close it, in whatever state (gpu.c).
 * `arena` may be made the weights' memory: it is filled then. */
stic_status stic_gpu_open(stic_gpu *gpu, const char *path, uint32_t arithmetic, uint8_t *arena, stic_source *shards,
                          const void *trunk, stic_error *error);
void stic_gpu_close(stic_gpu *gpu);

/* Whether a layer runs on the GPU. */
static inline bool stic_gpu_runs(const stic_gpu *gpu, uint32_t layer) {
  return gpu->on && gpu->package->places[layer] == STIC_ON_GPU;
}

#endif
