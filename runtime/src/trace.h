/* Events of one run, kept in an array that is taken at open. */
#ifndef STIC_TRACE_H
#define STIC_TRACE_H

#include <stdatomic.h>

#include "error.h"

typedef struct stic_trace {
  stic_event *events;
  uint32_t capacity; /* events beyond it are counted, not kept */
  _Atomic uint32_t count;
  uint64_t start_ns;
} stic_trace;

void stic_trace_start(stic_trace *trace);

/* Nanoseconds since the start of the run. */
uint64_t stic_trace_now(const stic_trace *trace);

/* Any thread. */
void stic_trace_add(stic_trace *trace, stic_event event);

uint32_t stic_trace_kept(const stic_trace *trace);

stic_status stic_trace_save(const stic_trace *trace, const char *path, uint32_t lanes, stic_error *error);

#endif
