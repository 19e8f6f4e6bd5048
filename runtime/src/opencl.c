#define _POSIX_C_SOURCE 200809L
#include "opencl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Vendors' libraries first: an ICD loader (Khronos) may be there too, and then knows them; on Android there is none, and
 * apps reach the vendor's by its plain name if their manifest asks for it, else by path. Pixel phones wrap theirs. */
static const char *const places[] = {"libOpenCL.so",
                                     "libOpenCL-pixel.so",
                                     "/vendor/lib64/libOpenCL.so",
                                     "/system/vendor/lib64/libOpenCL.so",
                                     "/vendor/lib64/egl/libGLES_mali.so",
                                     "/system/vendor/lib64/egl/libGLES_mali.so",
                                     "libOpenCL.so.1"};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static stic_opencl table;
static bool loaded;

/* The address of a function, through the library's own door where it has one: the wrapper on Pixel phones exports
 * enableOpenCL and loadOpenCLPointer in place of OpenCL's functions (as TensorFlow Lite's opencl_wrapper.cc uses it). */
static void *find(void *library, const char *name) {
  void *symbol = dlsym(library, "loadOpenCLPointer");
  if (!symbol) return dlsym(library, name);
  void *(*look_up)(const char *);
  memcpy(&look_up, &symbol, sizeof symbol); /* ISO C has no cast from object to function pointer */
  return look_up(name);
}

static const char *fill(void *library, stic_opencl *functions) {
  void *symbol = dlsym(library, "enableOpenCL");
  void (*enable)(void);
  memcpy(&enable, &symbol, sizeof symbol);
  if (symbol) enable();
  memset(functions, 0, sizeof *functions);
#define FIND(result, name, parameters) \
  if (!(symbol = find(library, "cl" #name))) return "cl" #name; \
  memcpy(&functions->name, &symbol, sizeof symbol);
  STIC_OPENCL_FUNCTIONS(FIND)
#undef FIND
  return NULL;
}

static stic_status load(stic_error *error) {
  const char *chosen = getenv("STIC_OPENCL"), *missing = NULL, *named = NULL;
  const size_t count = chosen ? 1 : sizeof places / sizeof *places;
  for (size_t i = 0; i < count; i++) {
    const char *name = chosen ? chosen : places[i];
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) continue;
    if (!(missing = fill(library, &table))) return STIC_OK;
    named = name;
    dlclose(library);
  }
  if (missing)
    return stic_fail(error, STIC_GPU, "%s has no function %s: is it a library of OpenCL 1.2?", named, missing);
  if (chosen) return stic_fail(error, STIC_GPU, "$STIC_OPENCL names %s, which cannot be loaded", chosen);
  return stic_fail(error, STIC_GPU, "no OpenCL library was found (set STIC_OPENCL to the path of one)");
}

const stic_opencl *stic_opencl_load(stic_error *error) {
  pthread_mutex_lock(&mutex);
  if (!loaded) loaded = load(error) == STIC_OK;
  const bool found = loaded;
  pthread_mutex_unlock(&mutex);
  return found ? &table : NULL;
}

const char *stic_opencl_error(cl_int code) {
  static _Thread_local char number[24];
  static const struct {
    cl_int code;
    const char *name;
  } names[] = {
#define NAME(code) {code, #code}
      NAME(CL_DEVICE_NOT_FOUND),
      NAME(CL_DEVICE_NOT_AVAILABLE),
      NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE),
      NAME(CL_OUT_OF_RESOURCES),
      NAME(CL_OUT_OF_HOST_MEMORY),
      NAME(CL_MAP_FAILURE),
      NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST),
      NAME(CL_BUILD_PROGRAM_FAILURE),
      NAME(CL_INVALID_VALUE),
      NAME(CL_INVALID_CONTEXT),
      NAME(CL_INVALID_COMMAND_QUEUE),
      NAME(CL_INVALID_BINARY),
      NAME(CL_INVALID_KERNEL_NAME),
      NAME(CL_INVALID_KERNEL_ARGS),
      NAME(CL_INVALID_WORK_GROUP_SIZE),
      NAME(CL_INVALID_BUFFER_SIZE),
#undef NAME
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].code == code) return names[i].name;
  snprintf(number, sizeof number, "error %d", code);
  return number;
}
