/* The session as functions of TVM's FFI, so that tvm_ffi.load_module and a TVM RPC server can use this library as it
 * is: stic_open, stic_run, stic_extend, stic_sample, stic_rewind, stic_output_size, stic_evict, stic_set_budget, stic_info,
 * stic_stats, stic_trace, stic_session_device, stic_stat, stic_close. Sessions are named by small integers. What a device
 * is asked beside them is in device.c. */
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "ffi_arguments.h"

#define EXPORT STIC_FFI_EXPORT

enum { MOST_SESSIONS = 64, MOST_THREADS = 1024 };

static stic_session *sessions[MOST_SESSIONS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* The session of a handle; the caller of two threads at once gets STIC_BUSY from the session itself. */
static stic_session *find(const stic_ffi_any *a) {
  int64_t handle;
  if (!stic_ffi_take_count(a, MOST_SESSIONS - 1, &handle)) return NULL;
  pthread_mutex_lock(&mutex);
  stic_session *session = sessions[handle];
  pthread_mutex_unlock(&mutex);
  return session;
}

static int session_error(const stic_session *session, stic_status status) {
  if (status == STIC_BUSY) return stic_ffi_raise("RuntimeError", status, "the session is running in another thread");
  return stic_ffi_raise(status < STIC_BUSY ? "ValueError" : "RuntimeError", status, stic_error_message(session));
}

EXPORT __tvm_ffi_stic_open(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[4200];
  int64_t threads = 0, lanes = 0, io_bytes_per_s = 0, buffered = 0, gpu = 0, gpu_arithmetic = 0;
  int64_t deadline_us = 0, memory_bytes = 0, io_requests_per_s = 0;
  (void)self;
  if (n < 1 || n > 10 || !stic_ffi_take_string(&a[0], path, sizeof path) ||
      (n > 1 && !stic_ffi_take_count(&a[1], MOST_THREADS, &threads)) ||
      (n > 2 && !stic_ffi_take_count(&a[2], MOST_THREADS, &lanes)) ||
      (n > 3 && !stic_ffi_take_count(&a[3], INT64_MAX, &io_bytes_per_s)) ||
      (n > 4 && !stic_ffi_take_count(&a[4], 1, &buffered)) ||
      (n > 5 && !stic_ffi_take_count(&a[5], STIC_GPU_REQUIRED, &gpu)) ||
      (n > 6 && !stic_ffi_take_count(&a[6], STIC_INT8_ARITHMETIC, &gpu_arithmetic)) ||
      (n > 7 && !stic_ffi_take_count(&a[7], UINT32_MAX, &deadline_us)) ||
      (n > 8 && !stic_ffi_take_count(&a[8], INT64_MAX, &memory_bytes)) ||
      (n > 9 && !stic_ffi_take_count(&a[9], INT64_MAX, &io_requests_per_s)))
    return stic_ffi_misused("stic_open(path, threads=0, lanes=0, io_bytes_per_s=0, buffered=0, gpu=0, gpu_arithmetic=0,"
                            " deadline_us=0, memory_bytes=0, io_requests_per_s=0) -> handle");
  stic_options options = STIC_OPTIONS_DEFAULT;
  options.threads = (uint32_t)threads;
  options.lanes = (uint32_t)lanes;
  options.io_bytes_per_s = (uint64_t)io_bytes_per_s;
  options.buffered = (uint32_t)buffered;
  options.gpu = (uint32_t)gpu;
  options.gpu_arithmetic = (uint32_t)gpu_arithmetic;
  options.deadline_us = (uint32_t)deadline_us;
  options.memory_bytes = (uint64_t)memory_bytes;
  options.io_requests_per_s = (uint64_t)io_requests_per_s;
  stic_session *session;
  const stic_status status = stic_session_open(path, &options, &session);
  if (status) return session_error(NULL, status);
  pthread_mutex_lock(&mutex);
  int handle = 0;
  while (handle < MOST_SESSIONS && sessions[handle]) handle++;
  if (handle < MOST_SESSIONS) sessions[handle] = session;
  pthread_mutex_unlock(&mutex);
  if (handle < MOST_SESSIONS) return stic_ffi_return(result, handle);
  stic_session_close(session);
  return stic_ffi_raise("RuntimeError", STIC_BUSY, "64 sessions are open: close one first");
}

EXPORT __tvm_ffi_stic_run(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  static const char usage[] = "stic_run(handle, ids int32 tensor, types int32 tensor or None, output float32 tensor)"
                              " -> count";
  void *ids, *types = NULL, *output;
  int64_t tokens, kinds, capacity;
  (void)self;
  stic_session *session = n == 4 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_INT, 32, &ids, &tokens) ||
      !stic_ffi_take_tensor(&a[3], STIC_FFI_CODE_FLOAT, 32, &output, &capacity) || tokens > INT32_MAX)
    return stic_ffi_misused(usage);
  if (a[2].type_index != STIC_FFI_NONE &&
      (!stic_ffi_take_tensor(&a[2], STIC_FFI_CODE_INT, 32, &types, &kinds) || kinds != tokens))
    return stic_ffi_misused(usage);
  const stic_status status = stic_session_run(session, ids, types, (int32_t)tokens, output, (size_t)capacity);
  if (status) return session_error(session, status);
  return stic_ffi_return(result, (int64_t)stic_session_output_size(session, (int32_t)tokens));
}

