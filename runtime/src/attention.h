/* Attention over the cache, and what precedes it: norms of queries and keys, rotation. */
#ifndef STIC_ATTENTION_H
#define STIC_ATTENTION_H

#include "cache.h"
#include "grouped.h"

/* y = the norm of x, both (features, 16), from an element of its gamma on; rows up to `padded` become zero. */
void stic_norm_rows(const stic_session *session, bool layer, const stic_norm *norm, uint64_t element, const float *x,
                    float *y, uint32_t features, uint32_t padded);

/* Rows of a rotary table for a tile's tokens, turned round: (features, 16). */
float *stic_pass_turns(const stic_pass *t, uint32_t tile, uint32_t table);

/* From region `qkv` to region `context`; leaves the tokens' keys and values in the cache. */
void stic_pass_attend(stic_pass *t);

#endif
