/* The device, what it allows, and how it multiplies. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"

enum { MOST_PLATFORMS = 16, MOST_DEVICES = 16, MOST_EXTENSIONS_BYTES = 16384 };

stic_status stic_gpu_check(stic_gpu *gpu, cl_int code, const char *call, stic_error *error) {
  if (code == CL_SUCCESS) return STIC_OK;
  return stic_fail(error, STIC_GPU, "%.*s failed with %s on %s", (int)strcspn(call, "("), call, stic_opencl_error(code),
                   gpu->device_text[0] ? gpu->device_text : "the GPU");
}

static void text_of(const stic_opencl *cl, cl_device_id device, cl_uint what, char *text, size_t size) {
  text[0] = 0;
  if (cl->GetDeviceInfo(device, what, size, text, NULL)) text[0] = 0;
  text[size - 1] = 0;
}

/* The first device whose name holds $STIC_OPENCL_DEVICE; without it the first GPU, else the first of any kind. */
static stic_status choose(stic_gpu *gpu, stic_error *error) {
  const stic_opencl *cl = gpu->cl;
  const char *wanted = getenv("STIC_OPENCL_DEVICE");
  cl_platform_id platforms[MOST_PLATFORMS];
  cl_uint platform_count = 0, count;
  /* An ICD loader without drivers answers with an error of its own (CL_PLATFORM_NOT_FOUND_KHR). */
  if (cl->GetPlatformIDs(MOST_PLATFORMS, platforms, &platform_count)) platform_count = 0;
  for (cl_uint p = 0; p < platform_count && p < MOST_PLATFORMS; p++) {
    cl_device_id devices[MOST_DEVICES];
    if (cl->GetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MOST_DEVICES, devices, &count)) continue;
    for (cl_uint d = 0; d < count && d < MOST_DEVICES; d++) {
      char name[256];
      cl_bitfield type = 0;
      text_of(cl, devices[d], CL_DEVICE_NAME, name, sizeof name);
      cl->GetDeviceInfo(devices[d], CL_DEVICE_TYPE, sizeof type, &type, NULL);
      const bool fits = wanted ? strstr(name, wanted) != NULL : (type & CL_DEVICE_TYPE_GPU) != 0;
      if (fits || (!wanted && !gpu->device)) gpu->device = devices[d];
      if (fits) return STIC_OK;
    }
  }
  if (wanted && !gpu->device)
    return stic_fail(error, STIC_GPU, "no OpenCL device has \"%s\" ($STIC_OPENCL_DEVICE) in its name", wanted);
  if (!gpu->device) return stic_fail(error, STIC_GPU, "OpenCL reports no device: is the GPU's driver installed?");
  return STIC_OK;
}

static bool has_word(const char *text, const char *word) {
  const size_t length = strlen(word);
  for (const char *at = text; (at = strstr(at, word)); at += length)
    if ((at == text || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return true;
  return false;
}

/* What the device multiplies int8 with; 0: nothing of its own. The numbers are kernels.cl's. */
static uint32_t dot_product(const stic_gpu *gpu, char *extensions) {
  static const struct {
    const char *extension;
    uint32_t dot, version;
  } known[] = {{"cl_arm_integer_dot_product_accumulate_int8", 2, 12},
               {"cl_khr_integer_dot_product", 1, 30}, /* a feature of OpenCL C 3.0 */
               {"cl_qcom_dot_product8", 3, 12}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (gpu->version >= known[i].version && has_word(extensions, known[i].extension)) return known[i].dot;
  return 0;
}

static stic_status ask(stic_gpu *gpu, uint32_t arithmetic, stic_error *error) {
  const stic_opencl *cl = gpu->cl;
  stic_gpu_limits *l = &gpu->limits;
  char name[128], vendor[128], driver[128], version[128];
  text_of(cl, gpu->device, CL_DEVICE_NAME, name, sizeof name);
  text_of(cl, gpu->device, CL_DEVICE_VENDOR, vendor, sizeof vendor);
  text_of(cl, gpu->device, CL_DRIVER_VERSION, driver, sizeof driver);
  text_of(cl, gpu->device, CL_DEVICE_VERSION, version, sizeof version);
  snprintf(gpu->device_text, sizeof gpu->device_text, "%s, driver %s", name, driver);
  snprintf(gpu->key, sizeof gpu->key, "device %s\nvendor %s\ndriver %s\nversion %s\n", name, vendor, driver, version);
  unsigned major = 1, minor = 1;
  if (sscanf(version, "OpenCL %u.%u", &major, &minor) != 2) major = minor = 1;
  gpu->version = 10 * major + minor;
  if (gpu->version < 12)
    return stic_fail(error, STIC_GPU, "%s has OpenCL %u.%u; this engine needs 1.2", gpu->device_text, major, minor);
  const struct {
    cl_uint what;
    size_t size;
    void *place;
  } numbers[] = {{CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof l->allocation_bytes, &l->allocation_bytes},
                 {CL_DEVICE_GLOBAL_MEM_SIZE, sizeof l->memory_bytes, &l->memory_bytes},
                 {CL_DEVICE_LOCAL_MEM_SIZE, sizeof l->local_bytes, &l->local_bytes},
                 {CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof l->group_items, &l->group_items},
                 {CL_DEVICE_MAX_WORK_ITEM_SIZES, sizeof l->items, l->items},
                 {CL_DEVICE_MEM_BASE_ADDR_ALIGN, sizeof l->align_bits, &l->align_bits}};
  stic_status status;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if ((status = STIC_CL(gpu, GetDeviceInfo(gpu->device, numbers[i].what, numbers[i].size, numbers[i].place, NULL))))
      return status;
  if (l->align_bits > 8 * STIC_BLOCK)
    return stic_fail(error, STIC_GPU, "%s wants parts of memory objects to start at multiples of %u bytes, not %u",
                     name, l->align_bits / 8, STIC_BLOCK);
  char *extensions = calloc(MOST_EXTENSIONS_BYTES, 1);
  if (!extensions) return stic_fail(error, STIC_OUT_OF_MEMORY, "no memory for the list of the GPU's extensions");
  text_of(cl, gpu->device, CL_DEVICE_EXTENSIONS, extensions, MOST_EXTENSIONS_BYTES);
  gpu->may_be_float = arithmetic != 2;
  gpu->dot = arithmetic == 1 ? 0 : dot_product(gpu, extensions);
  if (arithmetic == 2 && gpu->dot == 0) gpu->dot = 4; /* plain C */
  free(extensions);
  return STIC_OK;
}

stic_status stic_gpu_find_device(stic_gpu *gpu, uint32_t arithmetic, stic_error *error) {
  stic_status status;
  cl_int code;
  if (!(gpu->cl = stic_opencl_load(error))) return error->status;
  if ((status = choose(gpu, error))) return status;
  if ((status = ask(gpu, arithmetic, error))) return status;
  gpu->context = gpu->cl->CreateContext(NULL, 1, &gpu->device, NULL, NULL, &code);
  if ((status = stic_gpu_check(gpu, code, "clCreateContext", error))) return status;
  gpu->queue = gpu->cl->CreateCommandQueue(gpu->context, gpu->device, CL_QUEUE_PROFILING_ENABLE, &code);
  if ((status = stic_gpu_check(gpu, code, "clCreateCommandQueue", error))) return status;
  gpu->mappings = gpu->cl->CreateCommandQueue(gpu->context, gpu->device, 0, &code);
  return stic_gpu_check(gpu, code, "clCreateCommandQueue", error);
}
