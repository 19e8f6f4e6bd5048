/* kernels.cl on this device: text or cached binary, kernels, and whether the device can launch them as planned. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"

/* Bit set, as kernels.cl has it, of the widths of weights in layers on the GPU. */
static uint32_t widths_used(const stic_package *p) {
  uint32_t widths = 0;
  for (uint32_t l = 0; l < p->header->blocks; l++)
    for (uint32_t s = 0; p->places[l] == STIC_ON_GPU && s < p->kept[l].slices; s++) {
      const uint32_t bits = stic_bits(p, l, s);
      widths |= 1u << (bits == 32 ? 17 : bits);
    }
  return widths;
}

static bool is_needed(const stic_gpu *gpu, uint32_t kernel, uint32_t widths) {
  const uint32_t width = stic_gpu_kernels[kernel].width;
  if (kernel == STIC_KERNEL_quantize) return gpu->dot != 0;
  return width == 0 || widths >> (width == 32 ? 17 : width) & 1;
}

/* The kernel around the line of the first error in a compiler's log, as in "<source>:LINE:COLUMN: error"; "" if none. */
static void kernel_of_error(const char *text, const char *log, char name[static 64]) {
  const char *error = strstr(log, "error"), *line = error, *place = NULL, *at = text;
  unsigned number = 0;
  name[0] = 0;
  while (line && line > log && line[-1] != '\n') line--;
  for (; line && line < error && !number; line++)
    if (*line == ':') sscanf(line, ":%u:", &number);
  for (unsigned i = 1; at && i <= number; i++) {
    if (!strncmp(at, "__kernel", 8)) place = at;
    at = strchr(at, '\n');
    if (at) at++;
  }
  if (place) sscanf(place, "__kernel %*s %63[a-z0-9_]", name);
}

/* The device refuses the text: which kernel of it, and what its compiler says, as much as a sentence bears. */
static stic_status refused(stic_gpu *gpu, const char *text, cl_program program, cl_int code, stic_error *error) {
  enum { SHOWN = 240 };
  size_t size = 0;
  char shown[SHOWN + 1] = "", kernel[64] = "", *log = NULL;
  if (!gpu->cl->GetProgramBuildInfo(program, gpu->device, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) && size > 1 &&
      (log = calloc(size + 1, 1)) &&
      !gpu->cl->GetProgramBuildInfo(program, gpu->device, CL_PROGRAM_BUILD_LOG, size, log, NULL)) {
    const char *from = strstr(log, "error") ? strstr(log, "error") : log;
    kernel_of_error(text, log, kernel);
    snprintf(shown, sizeof shown, "%s", from);
    for (char *c = shown; *c; c++)
      if (*c == '\n' || *c == '\r' || *c == '\t') *c = ' ';
  }
  free(log);
  return stic_fail(error, STIC_GPU, "%s of kernels.cl was refused by the compiler of %s (%s)%s%s",
                   kernel[0] ? kernel : "the text", gpu->device_text, stic_opencl_error(code), shown[0] ? ": " : "",
                   shown);
}

static stic_status compile(stic_gpu *gpu, const char *text, const char *options, cl_program *program,
                           stic_error *error) {
  cl_int code;
  *program = gpu->cl->CreateProgramWithSource(gpu->context, 1, &text, NULL, &code);
  stic_status status = stic_gpu_check(gpu, code, "clCreateProgramWithSource", error);
  if (status) return status;
  gpu->builds++;
  code = gpu->cl->BuildProgram(*program, 1, &gpu->device, options, NULL, NULL);
  if (!code) return STIC_OK;
  status = refused(gpu, text, *program, code, error);
  gpu->cl->ReleaseProgram(*program);
  *program = NULL;
  return status;
}

static stic_status check_launch(stic_gpu *gpu, uint32_t number, stic_error *error) {
  const stic_launch *launch = gpu->kernels[number].launch;
  const cl_kernel kernel = gpu->kernels[number].kernel;
  const stic_gpu_limits *limits = &gpu->limits;
  cl_uint arguments = 0;
  size_t most = 0, items = 1;
  stic_status status;
  if ((status = STIC_CL(gpu, GetKernelInfo(kernel, CL_KERNEL_NUM_ARGS, sizeof arguments, &arguments, NULL))))
    return status;
  const cl_uint expected = stic_gpu_kernels[number].objects + stic_gpu_kernels[number].scalars;
  if (arguments != expected)
    return stic_fail(error, STIC_KERNELS,
                     "kernel %s takes %u arguments, not %u: compile the package again with this stic", launch->name,
                     arguments, expected);
  status =
      STIC_CL(gpu, GetKernelWorkGroupInfo(kernel, gpu->device, CL_KERNEL_WORK_GROUP_SIZE, sizeof most, &most, NULL));
  if (status) return status;
  if (most > limits->group_items) most = limits->group_items;
  for (int axis = 0; axis < 3; axis++) {
    items *= launch->local[axis];
    if (launch->local[axis] > limits->items[axis])
      return stic_fail(error, STIC_GPU, "kernel %s wants %u work-items along axis %d; %s allows %zu", launch->name,
                       launch->local[axis], axis, gpu->device_text, limits->items[axis]);
  }
  if (items > most)
    return stic_fail(error, STIC_GPU, "kernel %s wants work-groups of %zu items; %s allows %zu", launch->name, items,
                     gpu->device_text, most);
  if (launch->local_bytes > limits->local_bytes)
    return stic_fail(error, STIC_GPU, "kernel %s wants %u bytes of local memory; %s has %llu", launch->name,
                     launch->local_bytes, gpu->device_text, (unsigned long long)limits->local_bytes);
  return STIC_OK;
}