EXPORT __tvm_ffi_stic_extend(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  void *ids;
  int64_t tokens;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_INT, 32, &ids, &tokens))
    return stic_ffi_misused("stic_extend(handle, ids int32 tensor) -> tokens that the text has");
  const stic_status status = stic_session_extend_ids(session, ids, (size_t)tokens);
  return status ? session_error(session, status) : stic_ffi_return(result, stic_session_position(session));
}

EXPORT __tvm_ffi_stic_sample(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  stic_sampling sampling;
  void *given, *recent = NULL;
  int64_t size, tokens = 0;
  int32_t token;
  (void)self;
  stic_session *session = n == 3 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_UINT, 8, &given, &size) ||
      size != (int64_t)sizeof sampling ||
      (a[2].type_index != STIC_FFI_NONE && !stic_ffi_take_tensor(&a[2], STIC_FFI_CODE_INT, 32, &recent, &tokens)))
    return stic_ffi_misused("stic_sample(handle, uint8 tensor of a stic_sampling, recent int32 tensor or None)"
                            " -> token");
  memcpy(&sampling, given, sizeof sampling);
  const stic_status status = stic_session_sample(session, &sampling, recent, (size_t)tokens, &token);
  return status ? session_error(session, status) : stic_ffi_return(result, token);
}

EXPORT __tvm_ffi_stic_rewind(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t position;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_count(&a[1], UINT32_MAX, &position))
    return stic_ffi_misused("stic_rewind(handle, position) -> tokens that the text has");
  const stic_status status = stic_session_rewind(session, (uint32_t)position);
  return status ? session_error(session, status) : stic_ffi_return(result, stic_session_position(session));
}

EXPORT __tvm_ffi_stic_output_size(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t tokens;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_count(&a[1], INT32_MAX, &tokens))
    return stic_ffi_misused("stic_output_size(handle, tokens) -> floats");
  return stic_ffi_return(result, (int64_t)stic_session_output_size(session, (int32_t)tokens));
}

EXPORT __tvm_ffi_stic_evict(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t bytes;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_count(&a[1], INT64_MAX, &bytes))
    return stic_ffi_misused("stic_evict(handle, bytes) -> 0");
  const stic_status status = stic_session_evict(session, (uint64_t)bytes);
  return status ? session_error(session, status) : stic_ffi_return(result, 0);
}

EXPORT __tvm_ffi_stic_set_budget(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t deadline_us, memory_bytes;
  uint32_t number;
  (void)self;
  stic_session *session = n == 3 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_count(&a[1], UINT32_MAX, &deadline_us) ||
      !stic_ffi_take_count(&a[2], INT64_MAX, &memory_bytes))
    return stic_ffi_misused("stic_set_budget(handle, deadline_us, memory_bytes) -> number of the plan");
  const stic_status status = stic_session_set_budget(session, (uint32_t)deadline_us, (uint64_t)memory_bytes, &number);
  return status ? session_error(session, status) : stic_ffi_return(result, number);
}

