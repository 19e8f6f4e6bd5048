/* The session as functions of TVM's FFI, so that tvm_ffi.load_module and a TVM RPC server can use this library as it
 * is: stic_open, stic_run, stic_output_size, stic_evict, stic_stat, stic_close. Sessions are named by small integers.
 * The few structures of the ABI are declared here; a test compares them with TVM's own headers. */
#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "tvm_ffi.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "../include/stic.h"

#define EXPORT STIC_API int

enum { MOST_SESSIONS = 64 };

static stic_session *sessions[MOST_SESSIONS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Raise a Python exception if TVM's library is in this process; either way the caller returns -1. */
static int raise_error(const char *kind, const char *message) {
  void *symbol = dlsym(RTLD_DEFAULT, "TVMFFIErrorSetRaisedFromCStr");
  void (*raise_in_tvm)(const char *, const char *);
  memcpy(&raise_in_tvm, &symbol, sizeof symbol);
  if (raise_in_tvm) raise_in_tvm(kind, message);
  return -1;
}

static int wrong_arguments(const char *usage) { return raise_error("TypeError", usage); }

static int return_int(stic_ffi_any *result, int64_t value) {
  *result = (stic_ffi_any){.type_index = STIC_FFI_INT, .v_int64 = value};
  return 0;
}

static bool take_int(const stic_ffi_any *a, int64_t *value) {
  if (a->type_index != STIC_FFI_INT) return false;
  *value = a->v_int64;
  return true;
}

/* A string argument, copied with an end into `text`. */
static bool take_string(const stic_ffi_any *a, char *text, size_t room) {
  const char *from;
  size_t size;
  if (a->type_index == STIC_FFI_RAW_STRING) {
    from = a->v_c_str;
    size = strlen(from);
  } else if (a->type_index == STIC_FFI_SMALL_STRING) {
    from = a->v_bytes;
    size = a->small_string_size <= sizeof a->v_bytes - 1 ? a->small_string_size : 0;
  } else if (a->type_index == STIC_FFI_STRING) {
    const stic_ffi_bytes *bytes = (const void *)((const char *)a->v_ptr + sizeof(stic_ffi_object));
    from = bytes->data;
    size = bytes->size;
  } else {
    return false;
  }
  if (size >= room) return false;
  memcpy(text, from, size);
  text[size] = 0;
  return true;
}

/* A contiguous CPU tensor of 32-bit elements of this type code. */
static bool take_tensor(const stic_ffi_any *a, uint8_t code, void **data, int64_t *count) {
  const stic_ffi_tensor *t;
  if (a->type_index == STIC_FFI_TENSOR_POINTER)
    t = a->v_ptr;
  else if (a->type_index == STIC_FFI_TENSOR)
    t = (const void *)((const char *)a->v_ptr + sizeof(stic_ffi_object));
  else
    return false;
  if (t->device_type != STIC_FFI_CPU || t->code != code || t->bits != 32 || t->lanes != 1) return false;
  *count = 1;
  for (int32_t i = t->ndim - 1; i >= 0; i--) {
    if (t->strides && t->shape[i] > 1 && t->strides[i] != *count) return false;
    *count *= t->shape[i];
  }
  *data = (char *)t->data + t->byte_offset;
  return true;
}

/* The session of a handle; the caller of two threads at once gets STIC_BUSY from the session itself. */
static stic_session *find(const stic_ffi_any *a) {
  int64_t handle;
  if (!take_int(a, &handle) || handle < 0 || handle >= MOST_SESSIONS) return NULL;
  pthread_mutex_lock(&mutex);
  stic_session *session = sessions[handle];
  pthread_mutex_unlock(&mutex);
  return session;
}

static int session_error(const stic_session *session, stic_status status) {
  if (status == STIC_BUSY) return raise_error("RuntimeError", "the session is running in another thread");
  return raise_error(status < STIC_BUSY ? "ValueError" : "RuntimeError", stic_error_message(session));
}

EXPORT __tvm_ffi_stic_open(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[4200];
  int64_t threads = 0, lanes = 0;
  (void)self;
  if (n < 1 || n > 3 || !take_string(&a[0], path, sizeof path) || (n > 1 && !take_int(&a[1], &threads)) ||
      (n > 2 && !take_int(&a[2], &lanes)) || threads < 0 || lanes < 0 || threads > 1024 || lanes > 1024)
    return wrong_arguments("stic_open(path, threads=0, lanes=0) -> handle");
  stic_options options = STIC_OPTIONS_DEFAULT;
  options.threads = (uint32_t)threads;
  options.lanes = (uint32_t)lanes;
  stic_session *session;
  const stic_status status = stic_session_open(path, &options, &session);
  if (status) return session_error(NULL, status);
  pthread_mutex_lock(&mutex);
  int handle = 0;
  while (handle < MOST_SESSIONS && sessions[handle]) handle++;
  if (handle < MOST_SESSIONS) sessions[handle] = session;
  pthread_mutex_unlock(&mutex);
  if (handle < MOST_SESSIONS) return return_int(result, handle);
  stic_session_close(session);
  return raise_error("RuntimeError", "64 sessions are open: close one first");
}

EXPORT __tvm_ffi_stic_run(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  static const char usage[] = "stic_run(handle, ids int32 tensor, types int32 tensor or None, output float32 tensor) -> count";
  void *ids, *types = NULL, *output;
  int64_t tokens, kinds, capacity;
  (void)self;
  stic_session *session = n == 4 ? find(&a[0]) : NULL;
  if (!session || !take_tensor(&a[1], STIC_FFI_CODE_INT, &ids, &tokens) ||
      !take_tensor(&a[3], STIC_FFI_CODE_FLOAT, &output, &capacity) || tokens > INT32_MAX)
    return wrong_arguments(usage);
  if (a[2].type_index != STIC_FFI_NONE &&
      (!take_tensor(&a[2], STIC_FFI_CODE_INT, &types, &kinds) || kinds != tokens))
    return wrong_arguments(usage);
  const stic_status status = stic_session_run(session, ids, types, (int32_t)tokens, output, (size_t)capacity);
  if (status) return session_error(session, status);
  return return_int(result, (int64_t)stic_session_output_size(session, (int32_t)tokens));
}

EXPORT __tvm_ffi_stic_output_size(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t tokens;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !take_int(&a[1], &tokens) || tokens < 0 || tokens > INT32_MAX)
    return wrong_arguments("stic_output_size(handle, tokens) -> floats");
  return return_int(result, (int64_t)stic_session_output_size(session, (int32_t)tokens));
}

