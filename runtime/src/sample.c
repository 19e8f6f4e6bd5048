#include "sample.h"

#include <stdbool.h>
#include <string.h>

#include "versions.h"

enum { WEIGHT_BITS = 40, DIGITS = 3, DIGIT_BITS = 11, BINS = 1 << DIGIT_BITS }; /* 3 * 11 bits cover a float's 32 */

/* Tokens above `key` are kept, and of those at it the first `ties`. */
typedef struct {
  uint32_t key;
  uint64_t ties;
} cut;

typedef struct {
  const stic_choice *choice;
  float penalty, temperature, greatest;
  cut by_count, by_weight;
} distribution;

/* floor(2^40 exp(x)) for x from -40 to 0. Every product is a statement of its own: compilers may fuse a product with a sum inside of one, and then processors
 * with such an instruction would give other weights. */
static uint64_t weight_of(double x) {
  double n = x * 1.4426950408889634;
  n = (double)(int64_t)(n - 0.5);
  const double high = n * 0.693147180369123816490, low = n * 1.90821492927058770002e-10; /* ln 2, as in fdlibm */
  const double r = (x - high) - low;
  double sum = 1;
  for (int i = 14; i >= 1; i--) {
    const double term = sum * r;
    sum = 1 + term / i;
  }
  sum *= 0x1p52;
  const int shift = 52 - WEIGHT_BITS - (int)n;
  return shift < 64 ? (uint64_t)sum >> shift : 0;
}

static bool marked(const stic_choice *c, uint32_t token) { return c->marks[token / 64] >> token % 64 & 1; }

static float logit(const distribution *d, uint32_t token) {
  const float given = d->choice->logits[token];
  if (!marked(d->choice, token)) return given;
  return given < 0 ? given * d->penalty : given / d->penalty;
}

/* 2^40 for the greatest logit. */
static uint64_t weight(const distribution *d, float value) {
  const double x = ((double)value - (double)d->greatest) / (double)d->temperature;
  return x > -WEIGHT_BITS ? weight_of(x) : 0;
}

