/* Oclgrind, one thing at a time, for an engine whose IO lanes map memory while another thread launches kernels, as the
 * specification lets them (OpenCL 1.2, A.2). Two faults of Oclgrind 21.10 stand in the way:
 *
 *   - its runtime is not thread-safe (https://github.com/jrprice/Oclgrind/issues/28): calls take turns here;
 *   - it takes the mapping of a part for one of as many bytes at the start of the object, and reports kernels that read
 *     there (MemCheck::checkLoad forgets the offset): none runs here while anything is mapped. A layer on the CPU, for
 *     which its weights stay mapped, would have them wait for ever.
 *
 * Reached as the wrapper on Pixel phones is, through enableOpenCL and loadOpenCLPointer. What no lane calls, nor
 * anything while there are lanes, is passed on as it is. */
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "opencl.h"

static void *library;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unmapped = PTHREAD_COND_INITIALIZER;
static int mapped;                /* parts of objects */
static cl_command_queue launched; /* where kernels wait to be executed */

/* The library's function of this name, as `next`. */
#define NEXT(result, name, parameters) \
  result(*next) parameters; \
  *(void **)&next = dlsym(library, "cl" #name)

/* Oclgrind executes what was enqueued when it is told to flush or to finish. */
static cl_int execute(const char *name, cl_command_queue queue) {
  cl_int (*next)(cl_command_queue);
  *(void **)&next = dlsym(library, name);
  pthread_mutex_lock(&mutex);
  while (queue == launched && mapped) pthread_cond_wait(&unmapped, &mutex);
  const cl_int code = next(queue);
  if (queue == launched) launched = NULL;
  pthread_mutex_unlock(&mutex);
  return code;
}

static cl_int serial_Flush(cl_command_queue queue) { return execute("clFlush", queue); }

static cl_int serial_Finish(cl_command_queue queue) { return execute("clFinish", queue); }

static void *serial_EnqueueMapBuffer(cl_command_queue queue, cl_mem object, cl_bool blocking, cl_bitfield flags,
                                     size_t offset, size_t bytes, cl_uint count, const cl_event *wait, cl_event *event,
                                     cl_int *code) {
  NEXT(void *, EnqueueMapBuffer,
       (cl_command_queue, cl_mem, cl_bool, cl_bitfield, size_t, size_t, cl_uint, const cl_event *, cl_event *,
        cl_int *));
  pthread_mutex_lock(&mutex);
  void *address = next(queue, object, blocking, flags, offset, bytes, count, wait, event, code);
  mapped += address != NULL;
  pthread_mutex_unlock(&mutex);
  return address;
}

static cl_int serial_EnqueueUnmapMemObject(cl_command_queue queue, cl_mem object, void *address, cl_uint count,
                                           const cl_event *wait, cl_event *event) {
  NEXT(cl_int, EnqueueUnmapMemObject, (cl_command_queue, cl_mem, void *, cl_uint, const cl_event *, cl_event *));
  cl_int (*flush)(cl_command_queue);
  *(void **)&flush = dlsym(library, "clFlush");
  pthread_mutex_lock(&mutex);
  const cl_int code = next(queue, object, address, count, wait, event);
  flush(queue); /* so that it is unmapped when the next one is let in */
  mapped--;
  pthread_cond_broadcast(&unmapped);
  pthread_mutex_unlock(&mutex);
  return code;
}

static cl_int serial_EnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint axes, const size_t *offset,
                                          const size_t *global, const size_t *local, cl_uint count,
                                          const cl_event *wait, cl_event *event) {
  NEXT(cl_int, EnqueueNDRangeKernel,
       (cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint, const cl_event *,
        cl_event *));
  pthread_mutex_lock(&mutex);
  launched = queue;
  const cl_int code = next(queue, kernel, axes, offset, global, local, count, wait, event);
  pthread_mutex_unlock(&mutex);
  return code;
}

/* X(result, name without "cl", parameters, arguments): what only has to take turns */
#define SERIAL(X) \
  X(cl_int, SetKernelArg, (cl_kernel a, cl_uint b, size_t c, const void *d), (a, b, c, d)) \
  X(cl_int, EnqueueWriteBuffer, \
    (cl_command_queue a, cl_mem b, cl_bool c, size_t d, size_t e, const void *f, cl_uint g, const cl_event *h, \
     cl_event *i), \
    (a, b, c, d, e, f, g, h, i)) \
  X(cl_int, EnqueueFillBuffer, \
    (cl_command_queue a, cl_mem b, const void *c, size_t d, size_t e, size_t f, cl_uint g, const cl_event *h, \
     cl_event *i), \
    (a, b, c, d, e, f, g, h, i)) \
  X(cl_int, EnqueueBarrierWithWaitList, (cl_command_queue a, cl_uint b, const cl_event *c, cl_event *d), (a, b, c, d)) \
  X(cl_int, SetEventCallback, (cl_event a, cl_int b, void (*c)(cl_event, cl_int, void *), void *d), (a, b, c, d)) \
  X(cl_int, GetEventProfilingInfo, (cl_event a, cl_uint b, size_t c, void *d, size_t *e), (a, b, c, d, e)) \
  X(cl_int, ReleaseEvent, (cl_event a), (a))

#define DEFINE(result, name, parameters, arguments) \
  static result serial_##name parameters { \
    NEXT(result, name, parameters); \
    pthread_mutex_lock(&mutex); \
    const result found = next arguments; \
    pthread_mutex_unlock(&mutex); \
    return found; \
  }
SERIAL(DEFINE)

void enableOpenCL(void) { library = dlopen("liboclgrind-rt.so", RTLD_NOW | RTLD_LOCAL); }

void *loadOpenCLPointer(const char *name) {
#define FIND(own) \
  if (!strcmp(name, "cl" #own)) return (void *)serial_##own;
#define FIND_SERIAL(result, own, parameters, arguments) FIND(own)
  SERIAL(FIND_SERIAL)
  FIND(EnqueueNDRangeKernel)
  FIND(EnqueueMapBuffer)
  FIND(EnqueueUnmapMemObject)
  FIND(Flush)
  FIND(Finish)
  return library ? dlsym(library, name) : NULL;
}
