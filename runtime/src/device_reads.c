/* stic_time_reads: how long reads of a device's storage take, on several threads at once. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ffi_arguments.h"
#include "files.h"
#include "platform.h"

enum { MOST_LANES = 64, MOST_READ_BYTES = 1 << 26 };

typedef struct reads {
  stic_source source;
  const uint32_t *order; /* of requests in the file */
  uint32_t requests, bytes, lanes;
  uint64_t stop_ns;
  int64_t *took_ns; /* a place for each request; 0: not made */
} reads;

typedef struct lane {
  pthread_t thread;
  const reads *work;
  uint32_t number;
  uint8_t *buffer;
  stic_error error;
  bool started;
} lane;

static void *read_lane(void *argument) {
  lane *own = argument;
  const reads *work = own->work;
  for (uint32_t i = own->number; i < work->requests; i += work->lanes) {
    const uint64_t start = stic_now_ns();
    if (i != own->number && start > work->stop_ns) break; /* a lane that starts late still reads once */
    const uint64_t offset = (uint64_t)work->order[i] * work->bytes;
    if (stic_files_read(&work->source, "the file", offset, work->bytes, own->buffer, &own->error)) break;
    const uint64_t took = stic_now_ns() - start;
    work->took_ns[i] = took ? (int64_t)took : 1;
  }
  return NULL;
}

/* Run all lanes; the time from before the first starts until the last has ended. */
static uint64_t run_lanes(reads *work, lane *lanes, uint64_t most_ns, stic_error *error) {
  const uint64_t start = stic_now_ns();
  work->stop_ns = start + most_ns;
  for (uint32_t i = 0; i < work->lanes; i++) {
    lanes[i] = (lane){.work = work, .number = i, .buffer = stic_map(work->bytes)};
    if (!lanes[i].buffer)
      stic_fail(error, STIC_OUT_OF_MEMORY, "no memory for reads of %u bytes", work->bytes);
    else if (pthread_create(&lanes[i].thread, NULL, read_lane, &lanes[i]))
      stic_fail(error, STIC_OUT_OF_THREADS, "the system starts no more threads");
    else
      lanes[i].started = true;
  }
  for (uint32_t i = 0; i < work->lanes; i++) {
    if (lanes[i].started) pthread_join(lanes[i].thread, NULL);
    if (lanes[i].buffer) stic_unmap(lanes[i].buffer, work->bytes);
    if (lanes[i].error.status) *error = lanes[i].error;
  }
  return stic_now_ns() - start;
}

/* In order, or shuffled (Fisher and Yates) so that each request is anywhere in the file. */
static void arrange(uint32_t *order, uint32_t count, bool shuffled) {
  uint64_t noise = 0x9e3779b97f4a7c15u;
  for (uint32_t i = 0; i < count; i++) {
    order[i] = i;
    if (!shuffled) continue;
    noise ^= noise << 13;
    noise ^= noise >> 7;
    noise ^= noise << 17;
    const uint32_t other = (uint32_t)(noise % (i + 1));
    order[i] = order[other];
    order[other] = i;
  }
}

STIC_FFI_EXPORT __tvm_ffi_stic_time_reads(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  static const char usage[] =
      "stic_time_reads(directory, name, bytes, lanes, buffered, shuffled, most_ns, int64 tensor for the wall time and"
      " each read's, in ns) -> reads, or their negative number if they went through the page cache";
  char directory[STIC_PATH_BYTES];
  stic_file file = {.name = ""};
  int64_t bytes, lane_count, buffered, shuffled, most_ns, capacity, *times;
  (void)self;
  if (n != 8 || !stic_ffi_take_string(&a[0], directory, sizeof directory) ||
      !stic_ffi_take_string(&a[1], file.name, sizeof file.name) ||
      !stic_ffi_take_count(&a[2], MOST_READ_BYTES, &bytes) || bytes % STIC_BLOCK || !bytes ||
      !stic_ffi_take_count(&a[3], MOST_LANES, &lane_count) || !lane_count ||
      !stic_ffi_take_count(&a[4], 1, &buffered) || !stic_ffi_take_count(&a[5], 1, &shuffled) ||
      !stic_ffi_take_count(&a[6], INT64_MAX / 2, &most_ns) ||
      !stic_ffi_take_tensor(&a[7], STIC_FFI_CODE_INT, 64, (void **)&times, &capacity))
    return stic_ffi_misused(usage);
  stic_error error = {.status = STIC_OK};
  char path[STIC_PATH_BYTES];
  struct stat found;
  if (stic_files_path(directory, file.name, path, &error)) return stic_ffi_misused(error.text);
  if (stat(path, &found)) {
    stic_fail(&error, STIC_IO, "cannot look at %s: %s", path, strerror(errno));
    return stic_ffi_raise("OSError", error.status, error.text);
  }
  file.bytes = (uint64_t)found.st_size;
  const uint64_t requests = file.bytes / (uint64_t)bytes;
  if (requests < (uint64_t)lane_count || requests >= UINT32_MAX || (uint64_t)capacity <= requests)
    return stic_ffi_misused(usage);
  reads work = {.requests = (uint32_t)requests, .bytes = (uint32_t)bytes, .lanes = (uint32_t)lane_count};
  if (stic_files_open(directory, &file, buffered, &work.source, &error))
    return stic_ffi_raise("OSError", error.status, error.text);
  uint32_t *order = malloc(requests * sizeof *order);
  lane lanes[MOST_LANES];
  if (order) {
    arrange(order, work.requests, shuffled);
    memset(times, 0, (requests + 1) * sizeof *times);
    work.order = order;
    work.took_ns = times + 1;
    stic_forget_cached(work.source.file, 0, 0);
    times[0] = (int64_t)run_lanes(&work, lanes, (uint64_t)most_ns, &error);
  } else {
    stic_fail(&error, STIC_OUT_OF_MEMORY, "no memory for the order of %u reads", work.requests);
  }
  const bool direct = work.source.direct;
  free(order);
  stic_files_close(&work.source);
  if (error.status) return stic_ffi_raise("OSError", error.status, error.text);
  int64_t made = 0;
  for (uint64_t i = 1; i <= requests; i++)
    if (times[i]) times[++made] = times[i];
  return stic_ffi_return(result, direct ? made : -made);
}
