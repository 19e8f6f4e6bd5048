/* Products with the matrices of a decoder's block, a stage at a time; decoder.c says which stages make a block. */
#ifndef STIC_GROUPED_H
#define STIC_GROUPED_H

#include "decoder.h"

/* A pass, where it stands, and what the items of a stage need to know. */
typedef struct stic_pass {
  stic_session *s;
  uint32_t n, tiles, position; /* tokens, tiles of them, tokens of the text before them */
  stic_wanted wanted;
  uint64_t cache_at; /* of the block, in region `cache` */
  uint32_t number;   /* of the block */
  const stic_block *block;
  const stic_cut *cut;
  struct stic_kept kept;
  bool prepared; /* region `normed` holds already what this block reads */
  /* The stage. */
  uint32_t matrix;
  bool joined;         /* columns belong to slices, else rows */
  uint32_t parts;      /* items of attention for the queries of a key head */
  const float *source; /* (tiles, source_rows, 16); a slice's own features begin `source_pitch` rows after another's */
  uint32_t source_rows, source_pitch;
  uint32_t groups; /* of a slice's columns */
  float *target;   /* (tiles, target_rows, 16) */
  uint32_t target_rows;
} stic_pass;

static inline float *stic_floats_at(const stic_session *s, uint32_t region) { return stic_region_at(s, region); }

/* A tensor of the trunk from an element on; zeros where the model does not have it. */
const float *stic_floats_of(const stic_session *s, uint32_t at, uint64_t element);

/* Run `items` items of a stage on all threads, and note it. */
void stic_pass_run(stic_pass *t, uint32_t kind, stic_item run, uint32_t items);

/* Say that the next stages multiply `matrix` with `source`, and leave the result in `target`. */
void stic_pass_aim(stic_pass *t, uint32_t matrix, const float *source, uint32_t source_rows, uint32_t source_pitch,
                   float *target, uint32_t target_rows);

/* Leave the quantised form of a tile of a slice's features, where any slice needs it; slice 0 stands for all where rows
 * belong to slices. */
void stic_pass_quantize(const stic_pass *t, uint32_t tile, uint32_t slice);

/* Find the codes of all slices that are quantised. */
void stic_pass_find(const stic_pass *t);

/* y = bias + W x for 16 rows, y (tiles, target_rows, 16): those of block `block` of a slice; or of a matrix whose columns
 * belong to slices, through all slices. */
void stic_pass_split_rows(const stic_pass *t, uint32_t slice, uint32_t block, float *y, uint32_t thread);
void stic_pass_joined_rows(const stic_pass *t, uint32_t block, float *y, uint32_t thread);

#endif
