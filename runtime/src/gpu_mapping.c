/* Extents of the weights' object, mapped while they are read, and for as long as a layer on the CPU uses them. */
#include "gpu.h"
#include "io.h"

stic_status stic_gpu_open_extent(stic_gpu *gpu, uint32_t extent, stic_error *error) {
  const stic_extent *e = &gpu->package->extents[extent];
  /* What was there before is not wanted: nothing need be brought to the host. A layer on the CPU reads, too. */
  const bool on_gpu = stic_gpu_runs(gpu, e->block);
  const cl_bitfield use = on_gpu ? CL_MAP_WRITE_INVALIDATE_REGION : CL_MAP_READ | CL_MAP_WRITE;
  stic_status status = STIC_OK;
  pthread_mutex_lock(&gpu->mutex);
  if (!gpu->map[extent]) {
    cl_int code;
    void *address = gpu->cl->EnqueueMapBuffer(gpu->mappings, gpu->weights, 1, use,
                                              (size_t)(gpu->shift + e->destination), e->bytes, 0, NULL, NULL, &code);
    status = stic_gpu_check(gpu, code, "clEnqueueMapBuffer", error);
    if (!status) gpu->map[extent] = address;
    if (!status && address != gpu->base + e->destination)
      status = stic_fail(error, STIC_GPU, "%s maps the same memory at changing addresses", gpu->device_text);
  }
  pthread_mutex_unlock(&gpu->mutex);
  return status;
}

/* Unmap; the device may read the extent when *done has happened, where that is asked for. */
static stic_status unmap(stic_gpu *gpu, uint32_t extent, cl_event *done, stic_error *error) {
  pthread_mutex_lock(&gpu->mutex);
  void *address = gpu->map[extent];
  gpu->map[extent] = NULL;
  stic_status status = STIC_OK;
  if (address) {
    status = STIC_CL(gpu, EnqueueUnmapMemObject(gpu->mappings, gpu->weights, address, 0, NULL, done));
    /* The compute queue must not wait for a command that stays on the host. */
    if (!status) status = STIC_CL(gpu, Flush(gpu->mappings));
  }
  pthread_mutex_unlock(&gpu->mutex);
  return status;
}

stic_status stic_gpu_close_extent(stic_gpu *gpu, uint32_t extent, stic_error *error) {
  const stic_extent *e = &gpu->package->extents[extent];
  if (!stic_gpu_runs(gpu, e->block)) return STIC_OK;
  for (uint32_t s = e->first; s < (uint32_t)e->first + e->count; s++) {
    const uint32_t r = stic_record_index(gpu->package, e->block, e->level, s);
    stic_gpu_note_record(gpu, e, s, gpu->base + gpu->record_at[r]);
  }
  return unmap(gpu, extent, &gpu->ready[extent], error);
}

static void forget(stic_gpu *gpu, uint32_t extent) {
  if (gpu->ready[extent]) gpu->cl->ReleaseEvent(gpu->ready[extent]);
  gpu->ready[extent] = NULL;
}

stic_status stic_gpu_await_extents(stic_gpu *gpu, uint32_t layer, stic_error *error) {
  cl_uint count = 0;
  for (uint32_t i = 0; i < gpu->package->plan.extents; i++)
    if (gpu->package->extents[i].block == layer && gpu->ready[i]) gpu->wait_list[count++] = gpu->ready[i];
  stic_status status = STIC_OK;
  if (count) status = STIC_CL(gpu, EnqueueBarrierWithWaitList(gpu->queue, count, gpu->wait_list, NULL));
  for (uint32_t i = 0; i < gpu->package->plan.extents && !status; i++)
    if (gpu->package->extents[i].block == layer) forget(gpu, i);
  return status;
}

stic_status stic_gpu_release_extents(stic_gpu *gpu, uint32_t layer, stic_error *error) {
  const stic_plan_entry *plan = &gpu->package->plan;
  stic_status status = STIC_OK;
  for (uint32_t i = plan->resident_extents; i < plan->extents && !status; i++)
    if (gpu->package->extents[i].block == layer) status = unmap(gpu, i, NULL, error);
  return status;
}

void stic_gpu_unmap_rest(stic_gpu *gpu) {
  const stic_plan_entry *plan = &gpu->package->plan;
  stic_error ignored;
  for (uint32_t i = 0; i < plan->extents; i++) {
    const bool kept = i < plan->resident_extents && !stic_io_missing_bytes(gpu->io, i);
    if (!kept) unmap(gpu, i, NULL, &ignored);
    if (!kept) forget(gpu, i);
  }
}
