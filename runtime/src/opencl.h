/* OpenCL 1.2, as much of it as the engine calls, found at run time: a device without OpenCL runs the same engine, and
 * no SDK's headers are needed to build it. Names and numbers are the specification's; a test compares them with the
 * official headers. */
#ifndef STIC_OPENCL_H
#define STIC_OPENCL_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

#ifndef __OPENCL_CL_H /* the test that compares includes the official header first */
typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_ulong;
typedef cl_uint cl_bool;
typedef cl_ulong cl_bitfield;
typedef struct _cl_platform_id *cl_platform_id;
typedef struct _cl_device_id *cl_device_id;
typedef struct _cl_context *cl_context;
typedef struct _cl_command_queue *cl_command_queue;
typedef struct _cl_mem *cl_mem;
typedef struct _cl_program *cl_program;
typedef struct _cl_kernel *cl_kernel;
typedef struct _cl_event *cl_event;
typedef intptr_t cl_context_properties;
typedef struct {
  size_t origin, size;
} cl_buffer_region;

enum {
  CL_SUCCESS = 0,
  CL_DEVICE_NOT_FOUND = -1,
  CL_DEVICE_NOT_AVAILABLE = -2,
  CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
  CL_OUT_OF_RESOURCES = -5,
  CL_OUT_OF_HOST_MEMORY = -6,
  CL_MAP_FAILURE = -12,
  CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST = -14,
  CL_BUILD_PROGRAM_FAILURE = -11,
  CL_INVALID_VALUE = -30,
  CL_INVALID_CONTEXT = -34,
  CL_INVALID_COMMAND_QUEUE = -36,
  CL_INVALID_BINARY = -42,
  CL_INVALID_KERNEL_NAME = -46,
  CL_INVALID_KERNEL_ARGS = -52,
  CL_INVALID_WORK_GROUP_SIZE = -54,
  CL_INVALID_BUFFER_SIZE = -61
};
enum {
  CL_DEVICE_TYPE_GPU = 1 << 2,
  CL_DEVICE_TYPE = 0x1000,
  CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
  CL_DEVICE_MAX_WORK_ITEM_SIZES = 0x1005,
  CL_DEVICE_MAX_MEM_ALLOC_SIZE = 0x1010,
  CL_DEVICE_MEM_BASE_ADDR_ALIGN = 0x1019,
  CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F,
  CL_DEVICE_LOCAL_MEM_SIZE = 0x1023,
  CL_DEVICE_COMPILER_AVAILABLE = 0x1028,
  CL_DEVICE_NAME = 0x102B,
  CL_DEVICE_VENDOR = 0x102C,
  CL_DRIVER_VERSION = 0x102D,
  CL_DEVICE_VERSION = 0x102F,
  CL_DEVICE_EXTENSIONS = 0x1030
};
#define CL_DEVICE_TYPE_ALL 0xFFFFFFFF
enum { CL_QUEUE_PROFILING_ENABLE = 1 << 1 };
enum {
  CL_MEM_READ_WRITE = 1 << 0,
  CL_MEM_READ_ONLY = 1 << 2,
  CL_MEM_USE_HOST_PTR = 1 << 3,
  CL_MEM_ALLOC_HOST_PTR = 1 << 4
};
enum { CL_MAP_READ = 1 << 0, CL_MAP_WRITE = 1 << 1, CL_MAP_WRITE_INVALIDATE_REGION = 1 << 2 };
enum { CL_BUFFER_CREATE_TYPE_REGION = 0x1220 };
enum { CL_PROGRAM_BINARY_SIZES = 0x1165, CL_PROGRAM_BINARIES = 0x1166, CL_PROGRAM_BUILD_LOG = 0x1183 };
enum { CL_KERNEL_NUM_ARGS = 0x1191, CL_KERNEL_WORK_GROUP_SIZE = 0x11B0 };
enum { CL_COMPLETE = 0 };
enum { CL_PROFILING_COMMAND_QUEUED = 0x1280, CL_PROFILING_COMMAND_START = 0x1282, CL_PROFILING_COMMAND_END = 0x1283 };
#endif

