/* What the files of stic_run share. */
#ifndef STIC_RUN_H
#define STIC_RUN_H

#include <stdbool.h>
#include <stddef.h>

#include "../include/stic.h"

/* What --generate and its options ask for. */
typedef struct {
  uint32_t tokens; /* at most; 0: nothing is generated */
  uint32_t recent; /* tokens that the repetition penalty concerns */
  stic_sampling sampling;
  int32_t *stop; /* tokens that end the answer */
  int32_t stops;
  const char *load, *save;
  bool json;
} generation;

/* Generate after n ids, and print the tokens and what they cost; returns the program's exit status. */
int generate(stic_session *session, const generation *how, const int32_t *ids, size_t n);

/* Memory, or the program's end. */
void *need(void *memory);

/* Print the sentence of a failure; returns the program's exit status. */
int failed(const stic_session *session);

/* Print what runs cost, at least one; sorts their times. */
void print_costs(const stic_session *session, uint64_t *times, uint64_t runs, uint64_t stall_us, bool json);

#endif
