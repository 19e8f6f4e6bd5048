/* What enters the GPU and leaves it: embedding rows, and hidden states from and to layers on the CPU. */
#include <string.h>

#include "gpu.h"

static uint32_t tiles_of(uint32_t n) { return (n + STIC_TILE - 1) / STIC_TILE; }

static size_t hidden_floats(const stic_gpu *gpu, uint32_t n) {
  return (size_t)tiles_of(n) * gpu->package->padded_hidden * STIC_TILE;
}

/* From memory that stays as it is until the run has ended. */
static stic_status write(stic_gpu *gpu, uint32_t region, const void *from, size_t bytes, stic_error *error) {
  return STIC_CL(gpu, EnqueueWriteBuffer(gpu->queue, gpu->regions[region], 0, 0, bytes, from, 0, NULL, NULL));
}

stic_status stic_gpu_embed(stic_gpu *gpu, const void *rows, const int32_t *types, uint32_t n, stic_error *error) {
  const stic_model *m = gpu->package->model;
  const uint32_t stride = gpu->package->header->row_stride;
  stic_status status;
  if ((status = write(gpu, STIC_GPU_ROWS, rows, (size_t)n * stride, error))) return status;
  if ((status = write(gpu, STIC_GPU_TYPES, types, n * sizeof *types, error))) return status;
  const cl_mem objects[] = {gpu->regions[STIC_GPU_ROWS], gpu->regions[STIC_GPU_TYPES], gpu->trunk, gpu->trunk,
                            gpu->regions[STIC_GPU_X]};
  const int32_t scalars[] = {(int32_t)n,
                             (int32_t)stride,
                             (int32_t)(m->position_at / sizeof(uint16_t)),
                             (int32_t)(m->token_type_at / sizeof(uint16_t)),
                             (int32_t)(m->embedding_gamma_at / sizeof(float)),
                             (int32_t)(m->embedding_beta_at / sizeof(float))};
  stic_gpu_begin_stage(gpu, STIC_EVENT_EMBED, -1);
  return stic_gpu_launch(gpu, STIC_KERNEL_embed, (uint32_t[]){tiles_of(n), 1}, objects, scalars, error);
}

stic_status stic_gpu_give(stic_gpu *gpu, const float *x, uint32_t n, stic_error *error) {
  const size_t count = hidden_floats(gpu, n);
  const cl_mem objects[] = {gpu->regions[STIC_GPU_Y], gpu->regions[STIC_GPU_X]};
  /* The host's x is written again by a later layer on the CPU, which fetches first and so waits for this. */
  const stic_status status = write(gpu, STIC_GPU_Y, x, count * sizeof *x, error);
  if (status) return status;
  stic_gpu_begin_stage(gpu, STIC_EVENT_HAND_OVER, -1);
  return stic_gpu_launch(gpu, STIC_KERNEL_narrow, (uint32_t[]){(uint32_t)count, 1}, objects,
                         (int32_t[]){(int32_t)count}, error);
}

stic_status stic_gpu_fetch(stic_gpu *gpu, float *x, uint32_t n, stic_error *error) {
  const size_t count = hidden_floats(gpu, n), bytes = count * sizeof *x;
  const cl_mem y = gpu->regions[STIC_GPU_Y], objects[] = {gpu->regions[STIC_GPU_X], y};
  stic_gpu_begin_stage(gpu, STIC_EVENT_HAND_OVER, -1);
  stic_status status = stic_gpu_launch(gpu, STIC_KERNEL_widen, (uint32_t[]){(uint32_t)count, 1}, objects,
                                       (int32_t[]){(int32_t)count}, error);
  if (status) return status;
  cl_int code;
  void *from = gpu->cl->EnqueueMapBuffer(gpu->queue, y, 1, CL_MAP_READ, 0, bytes, 0, NULL, NULL, &code);
  if ((status = stic_gpu_check(gpu, code, "clEnqueueMapBuffer", error))) return status;
  memcpy(x, from, bytes);
  return STIC_CL(gpu, EnqueueUnmapMemObject(gpu->queue, y, from, 0, NULL, NULL));
}
