/* Opening and closing the device. */
#include "gpu.h"

#include <string.h>

#include "io.h"

enum { PATIENCE_NS = 1000000000 };

/* Memory for weights: the driver's; where storage cannot be read past the page cache into it, the arena's; where that
 * cannot be shared, the driver's again, read through the page cache. */
static stic_status place_weights(stic_gpu *gpu, const char *path, uint8_t *arena, stic_source *shards,
                                 stic_error *error) {
  stic_status status = stic_gpu_take_weights(gpu, NULL, shards, error);
  if (!status) return status;
  if (stic_fill(arena, (size_t)stic_weights_bytes(gpu->package)) &&
      !(status = stic_gpu_take_weights(gpu, arena, shards, error)))
    return status;
  if (!shards->direct) return status;
  stic_discard(arena, (size_t)stic_weights_bytes(gpu->package));
  stic_files_close(shards);
  if ((status = stic_files_open(path, gpu->package->shards, true, shards, error))) return status;
  return stic_gpu_take_weights(gpu, NULL, shards, error);
}

stic_status stic_gpu_open(stic_gpu *gpu, const char *path, uint32_t arithmetic, uint8_t *arena, stic_source *shards,
                          const void *trunk, stic_error *error) {
  stic_status status;
  pthread_mutex_init(&gpu->mutex, NULL);
  if ((status = stic_gpu_find_device(gpu, arithmetic, error))) return status;
  if ((status = stic_gpu_make_program(gpu, path, error))) return status;
  if ((status = stic_gpu_take_memory(gpu, trunk, error))) return status;
  return place_weights(gpu, path, arena, shards, error);
}

void stic_gpu_close(stic_gpu *gpu) {
  const stic_opencl *cl = gpu->cl;
  if (cl) {
    if (gpu->weights) stic_gpu_evict(gpu);
    if (gpu->queue) cl->Finish(gpu->queue);
    /* A device that failed may still call back, and must find the session; one that is gone never does. */
    const uint64_t deadline = stic_now_ns() + PATIENCE_NS;
    while (atomic_load(&gpu->under_way) && stic_now_ns() < deadline) stic_sleep_until_ns(stic_now_ns() + 1000000);
    for (uint32_t k = 0; k < STIC_KERNELS_OF_GPU; k++)
      if (gpu->kernels[k].kernel) cl->ReleaseKernel(gpu->kernels[k].kernel);
    for (uint32_t r = 0; r < STIC_GPU_REGIONS; r++)
      if (gpu->regions[r]) cl->ReleaseMemObject(gpu->regions[r]);
    const cl_mem objects[] = {gpu->state, gpu->trunk, gpu->codes};
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
      if (objects[i]) cl->ReleaseMemObject(objects[i]);
    const cl_command_queue queues[] = {gpu->queue, gpu->mappings};
    for (size_t i = 0; i < sizeof queues / sizeof *queues; i++)
      if (queues[i]) cl->ReleaseCommandQueue(queues[i]);
    if (gpu->context) cl->ReleaseContext(gpu->context);
  }
  pthread_mutex_destroy(&gpu->mutex);
  gpu->on = false;
}