static stic_status make_kernels(stic_gpu *gpu, cl_program program, uint32_t widths, stic_error *error) {
  const stic_package *p = gpu->package;
  stic_status status;
  for (uint32_t k = 0; k < STIC_KERNELS_OF_GPU; k++) {
    if (!is_needed(gpu, k, widths)) continue;
    for (uint32_t i = 0; i < p->gpu->launches; i++)
      if (!strcmp(p->launches[i].name, stic_gpu_kernels[k].name)) gpu->kernels[k].launch = &p->launches[i];
    if (!gpu->kernels[k].launch)
      return stic_fail(error, STIC_KERNELS,
                       "the package does not say how kernel %s is launched: compile it again with"
                       " this stic",
                       stic_gpu_kernels[k].name);
    cl_int code;
    gpu->kernels[k].kernel = gpu->cl->CreateKernel(program, stic_gpu_kernels[k].name, &code);
    if (code)
      return stic_fail(error, code == CL_INVALID_KERNEL_NAME ? STIC_KERNELS : STIC_GPU,
                       "kernel %s of kernels.cl: %s on %s", stic_gpu_kernels[k].name, stic_opencl_error(code),
                       gpu->device_text);
    if ((status = check_launch(gpu, k, error))) return status;
  }
  return STIC_OK;
}

/* Ways to compile for what multiplies int8 (STIC_DOT), in order. Drivers list products that their compiler then refuses,
 * as it is or in the standard that it takes by default; float arithmetic needs no extension. */
enum { MOST_WAYS = 3 };
static const struct {
  uint32_t dot;
  const char *standard;
} ways[][MOST_WAYS] = {{{0, ""}},
                       {{1, " -cl-std=CL3.0"}, {0, ""}},
                       {{2, ""}, {0, ""}},
                       {{3, ""}, {3, " -cl-std=CL1.2"}, {0, ""}},
                       {{4, ""}}};

/* Find a compiled program for one of the ways, or else compile for the first that is not refused; sets `dot`. */
static stic_status find_program(stic_gpu *gpu, const char *path, const char *text, uint32_t widths, cl_program *program,
                                stic_error *error) {
  const uint32_t wanted = gpu->dot;
  uint32_t count = 1;
  char options[MOST_WAYS][64];
  while (count < MOST_WAYS && ways[wanted][count].standard && (ways[wanted][count].dot || gpu->may_be_float)) count++;
  for (uint32_t way = 0; way < count; way++)
    snprintf(options[way], sizeof options[way], "-D STIC_DOT=%u -D STIC_WIDTHS=%u%s", ways[wanted][way].dot, widths,
             ways[wanted][way].standard);
  *program = NULL;
  for (uint32_t way = 0; way < count && !*program; way++) {
    gpu->dot = ways[wanted][way].dot;
    *program = stic_gpu_cache_read(gpu, path, options[way]);
  }
  stic_status status = STIC_OK;
  for (uint32_t way = 0; way < count && !*program; way++) {
    gpu->dot = ways[wanted][way].dot;
    status = compile(gpu, text, options[way], program, error);
    if (!status) stic_gpu_cache_write(gpu, path, options[way], *program);
  }
  return *program ? STIC_OK : status;
}

stic_status stic_gpu_make_program(stic_gpu *gpu, const char *path, stic_error *error) {
  const stic_file *file = gpu->package->program;
  const uint32_t widths = widths_used(gpu->package);
  cl_program program;
  char *text = calloc((size_t)file->bytes + 1, 1);
  if (!text)
    return stic_fail(error, STIC_OUT_OF_MEMORY, "no memory for kernels.cl (%llu bytes)",
                     (unsigned long long)file->bytes);
  stic_status status = stic_files_verify(path, file, (uint8_t *)text, error);
  if (!status) status = find_program(gpu, path, text, widths, &program, error);
  free(text);
  if (status) return status;
  status = make_kernels(gpu, program, widths, error);
  gpu->cl->ReleaseProgram(program); /* kernels keep it */
  return status;
}