/* An integer in the order of the floats, both zeros as one. */
static uint32_t key_of(float value) {
  const float plain = value + 0.0f;
  uint32_t bits;
  memcpy(&bits, &plain, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static float value_of(uint32_t key) {
  const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Whether the next token in the order of the vocabulary passes; `seen` counts the ties before it. */
static bool passes(cut limit, uint32_t key, uint64_t *seen) {
  return key > limit.key || (key == limit.key && (*seen)++ < limit.ties);
}

/* The cut below which nothing is needed to reach `target`, in tokens or in weight, of what `by_count` keeps: a radix
 * select, which needs no copy of the logits. With a `share` of the weight the target is that share of what there is. */
static cut select(const distribution *d, bool weights, uint64_t target, double share) {
  uint64_t bins[BINS];
  uint32_t prefix = 0;
  for (int digit = DIGITS - 1; digit >= 0; digit--) {
    const int shift = digit * DIGIT_BITS;
    uint64_t ties = 0, total = 0;
    memset(bins, 0, sizeof bins);
    for (uint32_t token = 0; token < d->choice->vocabulary; token++) {
      const float value = logit(d, token);
      const uint32_t key = key_of(value);
      if (!passes(d->by_count, key, &ties)) continue;
      if ((uint64_t)key >> (shift + DIGIT_BITS) != (uint64_t)prefix >> (shift + DIGIT_BITS)) continue;
      const uint64_t amount = weights ? weight(d, value) : 1;
      bins[key >> shift & (BINS - 1)] += amount;
      total += amount;
    }
    if (weights && digit == DIGITS - 1) target = (uint64_t)(share * (double)total);
    if (target < 1) target = 1;
    if (target > total) target = total;
    uint32_t bin = BINS - 1;
    for (; bins[bin] < target; bin--) target -= bins[bin];
    prefix |= bin << shift;
  }
  const uint64_t each = weights ? weight(d, value_of(prefix)) : 1;
  return (cut){prefix, (target + each - 1) / each};
}

static uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint64_t stic_sample_draw(uint64_t seed, uint64_t position) {
  return mix(mix(seed) + (position + 1) * 0x9e3779b97f4a7c15u);
}

/* The upper 64 bits of a product. */
static uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
  const uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (uint32_t)middle;
  return a1 * b1 + (middle >> 32) + (other >> 32);
}

/* The token up to which the weights that are left exceed `limit`, if any; their sum is in *total. */
static int32_t walk(const distribution *d, double min_p, uint64_t limit, uint64_t *total) {
  const double least = min_p * 0x1p40;
  uint64_t sum = 0, by_count = 0, by_weight = 0;
  for (uint32_t token = 0; token < d->choice->vocabulary; token++) {
    const float value = logit(d, token);
    const uint32_t key = key_of(value);
    if (!passes(d->by_count, key, &by_count) || !passes(d->by_weight, key, &by_weight)) continue;
    const uint64_t amount = weight(d, value);
    if ((double)amount < least) continue;
    sum += amount;
    if (sum > limit) return (int32_t)token;
  }
  *total = sum;
  return -1;
}

static stic_status check(const stic_sampling *s, stic_error *error) {
  const bool finite = s->temperature <= 3e38f && s->repetition_penalty <= 3e38f;
  if (finite && s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1 &&
      s->repetition_penalty > 0)
    return STIC_OK;
  return stic_fail(error, STIC_INVALID_ARGUMENT,
                   "stic_sampling is out of range: temperature is at least 0, top_p above 0 and at most 1, min_p 0 to"
                   " 1, repetition_penalty above 0");
}

static stic_status mark(const stic_choice *c, stic_error *error) {
  memset(c->marks, 0, stic_sample_marks(c->vocabulary) * sizeof *c->marks);
  for (size_t i = 0; i < c->recent_tokens; i++) {
    const int32_t token = c->recent[i];
    if (token < 0 || (uint32_t)token >= c->vocabulary)
      return stic_fail(error, STIC_TOKEN_RANGE, "recent token %zu has id %d; the vocabulary has %u", i, token,
                       c->vocabulary);
    c->marks[token / 64] |= (uint64_t)1 << token % 64;
  }
  return STIC_OK;
}

/* The token of the greatest logit, the lowest of several. */
static stic_status find_greatest(distribution *d, int32_t *token, stic_error *error) {
  const float infinity = value_of(0xff800000u);
  d->greatest = -infinity;
  for (uint32_t i = 0; i < d->choice->vocabulary; i++) {
    const float value = logit(d, i);
    if (!(value < infinity))
      return stic_fail(error, STIC_INVALID_ARGUMENT, "the logit of token %u is not a number, or infinite", i);
    if (value <= d->greatest) continue;
    d->greatest = value;
    *token = (int32_t)i;
  }
  if (d->greatest > -infinity) return STIC_OK;
  return stic_fail(error, STIC_INVALID_ARGUMENT, "all logits are -infinity: no token is left to draw");
}

stic_status stic_sample(const stic_sampling *given, const stic_choice *choice, int32_t *token, stic_error *error) {
  stic_sampling sampling = STIC_SAMPLING_DEFAULT;
  stic_status status = stic_version_read("stic_sampling", &sampling, sizeof sampling, given, error);
  if (status || (status = check(&sampling, error)) || (status = mark(choice, error))) return status;
  const cut all = {0, UINT64_MAX};
  distribution d = {choice, sampling.repetition_penalty, sampling.temperature, 0, all, all};
  int32_t found = 0;
  if ((status = find_greatest(&d, &found, error))) return status;
  if (sampling.temperature > 0) {
    if (sampling.top_k && sampling.top_k < choice->vocabulary) d.by_count = select(&d, false, sampling.top_k, 0);
    if (sampling.top_p < 1) d.by_weight = select(&d, true, 0, sampling.top_p);
    uint64_t total = 0;
    walk(&d, sampling.min_p, UINT64_MAX, &total);
    found = walk(&d, sampling.min_p, multiply_high(total, stic_sample_draw(sampling.seed, choice->position)), &total);
  }
  *token = found;
  return STIC_OK;
}
