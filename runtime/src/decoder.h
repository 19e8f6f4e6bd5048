/* A decoder's pass: a chunk of tokens through all blocks; and what its files share. */
#ifndef STIC_DECODER_H
#define STIC_DECODER_H

#include "session.h"

/* Which logits a pass leaves: none, and then it ends before the vocabulary; those of its last token in region `logits`;
 * or those of all its tokens in `target`, (tokens, vocabulary). */
typedef struct stic_wanted {
  bool any;
  float *target; /* NULL: of the last token only */
} stic_wanted;

/* Compute the n tokens in region `ids`, at positions from `position` on, while the lanes read. */
stic_status stic_decode(stic_session *session, uint32_t n, uint32_t position, stic_wanted wanted);

#endif