/* X(result, name without "cl", parameters) */
#define STIC_OPENCL_FUNCTIONS(X) \
  X(cl_int, GetPlatformIDs, (cl_uint, cl_platform_id *, cl_uint *)) \
  X(cl_int, GetDeviceIDs, (cl_platform_id, cl_bitfield, cl_uint, cl_device_id *, cl_uint *)) \
  X(cl_int, GetDeviceInfo, (cl_device_id, cl_uint, size_t, void *, size_t *)) \
  X(cl_context, CreateContext, \
    (const cl_context_properties *, cl_uint, const cl_device_id *, \
     void (*)(const char *, const void *, size_t, void *), void *, cl_int *)) \
  X(cl_int, ReleaseContext, (cl_context)) \
  X(cl_command_queue, CreateCommandQueue, (cl_context, cl_device_id, cl_bitfield, cl_int *)) \
  X(cl_int, ReleaseCommandQueue, (cl_command_queue)) \
  X(cl_mem, CreateBuffer, (cl_context, cl_bitfield, size_t, void *, cl_int *)) \
  X(cl_mem, CreateSubBuffer, (cl_mem, cl_bitfield, cl_uint, const void *, cl_int *)) \
  X(cl_int, ReleaseMemObject, (cl_mem)) \
  X(cl_program, CreateProgramWithSource, (cl_context, cl_uint, const char **, const size_t *, cl_int *)) \
  X(cl_program, CreateProgramWithBinary, \
    (cl_context, cl_uint, const cl_device_id *, const size_t *, const unsigned char **, cl_int *, cl_int *)) \
  X(cl_int, BuildProgram, \
    (cl_program, cl_uint, const cl_device_id *, const char *, void (*)(cl_program, void *), void *)) \
  X(cl_int, GetProgramInfo, (cl_program, cl_uint, size_t, void *, size_t *)) \
  X(cl_int, GetProgramBuildInfo, (cl_program, cl_device_id, cl_uint, size_t, void *, size_t *)) \
  X(cl_int, ReleaseProgram, (cl_program)) \
  X(cl_kernel, CreateKernel, (cl_program, const char *, cl_int *)) \
  X(cl_int, GetKernelInfo, (cl_kernel, cl_uint, size_t, void *, size_t *)) \
  X(cl_int, GetKernelWorkGroupInfo, (cl_kernel, cl_device_id, cl_uint, size_t, void *, size_t *)) \
  X(cl_int, SetKernelArg, (cl_kernel, cl_uint, size_t, const void *)) \
  X(cl_int, ReleaseKernel, (cl_kernel)) \
  X(cl_int, EnqueueNDRangeKernel, \
    (cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint, const cl_event *, \
     cl_event *)) \
  X(cl_int, EnqueueWriteBuffer, \
    (cl_command_queue, cl_mem, cl_bool, size_t, size_t, const void *, cl_uint, const cl_event *, cl_event *)) \
  X(void *, EnqueueMapBuffer, \
    (cl_command_queue, cl_mem, cl_bool, cl_bitfield, size_t, size_t, cl_uint, const cl_event *, cl_event *, cl_int *)) \
  X(cl_int, EnqueueUnmapMemObject, (cl_command_queue, cl_mem, void *, cl_uint, const cl_event *, cl_event *)) \
  X(cl_int, EnqueueFillBuffer, \
    (cl_command_queue, cl_mem, const void *, size_t, size_t, size_t, cl_uint, const cl_event *, cl_event *)) \
  X(cl_int, EnqueueBarrierWithWaitList, (cl_command_queue, cl_uint, const cl_event *, cl_event *)) \
  X(cl_int, Flush, (cl_command_queue)) \
  X(cl_int, Finish, (cl_command_queue)) \
  X(cl_int, SetEventCallback, (cl_event, cl_int, void (*)(cl_event, cl_int, void *), void *)) \
  X(cl_int, GetEventProfilingInfo, (cl_event, cl_uint, size_t, void *, size_t *)) \
  X(cl_int, ReleaseEvent, (cl_event))

typedef struct stic_opencl {
#define STIC_OPENCL_MEMBER(result, name, parameters) result(*name) parameters;
  STIC_OPENCL_FUNCTIONS(STIC_OPENCL_MEMBER)
#undef STIC_OPENCL_MEMBER
} stic_opencl;

/* The process's OpenCL, or NULL with STIC_GPU and a sentence. The library that $STIC_OPENCL names, else the first that
 * is found; it stays loaded, since drivers leave threads and exit handlers behind. */
const stic_opencl *stic_opencl_load(stic_error *error);

/* "CL_OUT_OF_RESOURCES", or "error -9999". */
const char *stic_opencl_error(cl_int code);

#endif
