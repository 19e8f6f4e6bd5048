/* The device's memory: weights that storage is read into, state, a copy of the trunk, the table of codes.
 *
 * Weights lie in memory that the driver allocates (CL_MEM_ALLOC_HOST_PTR: "the preferred method", Arm Mali GPU OpenCL
 * Developer Guide, 8.3.2, also for I/O devices, 8.3.5). Every mapping must then give the same address, because a layer
 * of the CPU keeps pointers into it, and storage must be able to read past the page cache into it. Where either fails,
 * the arena's own pages are the object (CL_MEM_USE_HOST_PTR), whose address the specification fixes (OpenCL 1.2,
 * 5.4.2.1: the pointer returned is derived from host_ptr). */
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "io.h"

static size_t weights_bytes(const stic_gpu *gpu) { return (size_t)stic_weights_bytes(gpu->package); }

/* Of the object: the driver's memory may start anywhere, weights start at a whole block. */
static size_t object_bytes(const stic_gpu *gpu) { return weights_bytes(gpu) + (gpu->arena ? 0 : STIC_BLOCK); }

/* Unmap at once. */
static stic_status unmap(stic_gpu *gpu, void *address, stic_error *error) {
  const stic_status status = STIC_CL(gpu, EnqueueUnmapMemObject(gpu->mappings, gpu->weights, address, 0, NULL, NULL));
  return status ? status : STIC_CL(gpu, Finish(gpu->mappings));
}

/* Map bytes of the object; *address stays NULL on failure. */
static stic_status map(stic_gpu *gpu, size_t offset, size_t bytes, void **address, stic_error *error) {
  cl_int code;
  *address =
      gpu->cl->EnqueueMapBuffer(gpu->mappings, gpu->weights, 1, CL_MAP_WRITE, offset, bytes, 0, NULL, NULL, &code);
  if (code) *address = NULL;
  return stic_gpu_check(gpu, code, "clEnqueueMapBuffer", error);
}

/* One block, read from the end of the file to where weights will be. */
static bool can_read_into(const stic_source *probe, uint64_t file_bytes, uint8_t *address) {
  stic_error ignored;
  return file_bytes < STIC_BLOCK ||
         stic_files_read(probe, "shards.bin", file_bytes - STIC_BLOCK, STIC_BLOCK, address, &ignored) == STIC_OK;
}

/* Learn the address of the weights, and see that the middle of them is mapped where it should be. */
static stic_status learn(stic_gpu *gpu, const stic_source *probe, stic_error *error) {
  const size_t bytes = weights_bytes(gpu), middle = bytes / 2 / STIC_BLOCK * STIC_BLOCK;
  void *whole, *part;
  stic_status status = map(gpu, 0, object_bytes(gpu), &whole, error);
  if (status) return status;
  gpu->base = (uint8_t *)whole + (STIC_BLOCK - (uintptr_t)whole % STIC_BLOCK) % STIC_BLOCK;
  gpu->shift = (uint32_t)(gpu->base - (uint8_t *)whole);
  if (gpu->shift % STIC_ALIGN || (gpu->arena && gpu->shift)) {
    unmap(gpu, whole, error);
    return stic_fail(error, STIC_GPU, "%s maps memory at an address that no kernel's loads are aligned for",
                     gpu->device_text);
  }
  const bool readable = !probe || can_read_into(probe, gpu->package->shards->bytes, gpu->base);
  if ((status = unmap(gpu, whole, error))) return status;
  if (!readable)
    return stic_fail(error, STIC_GPU, "storage cannot be read past the page cache into memory of %s", gpu->device_text);
  if ((status = map(gpu, gpu->shift + middle, bytes - middle, &part, error))) return status;
  const bool stays = part == gpu->base + middle;
  if ((status = unmap(gpu, part, error))) return status;
  if (!stays) return stic_fail(error, STIC_GPU, "%s maps the same memory at changing addresses", gpu->device_text);
  return STIC_OK;
}

stic_status stic_gpu_take_weights(stic_gpu *gpu, uint8_t *arena, const stic_source *probe, stic_error *error) {
  const cl_bitfield kind = arena ? CL_MEM_USE_HOST_PTR : CL_MEM_ALLOC_HOST_PTR;
  cl_int code;
  gpu->arena = arena;
  gpu->weights = gpu->cl->CreateBuffer(gpu->context, CL_MEM_READ_ONLY | kind, object_bytes(gpu), arena, &code);
  if (code) gpu->weights = NULL;
  stic_status status = stic_gpu_check(gpu, code, "clCreateBuffer", error);
  if (!status) status = learn(gpu, probe, error);
  if (status) {
    stic_gpu_drop_weights(gpu);
    return status;
  }
  gpu->io->weights = gpu->base;
  stic_gpu_place_codes(gpu);
  return STIC_OK;
}

