/* Launches, and the events by which the trace knows when they ran. */
#include "gpu.h"

const stic_gpu_kernel stic_gpu_kernels[STIC_KERNELS_OF_GPU] = {
#define KERNEL(suffix, width) \
  [STIC_KERNEL_gemm_##suffix] = {"stic_gemm_" #suffix, STIC_GPU_PRODUCT_OBJECTS, STIC_GPU_PRODUCT_SCALARS, width}, \
  [STIC_KERNEL_gemv_##suffix] = {"stic_gemv_" #suffix, STIC_GPU_PRODUCT_OBJECTS, STIC_GPU_PRODUCT_SCALARS, width},
    STIC_GPU_PRODUCTS(KERNEL)
#undef KERNEL
#define KERNEL(suffix, objects, scalars) [STIC_KERNEL_##suffix] = {"stic_" #suffix, objects, scalars, 0},
        STIC_GPU_STAGES(KERNEL)
#undef KERNEL
};

void stic_gpu_begin_stage(stic_gpu *gpu, uint32_t kind, int32_t layer) {
  if (gpu->stage_count < gpu->stage_capacity)
    gpu->stages[gpu->stage_count++] = (stic_gpu_stage){kind, layer, NULL, NULL};
}

/* A stage keeps its first and its latest event. */
static void keep(stic_gpu *gpu, cl_event event) {
  stic_gpu_stage *stage = &gpu->stages[gpu->stage_count - 1];
  if (!stage->first)
    stage->first = event;
  else if (stage->last != stage->first)
    gpu->cl->ReleaseEvent(stage->last);
  stage->last = event;
}

stic_status stic_gpu_launch(stic_gpu *gpu, uint32_t kernel, const uint32_t units[2], const cl_mem *objects,
                            const int32_t *scalars, stic_error *error) {
  const stic_opencl *cl = gpu->cl;
  const cl_kernel k = gpu->kernels[kernel].kernel;
  const stic_launch *launch = gpu->kernels[kernel].launch;
  const uint32_t total[3] = {units[0], units[1], 1};
  size_t global[3], local[3];
  cl_uint argument = 0;
  cl_event event;
  stic_status status;
  for (uint32_t i = 0; i < stic_gpu_kernels[kernel].objects; i++)
    if ((status = STIC_CL(gpu, SetKernelArg(k, argument++, sizeof(cl_mem), &objects[i])))) return status;
  for (uint32_t i = 0; i < stic_gpu_kernels[kernel].scalars; i++)
    if ((status = STIC_CL(gpu, SetKernelArg(k, argument++, sizeof(int32_t), &scalars[i])))) return status;
  for (int axis = 0; axis < 3; axis++) {
    local[axis] = launch->local[axis];
    global[axis] = ((size_t)total[axis] + launch->group[axis] - 1) / launch->group[axis] * local[axis];
  }
  const uint64_t before = stic_trace_now(gpu->trace);
  cl_int code = cl->EnqueueNDRangeKernel(gpu->queue, k, 3, NULL, global, local, 0, NULL, &event);
  if (code)
    return stic_fail(error, STIC_GPU, "kernel %s could not be launched (%s) on %s", launch->name,
                     stic_opencl_error(code), gpu->device_text);
  /* The device notes the same moment by its own clock; stic_gpu_end compares them. */
  if (!gpu->first_queued_ns) gpu->first_queued_ns = before + (stic_trace_now(gpu->trace) - before) / 2;
  keep(gpu, event);
  return STIC_OK;
}
