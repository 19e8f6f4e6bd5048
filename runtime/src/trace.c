#include "trace.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "platform.h"

void stic_trace_start(stic_trace *trace) {
  atomic_store(&trace->count, 0);
  trace->start_ns = stic_now_ns();
}

uint64_t stic_trace_now(const stic_trace *trace) { return stic_now_ns() - trace->start_ns; }

void stic_trace_add(stic_trace *trace, stic_event event) {
  const uint32_t i = atomic_fetch_add(&trace->count, 1);
  if (i < trace->capacity) trace->events[i] = event;
}

uint32_t stic_trace_kept(const stic_trace *trace) {
  const uint32_t count = atomic_load(&trace->count);
  return count < trace->capacity ? count : trace->capacity;
}

static const char *name_of(uint32_t kind) {
  switch (kind) {
    case STIC_EVENT_STALL: return "stall";
    case STIC_EVENT_EMBED: return "embed";
    case STIC_EVENT_QUANTIZE: return "quantize";
    case STIC_EVENT_QKV: return "qkv";
    case STIC_EVENT_ATTENTION: return "attention";
    case STIC_EVENT_OUT: return "out";
    case STIC_EVENT_NORM: return "norm";
    case STIC_EVENT_UP: return "up";
    case STIC_EVENT_DOWN: return "down";
    case STIC_EVENT_HEAD: return "head";
    case STIC_EVENT_HAND_OVER: return "hand-over";
    case STIC_EVENT_CACHE: return "cache";
    case STIC_EVENT_READ: return "read";
    case STIC_EVENT_ROWS: return "rows";
    case STIC_EVENT_CHECK: return "check";
    default: return "event";
  }
}

enum { GPU_ROW = 1000 }; /* compute is row 0, IO lanes follow it */

static int row_of(int32_t track) { return track == STIC_TRACK_GPU ? GPU_ROW : track + 1; }

/* Chrome's trace event format; times in microseconds, one track for compute, one for each lane, one for the GPU. */
stic_status stic_trace_save(const stic_trace *trace, const char *path, uint32_t lanes, stic_error *error) {
  FILE *file = fopen(path, "w");
  if (!file) return stic_fail(error, STIC_IO, "%s cannot be written (%s)", path, strerror(errno));
  fprintf(file, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
  fprintf(file, "{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"args\":{\"name\":\"stic\"}},\n");
  fprintf(file, "{\"ph\":\"M\",\"pid\":1,\"tid\":0,\"name\":\"thread_name\",\"args\":{\"name\":\"compute\"}}");
  for (uint32_t lane = 0; lane < lanes; lane++)
    fprintf(file, ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%u,\"name\":\"thread_name\",\"args\":{\"name\":\"IO lane %u\"}}",
            lane + 1, lane);
  const uint32_t kept = stic_trace_kept(trace);
  bool gpu = false;
  for (uint32_t i = 0; i < kept; i++) gpu = gpu || trace->events[i].track == STIC_TRACK_GPU;
  if (gpu)
    fprintf(file, ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"GPU\"}}",
            GPU_ROW);
  for (uint32_t i = 0; i < kept; i++) {
    const stic_event *e = &trace->events[i];
    fprintf(file, ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"name\":\"%s\",\"cat\":\"%s\",\"ts\":%.3f,\"dur\":%.3f",
            row_of(e->track), name_of(e->kind), e->track < 0 ? "compute" : "io", (double)e->begin_ns / 1e3,
            (double)(e->end_ns - e->begin_ns) / 1e3);
    fprintf(file, ",\"args\":{\"layer\":%d", e->layer);
    if (e->kind == STIC_EVENT_READ || e->kind == STIC_EVENT_CHECK)
      fprintf(file, ",\"level\":%u,\"first\":%u,\"count\":%u", e->level, e->first, e->count);
    if (e->track >= 0) fprintf(file, ",\"bytes\":%u,\"submit_us\":%.3f", e->bytes, (double)e->submit_ns / 1e3);
    fprintf(file, "}}");
  }
  fprintf(file, "\n]}\n");
  const int failed = ferror(file);
  if (fclose(file) || failed) return stic_fail(error, STIC_IO, "%s could not be written completely", path);
  return STIC_OK;
}
