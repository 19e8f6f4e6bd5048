/* What a run does around its layers: completion, the trace, the end. */
#include "gpu.h"
#include "io.h"

/* On a thread of the driver. A command that failed ends its layer, too; stic_gpu_finish tells. */
static void layer_done(cl_event event, cl_int code, void *argument) {
  const stic_gpu_layer_end *end = argument;
  stic_gpu *gpu = end->gpu;
  (void)event;
  if (code < 0) atomic_store(&gpu->failure, code);
  atomic_store(&gpu->idle_ns, stic_trace_now(gpu->trace));
  stic_io_computed(gpu->io, end->computed);
  if (atomic_fetch_sub(&gpu->under_way, 1) == 1) stic_wake_all(&gpu->under_way);
}

stic_status stic_gpu_compute_layer(stic_gpu *gpu, uint32_t layer, uint32_t computed, uint32_t n, stic_error *error) {
  stic_status status;
  if ((status = stic_gpu_await_extents(gpu, layer, error))) return status;
  if ((status = stic_gpu_write_codes(gpu, layer, error))) return status;
  if ((status = stic_gpu_layer_stages(gpu, layer, n, error))) return status;
  gpu->ends[layer] = (stic_gpu_layer_end){gpu, computed};
  atomic_fetch_add(&gpu->under_way, 1);
  const cl_event last = gpu->stages[gpu->stage_count - 1].last;
  status = STIC_CL(gpu, SetEventCallback(last, CL_COMPLETE, layer_done, &gpu->ends[layer]));
  if (status) atomic_fetch_sub(&gpu->under_way, 1);
  return status ? status : STIC_CL(gpu, Flush(gpu->queue));
}

uint64_t stic_gpu_idle_since(const stic_gpu *gpu, uint64_t begin_ns) {
  if (atomic_load(&gpu->under_way)) return UINT64_MAX;
  const uint64_t idle = atomic_load(&gpu->idle_ns);
  return idle > begin_ns ? idle : begin_ns;
}

stic_status stic_gpu_begin(stic_gpu *gpu, stic_error *error) {
  if (gpu->lost)
    return stic_fail(error, STIC_GPU, "%s failed in an earlier run: open the package again", gpu->device_text);
  gpu->stage_count = 0;
  gpu->first_queued_ns = 0;
  atomic_store(&gpu->idle_ns, 0);
  atomic_store(&gpu->failure, 0);
  return gpu->weights ? STIC_OK : stic_gpu_take_weights(gpu, gpu->arena, NULL, error);
}

stic_status stic_gpu_finish(stic_gpu *gpu, stic_error *error) {
  const stic_status status = STIC_CL(gpu, Finish(gpu->queue));
  /* A callback may come after its command; a device that is gone may call none. */
  for (uint32_t left; !status && (left = atomic_load(&gpu->under_way));) stic_wait(&gpu->under_way, left);
  const cl_int failure = atomic_load(&gpu->failure);
  if (!status && failure)
    return stic_fail(error, STIC_GPU, "a kernel failed with %s on %s", stic_opencl_error(failure), gpu->device_text);
  return status;
}

/* A moment of the device's clock, which counts nanoseconds from no one knows when. */
static int64_t device_time(const stic_gpu *gpu, cl_event event, cl_uint what) {
  cl_ulong time;
  return gpu->cl->GetEventProfilingInfo(event, what, sizeof time, &time, NULL) ? 0 : (int64_t)time;
}

static uint64_t bounded(int64_t ns, uint64_t latest) {
  return ns < 0 ? 0 : (uint64_t)ns < latest ? (uint64_t)ns : latest;
}

void stic_gpu_end(stic_gpu *gpu, stic_status status, uint64_t run_ns) {
  /* Both clocks have noted when the first kernel was enqueued, which puts the device's on the host's, exact to half the
   * length of that call. */
  int64_t ahead = 0;
  if (gpu->stage_count && gpu->stages[0].first)
    ahead = device_time(gpu, gpu->stages[0].first, CL_PROFILING_COMMAND_QUEUED) - (int64_t)gpu->first_queued_ns;
  for (uint32_t i = 0; i < gpu->stage_count; i++) {
    const stic_gpu_stage *stage = &gpu->stages[i];
    if (!stage->first) continue;
    if (!status) {
      const uint64_t begin = bounded(device_time(gpu, stage->first, CL_PROFILING_COMMAND_START) - ahead, run_ns);
      const uint64_t end = bounded(device_time(gpu, stage->last, CL_PROFILING_COMMAND_END) - ahead, run_ns);
      stic_trace_add(gpu->trace, (stic_event){.kind = stage->kind,
                                              .layer = stage->layer,
                                              .track = STIC_TRACK_GPU,
                                              .submit_ns = begin,
                                              .begin_ns = begin,
                                              .end_ns = end < begin ? begin : end});
    }
    if (stage->last != stage->first) gpu->cl->ReleaseEvent(stage->last);
    gpu->cl->ReleaseEvent(stage->first);
  }
  gpu->stage_count = 0;
  if (status == STIC_GPU) gpu->lost = true;
  if (status) stic_gpu_unmap_rest(gpu);
}

void stic_gpu_evict(stic_gpu *gpu) {
  const uint32_t resident = gpu->package->plan.resident_extents;
  for (uint32_t e = 0; e < resident; e++) gpu->io->present[e] = (stic_present){0, 0, 0, 0};
  stic_gpu_unmap_rest(gpu);
  if (gpu->weights) gpu->cl->Finish(gpu->mappings);
  stic_gpu_drop_weights(gpu);
  if (gpu->arena) stic_discard(gpu->arena, (size_t)stic_weights_bytes(gpu->package));
}
