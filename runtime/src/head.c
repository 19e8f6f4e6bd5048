/* From the last hidden state to the output: pooling, linear maps, length 1. Up to 16 vectors at a time stand side by
 * side as lanes of a tile: tokens of the input, or the single pooled vector in lane 0. */
#include <string.h>

#include "scalar.h"
#include "session.h"

typedef struct {
  stic_session *s;
  const stic_dense *dense;
  float *from, *to;
} step;

static float activate(float x, uint32_t activation) {
  switch (activation) {
    case STIC_GELU: return (float)(0.5 * x * (1 + stic_error_function(x * 0.7071067811865476)));
    case STIC_GELU_TANH:
      return (float)(0.5 * x * (1 + stic_hyperbolic_tangent(0.7978845608028654 * (x + 0.044715 * x * x * x))));
    case STIC_RELU: return x > 0 ? x : 0;
    case STIC_TANH: return (float)stic_hyperbolic_tangent(x);
    default: return x;
  }
}

static void dense_block(void *context, uint32_t block, uint32_t thread) {
  const step *t = context;
  stic_session *s = t->s;
  const stic_dense *d = t->dense;
  const uint32_t columns = (uint32_t)stic_pad(d->columns, STIC_TILE);
  float *y = t->to + (size_t)block * STIC_TILE * STIC_TILE;
  (void)thread;
  s->kernels.bias(y, (float *)stic_trunk_at(s, d->bias_at) + block * STIC_TILE, STIC_TILE, 1);
  s->kernels.matmul_f16((stic_half *)stic_trunk_at(s, d->weight_at) + (size_t)block * STIC_TILE * columns, t->from, y,
                        (int32_t)columns, (int32_t)columns, STIC_TILE, 1);
  for (int i = 0; i < STIC_TILE * STIC_TILE && d->activation != STIC_LINEAR; i++) y[i] = activate(y[i], d->activation);
}

/* Apply the linear maps to the tile in the first half of region `head`; returns where the result is. */
static float *apply_dense(stic_session *s) {
  const stic_package *p = &s->package;
  float *halves[2] = {stic_region_at(s, STIC_REGION_HEAD), NULL};
  halves[1] = halves[0] + p->regions[STIC_REGION_HEAD].bytes / sizeof(float) / 2 / STIC_TILE * STIC_TILE;
  for (uint32_t i = 0; i < p->header->dense; i++) {
    step t = {s, &p->dense[i], halves[i % 2], halves[(i + 1) % 2]};
    stic_pool_run(&s->pool, dense_block, &t, (uint32_t)(stic_pad(t.dense->rows, STIC_TILE) / STIC_TILE));
  }
  return halves[p->header->dense % 2];
}

static void normalise(float *vector, uint32_t features) {
  double sum = 0;
  for (uint32_t f = 0; f < features; f++) sum += (double)vector[f] * vector[f];
  const float length = (float)stic_square_root(sum), divisor = length > 1e-12f ? length : 1e-12f;
  for (uint32_t f = 0; f < features; f++) vector[f] /= divisor;
}

/* Pool the n tokens of x into to[feature * stride]. */
static void pool(const stic_session *s, uint32_t n, float *to, uint32_t stride) {
  const stic_package *p = &s->package;
  const float *x = stic_region_at(s, STIC_REGION_X);
  const uint32_t used = p->model->pooling == STIC_POOL_FIRST ? 1 : n;
  for (uint32_t f = 0; f < p->model->hidden; f++) {
    float sum = 0;
    for (uint32_t t = 0; t < used; t++)
      sum += x[((size_t)(t / STIC_TILE) * p->padded_hidden + f) * STIC_TILE + t % STIC_TILE];
    to[(size_t)f * stride] = sum / (float)used;
  }
}

static void gather(const float *tile, uint32_t lanes, uint32_t features, float *output) {
  for (uint32_t lane = 0; lane < lanes; lane++)
    for (uint32_t f = 0; f < features; f++) output[(size_t)lane * features + f] = tile[(size_t)f * STIC_TILE + lane];
}

void stic_compute_head(stic_session *s, uint32_t n) {
  const uint64_t begin = stic_trace_now(&s->trace);
  const stic_package *p = &s->package;
  const stic_model *m = p->model;
  float *output = stic_region_at(s, STIC_REGION_OUTPUT), *head = stic_region_at(s, STIC_REGION_HEAD);
  const size_t tile_floats = (size_t)p->padded_hidden * STIC_TILE;
  const bool each = m->pooling == STIC_POOL_TOKENS;
  if (!each && p->header->dense == 0) {
    pool(s, n, output, 1);
  } else if (!each) {
    memset(head, 0, tile_floats * sizeof *head);
    pool(s, n, head, STIC_TILE);
    gather(apply_dense(s), 1, m->output_features, output);
  }
  for (uint32_t first = 0; each && first < n; first += STIC_TILE) {
    const float *tile = (float *)stic_region_at(s, STIC_REGION_X) + (first / STIC_TILE) * tile_floats;
    if (p->header->dense) {
      memcpy(head, tile, tile_floats * sizeof *head);
      tile = apply_dense(s);
    }
    gather(tile, n - first < STIC_TILE ? n - first : STIC_TILE, m->output_features,
           output + (size_t)first * m->output_features);
  }
  for (uint32_t t = 0; m->normalize && t < (each ? n : 1); t++)
    normalise(output + (size_t)t * m->output_features, m->output_features);
  stic_stage_done(s, STIC_EVENT_HEAD, -1, begin);
}