void stic_gpu_drop_weights(stic_gpu *gpu) {
  if (gpu->weights) gpu->cl->ReleaseMemObject(gpu->weights);
  gpu->weights = NULL;
  gpu->base = NULL;
}

static stic_status take(stic_gpu *gpu, cl_bitfield flags, uint64_t bytes, cl_mem *object, stic_error *error) {
  cl_int code;
  *object = gpu->cl->CreateBuffer(gpu->context, flags, (size_t)bytes, NULL, &code);
  if (code) *object = NULL;
  return stic_gpu_check(gpu, code, "clCreateBuffer", error);
}

/* Fill an object from its start; with zeros where `from` is NULL. */
static stic_status fill(stic_gpu *gpu, cl_mem object, const void *from, uint64_t bytes, stic_error *error) {
  cl_int code;
  void *to = gpu->cl->EnqueueMapBuffer(gpu->queue, object, 1, CL_MAP_WRITE, 0, (size_t)bytes, 0, NULL, NULL, &code);
  stic_status status = stic_gpu_check(gpu, code, "clEnqueueMapBuffer", error);
  if (status) return status;
  if (from)
    memcpy(to, from, (size_t)bytes);
  else
    memset(to, 0, (size_t)bytes);
  status = STIC_CL(gpu, EnqueueUnmapMemObject(gpu->queue, object, to, 0, NULL, NULL));
  return status ? status : STIC_CL(gpu, Finish(gpu->queue));
}

uint64_t stic_gpu_bytes(const stic_gpu *gpu) {
  const stic_package *p = gpu->package;
  const uint64_t entries = (uint64_t)p->header->blocks * STIC_LAYER_MATRICES * p->most_slices;
  return p->gpu->state_bytes + p->trunk->bytes + stic_pad(entries * STIC_CODES_ENTRY * sizeof(uint32_t), STIC_BLOCK);
}

static stic_status check_sizes(const stic_gpu *gpu, stic_error *error) {
  const stic_package *p = gpu->package;
  const struct {
    const char *what;
    uint64_t bytes;
  } objects[] = {{"weights", stic_weights_bytes(p) + STIC_BLOCK},
                 {"activations", p->gpu->state_bytes},
                 {"trunk.bin", p->trunk->bytes}};
  for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
    if (objects[i].bytes > gpu->limits.allocation_bytes)
      return stic_fail(error, STIC_GPU,
                       "%llu bytes of %s are more than %s allocates at once (%llu): compile with less"
                       " memory",
                       (unsigned long long)objects[i].bytes, objects[i].what, gpu->device_text,
                       (unsigned long long)gpu->limits.allocation_bytes);
  const uint64_t all = stic_weights_bytes(p) + STIC_BLOCK + stic_gpu_bytes(gpu);
  if (all > gpu->limits.memory_bytes)
    return stic_fail(error, STIC_GPU, "%llu bytes are more than the memory of %s (%llu): compile with less memory",
                     (unsigned long long)all, gpu->device_text, (unsigned long long)gpu->limits.memory_bytes);
  return STIC_OK;
}

stic_status stic_gpu_take_memory(stic_gpu *gpu, const void *trunk, stic_error *error) {
  const stic_package *p = gpu->package;
  const uint64_t codes = stic_gpu_bytes(gpu) - p->gpu->state_bytes - p->trunk->bytes;
  const cl_bitfield shared = CL_MEM_ALLOC_HOST_PTR; /* the host writes to it without a copy */
  stic_status status;
  if ((status = check_sizes(gpu, error))) return status;
  if ((status = take(gpu, CL_MEM_READ_WRITE | shared, p->gpu->state_bytes, &gpu->state, error)) ||
      (status = take(gpu, CL_MEM_READ_ONLY | shared, p->trunk->bytes, &gpu->trunk, error)) ||
      (status = take(gpu, CL_MEM_READ_ONLY, codes, &gpu->codes, error)))
    return status;
  if ((status = fill(gpu, gpu->state, NULL, p->gpu->state_bytes, error))) return status;
  if ((status = fill(gpu, gpu->trunk, trunk, p->trunk->bytes, error))) return status;
  for (uint32_t r = 0; r < STIC_GPU_REGIONS; r++) {
    const cl_buffer_region place = {(size_t)p->state[r].offset, (size_t)p->state[r].bytes};
    cl_int code;
    gpu->regions[r] =
        gpu->cl->CreateSubBuffer(gpu->state, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &place, &code);
    if (code) gpu->regions[r] = NULL;
    if ((status = stic_gpu_check(gpu, code, "clCreateSubBuffer", error))) return status;
  }
  return STIC_OK;
}