EXPORT __tvm_ffi_stic_evict(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t bytes;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !take_int(&a[1], &bytes) || bytes < 0) return wrong_arguments("stic_evict(handle, bytes) -> 0");
  const stic_status status = stic_session_evict(session, (uint64_t)bytes);
  return status ? session_error(session, status) : return_int(result, 0);
}

EXPORT __tvm_ffi_stic_stat(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char name[32];
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !take_string(&a[1], name, sizeof name)) return wrong_arguments("stic_stat(handle, name) -> number");
  stic_stats s = {.struct_bytes = sizeof s};
  stic_session_stats(session, &s);
  const struct {
    const char *name;
    uint64_t value;
  } known[] = {{"run_us", s.run_us},         {"stall_us", s.stall_us},           {"io_bytes", s.io_bytes},
               {"io_requests", s.io_requests}, {"peak_bytes", s.peak_bytes},     {"claimed_bytes", s.claimed_bytes},
               {"runs", s.runs},             {"resident_bytes", s.resident_bytes}, {"direct", s.direct}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(name, known[i].name)) return return_int(result, (int64_t)known[i].value);
  return raise_error("ValueError", "stic_stat knows run_us, stall_us, io_bytes, io_requests, peak_bytes, claimed_bytes,"
                                   " runs, resident_bytes, direct");
}

EXPORT __tvm_ffi_stic_close(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  (void)self;
  stic_session *session = n == 1 ? find(&a[0]) : NULL;
  if (!session) return wrong_arguments("stic_close(handle) -> 0");
  const stic_status status = stic_session_close(session);
  if (status) return session_error(NULL, status);
  pthread_mutex_lock(&mutex);
  sessions[a[0].v_int64] = NULL;
  pthread_mutex_unlock(&mutex);
  return return_int(result, 0);
}
