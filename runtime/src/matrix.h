/* Products with the matrices of a block, a stage at a time; encoder.c says which stages make a layer. */
#ifndef STIC_MATRIX_H
#define STIC_MATRIX_H

#include "session.h"

/* A stage of a block, and what its items need to know. */
typedef struct stic_step {
  stic_session *s;
  struct stic_kept kept;   /* of the block */
  uint32_t number;         /* of the block */
  const stic_cut *cut;     /* of the block */
  uint32_t n, tiles;       /* tokens, tiles of them */
  uint32_t matrix, blocks; /* of the stage; blocks of 16 rows in the matrix */
  uint32_t queries;        /* tiles of them in an item of attention */
  const float *source;     /* input of the stage, (tiles, width, 16) */
  uint32_t width;
  uint32_t scale_at, bias_at; /* in the trunk */
  uint32_t gamma_at, beta_at;
  float *target; /* output of the stage */
  bool quantize;
} stic_step;

static inline float *stic_floats_at(const stic_session *s, uint32_t region) { return stic_region_at(s, region); }

/* A thread's share of region `scratch`. */
static inline float *stic_step_scratch(const stic_step *t, uint32_t thread) {
  return stic_floats_at(t->s, STIC_REGION_SCRATCH) + thread * stic_scratch_bytes(&t->s->package) / sizeof(float);
}

/* Run `items` items of a stage on all threads, and note it. */
void stic_step_run(stic_step *t, uint32_t kind, stic_item run, uint32_t items);

/* Leave the quantised form of `source`. */
void stic_step_quantize(stic_step *t);

/* Region `target` = bias + W x for `matrix` of the block and x of `width` features in region `source`: for qkv and up
 * from its quantised form, which must be there; for out and down after quantising it. `up` has the activation on top. */
void stic_step_project(stic_step *t, uint32_t kind, uint32_t matrix, uint32_t source, uint32_t width, uint32_t target);

#endif