/* A handle and a uint8 tensor of exactly `bytes`, or NULL. */
static stic_session *find_with_room(const stic_ffi_any *a, int32_t n, size_t bytes, void **room) {
  int64_t count;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_UINT, 8, room, &count)) return NULL;
  return (uint64_t)count == bytes ? session : NULL;
}

EXPORT __tvm_ffi_stic_info(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  void *room;
  (void)self;
  stic_session *session = find_with_room(a, n, sizeof(stic_info), &room);
  if (!session) return stic_ffi_misused("stic_info(handle, uint8 tensor of the size of stic_info) -> 0");
  stic_info info = {.struct_bytes = sizeof info};
  const stic_status status = stic_session_info(session, &info);
  if (status) return session_error(session, status);
  memcpy(room, &info, sizeof info);
  return stic_ffi_return(result, 0);
}

EXPORT __tvm_ffi_stic_stats(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  void *room;
  (void)self;
  stic_session *session = find_with_room(a, n, sizeof(stic_stats), &room);
  if (!session) return stic_ffi_misused("stic_stats(handle, uint8 tensor of the size of stic_stats) -> 0");
  stic_stats stats = {.struct_bytes = sizeof stats};
  const stic_status status = stic_session_stats(session, &stats);
  if (status) return session_error(session, status);
  memcpy(room, &stats, sizeof stats);
  return stic_ffi_return(result, 0);
}

EXPORT __tvm_ffi_stic_trace(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  static const char usage[] = "stic_trace(handle, uint8 tensor of several stic_event, or None) -> events there are";
  void *room = NULL;
  int64_t bytes = 0;
  size_t count;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session ||
      (a[1].type_index != STIC_FFI_NONE && !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_UINT, 8, &room, &bytes)))
    return stic_ffi_misused(usage);
  if ((uintptr_t)room % _Alignof(stic_event)) return stic_ffi_misused(usage);
  const stic_status status = stic_session_trace(session, room, (size_t)bytes / sizeof(stic_event), &count);
  return status ? session_error(session, status) : stic_ffi_return(result, (int64_t)count);
}

EXPORT __tvm_ffi_stic_session_device(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  void *room;
  int64_t bytes;
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_UINT, 8, &room, &bytes))
    return stic_ffi_misused("stic_session_device(handle, uint8 tensor) -> bytes of the text, as many as have room");
  const char *text = stic_session_device(session);
  const size_t length = strlen(text), kept = length < (uint64_t)bytes ? length : (size_t)bytes;
  memcpy(room, text, kept);
  return stic_ffi_return(result, (int64_t)kept);
}

EXPORT __tvm_ffi_stic_stat(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char name[32];
  (void)self;
  stic_session *session = n == 2 ? find(&a[0]) : NULL;
  if (!session || !stic_ffi_take_string(&a[1], name, sizeof name))
    return stic_ffi_misused("stic_stat(handle, name) -> number");
  stic_stats s = {.struct_bytes = sizeof s};
  stic_session_stats(session, &s);
  const struct {
    const char *name;
    uint64_t value;
  } known[] = {{"run_us", s.run_us},
               {"stall_us", s.stall_us},
               {"io_bytes", s.io_bytes},
               {"io_requests", s.io_requests},
               {"peak_bytes", s.peak_bytes},
               {"claimed_bytes", s.claimed_bytes},
               {"runs", s.runs},
               {"resident_bytes", s.resident_bytes},
               {"direct", s.direct}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(name, known[i].name)) return stic_ffi_return(result, (int64_t)known[i].value);
  return stic_ffi_raise("ValueError", STIC_INVALID_ARGUMENT,
                        "stic_stat knows run_us, stall_us, io_bytes, io_requests, peak_bytes, claimed_bytes,"
                        " runs, resident_bytes, direct");
}

EXPORT __tvm_ffi_stic_close(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  (void)self;
  stic_session *session = n == 1 ? find(&a[0]) : NULL;
  if (!session) return stic_ffi_misused("stic_close(handle) -> 0");
  const stic_status status = stic_session_close(session);
  if (status) return session_error(NULL, status);
  pthread_mutex_lock(&mutex);
  sessions[a[0].v_int64] = NULL;
  pthread_mutex_unlock(&mutex);
  return stic_ffi_return(result, 0);
}
