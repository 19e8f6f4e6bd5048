/* The next token from logits. The definition is exact: the same logits, settings, recent tokens and position give the
 * same token with every compiler, on every processor, from C and from Python.
 *
 * In this order, which is that of Hugging Face's generate (llama.cpp applies the temperature last):
 *
 *     1. repetition penalty r (arXiv 1909.05858): the logit of every token among the recent ones, however often it is
 *        there, becomes logit / r, or logit * r where it is negative.
 *     2. temperature T: 0 takes the greatest logit, of equal ones the lowest token, and ends here. Otherwise token i has
 *        the weight floor(2^40 exp((logit[i] - greatest logit) / T)), an integer, so that sums of weights have no order.
 *     3. top_k keeps the k greatest logits; 0 keeps all.
 *     4. top_p (arXiv 1904.09751) keeps the fewest tokens, greatest logits first, whose weights come to at least
 *        floor(top_p W), where W is the weight that step 3 leaves; 1 keeps all.
 *     5. min_p (arXiv 2407.01082) keeps tokens whose weight is at least min_p of the greatest weight; 0 keeps all.
 *     6. Of what is left, with weight W, a token is drawn: the first one, in the order of the vocabulary, up to which the
 *        weights come to more than floor(W n / 2^64), where n is the draw below.
 *
 * Where equal logits stand at the limit of top_k or top_p, the lowest tokens stay. A logit may be -infinity, which bans
 * its token; logits that are NaN or +infinity, and logits that ban all tokens, are refused.
 *
 * The draw n is mix(mix(seed) + (position + 1) * 0x9e3779b97f4a7c15), mix being the output function of SplitMix64 (Steele,
 * Lea and Flood, OOPSLA 2014). It depends on nothing that was drawn before: a text that is taken back to a position and
 * continued gives the same text again, unless the seed is changed. */
#ifndef STIC_SAMPLE_H
#define STIC_SAMPLE_H

#include "error.h"

/* What to sample from. */
typedef struct stic_choice {
  const float *logits;
  uint32_t vocabulary;   /* logits; at least 1, at most 2^23 */
  const int32_t *recent; /* tokens that the penalty concerns; others than the vocabulary's are refused */
  size_t recent_tokens;
  uint64_t position; /* that the token will have */
  uint64_t *marks;   /* [stic_sample_marks(vocabulary)] scratch */
} stic_choice;

static inline size_t stic_sample_marks(uint32_t vocabulary) { return ((size_t)vocabulary + 63) / 64; }

/* Choose a token. STIC_INVALID_ARGUMENT: settings out of range, or logits that nothing can be drawn from. */
stic_status stic_sample(const stic_sampling *sampling, const stic_choice *choice, int32_t *token, stic_error *error);

/* The draw at a position, uniform over 64 bits. */
uint64_t stic_sample_draw(uint64_t seed, uint64_t position);

#endif
