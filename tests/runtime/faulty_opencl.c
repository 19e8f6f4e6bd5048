/* An OpenCL library with one fault, before the machine's own; reached as the wrapper on Pixel phones is, through
 * enableOpenCL and loadOpenCLPointer. $FAULT says which:
 *
 *   none
 *   launch N     the N-th kernel cannot be launched
 *   callback     no callback can be registered
 *   moves        weights are mapped at changing addresses where the driver allocates them
 *   unreadable   what is mapped there is memory that storage cannot read into
 *   lists NAME   the device lists extension NAME, and its compiler refuses all that uses it
 */
#define _DEFAULT_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "opencl.h"

static int enabled, launches, allocated;
static void *library;
static cl_mem weights;
static struct {
  void *given, *real;
} altered;

static void *real(const char *name) { return dlsym(library, name); }

static int has_fault(const char *name) {
  const char *fault = getenv("FAULT");
  return fault && !strncmp(fault, name, strlen(name));
}

static cl_int launch(cl_command_queue queue, cl_kernel kernel, cl_uint axes, const size_t *offset, const size_t *global,
                     const size_t *local, cl_uint count, const cl_event *wait, cl_event *event) {
  cl_int (*next)(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint,
                 const cl_event *, cl_event *);
  *(void **)&next = real("clEnqueueNDRangeKernel");
  if (++launches == atoi(getenv("FAULT") + strlen("launch "))) return CL_OUT_OF_RESOURCES;
  return next(queue, kernel, axes, offset, global, local, count, wait, event);
}

static cl_int callback(cl_event event, cl_int type, void (*function)(cl_event, cl_int, void *), void *data) {
  (void)event, (void)type, (void)function, (void)data;
  return CL_OUT_OF_HOST_MEMORY;
}

/* The second object of the driver's own memory that kernels only read: after the trunk come the weights. */
static cl_mem create(cl_context context, cl_bitfield flags, size_t bytes, void *host, cl_int *code) {
  cl_mem (*next)(cl_context, cl_bitfield, size_t, void *, cl_int *);
  *(void **)&next = real("clCreateBuffer");
  const cl_mem object = next(context, flags, bytes, host, code);
  if (flags == (CL_MEM_READ_ONLY | CL_MEM_ALLOC_HOST_PTR) && ++allocated == 2) weights = object;
  return object;
}

static void *map(cl_command_queue queue, cl_mem object, cl_bool blocking, cl_bitfield flags, size_t offset,
                 size_t bytes, cl_uint count, const cl_event *wait, cl_event *event, cl_int *code) {
  void *(*next)(cl_command_queue, cl_mem, cl_bool, cl_bitfield, size_t, size_t, cl_uint, const cl_event *, cl_event *,
                cl_int *);
  *(void **)&next = real("clEnqueueMapBuffer");
  void *address = next(queue, object, blocking, flags, offset, bytes, count, wait, event, code);
  if (object != weights) return address;
  altered.real = altered.given = address;
  if (has_fault("moves") && offset > 4096) altered.given = (char *)address + 4096;
  if (has_fault("unreadable")) altered.given = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return altered.given;
}

static cl_int unmap(cl_command_queue queue, cl_mem object, void *address, cl_uint count, const cl_event *wait,
                    cl_event *event) {
  cl_int (*next)(cl_command_queue, cl_mem, void *, cl_uint, const cl_event *, cl_event *);
  *(void **)&next = real("clEnqueueUnmapMemObject");
  return next(queue, object, object == weights && address == altered.given ? altered.real : address, count, wait,
              event);
}

static cl_int info(cl_device_id device, cl_uint what, size_t size, void *place, size_t *needed) {
  cl_int (*next)(cl_device_id, cl_uint, size_t, void *, size_t *);
  *(void **)&next = real("clGetDeviceInfo");
  const cl_int code = next(device, what, size, place, needed);
  const char *name = getenv("FAULT") + strlen("lists ");
  if (what == CL_DEVICE_EXTENSIONS && !code && place && strlen(place) + strlen(name) + 2 < size)
    strcat(strcat(place, " "), name);
  return code;
}

static cl_int build(cl_program program, cl_uint count, const cl_device_id *devices, const char *options,
                    void (*function)(cl_program, void *), void *data) {
  cl_int (*next)(cl_program, cl_uint, const cl_device_id *, const char *, void (*)(cl_program, void *), void *);
  *(void **)&next = real("clBuildProgram");
  return strstr(options, "STIC_DOT=0") ? next(program, count, devices, options, function, data)
                                       : CL_BUILD_PROGRAM_FAILURE;
}

void enableOpenCL(void) {
  library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  enabled = library != NULL;
}

void *loadOpenCLPointer(const char *name) {
  if (!enabled) return NULL;
  if (has_fault("launch") && !strcmp(name, "clEnqueueNDRangeKernel")) return (void *)launch;
  if (has_fault("callback") && !strcmp(name, "clSetEventCallback")) return (void *)callback;
  if (has_fault("lists")) {
    if (!strcmp(name, "clGetDeviceInfo")) return (void *)info;
    if (!strcmp(name, "clBuildProgram")) return (void *)build;
  }
  if (has_fault("moves") || has_fault("unreadable")) {
    if (!strcmp(name, "clCreateBuffer")) return (void *)create;
    if (!strcmp(name, "clEnqueueMapBuffer")) return (void *)map;
    if (!strcmp(name, "clEnqueueUnmapMemObject")) return (void *)unmap;
  }
  return real(name);
}
