/* The tensors of trunk.bin: where they lie, and that they hold numbers. */
#include "package.h"

typedef struct {
  uint32_t at;
  uint64_t count;
  uint32_t bits; /* of each float: 16 or 32 */
} tensor;

enum { EMBEDDING_TENSORS = 4, LAYER_TENSORS = 12, DENSE_TENSORS = 2 };

static uint32_t tensors(const stic_package *p) {
  return EMBEDDING_TENSORS + LAYER_TENSORS * p->header->layers + DENSE_TENSORS * p->header->dense;
}

static tensor of_embedding(const stic_package *p, uint32_t i) {
  const stic_header *h = p->header;
  const uint64_t width = p->padded_hidden;
  switch (i) {
    case 0: return (tensor){h->position_at, width * (h->max_length + (h->padding != 0)), 16};
    case 1: return (tensor){h->token_type_at, width * (h->types ? h->types : 1), 16};
    case 2: return (tensor){h->embedding_gamma_at, width, 32};
    default: return (tensor){h->embedding_beta_at, width, 32};
  }
}

/* Layers that are left out have theirs as well: another plan may keep them. */
static tensor of_layer(const stic_package *p, uint32_t layer, uint32_t i) {
  const stic_layer *l = &p->layers[layer];
  const uint64_t width = p->padded_hidden, slices = p->header->slices;
  const uint64_t qkv = slices * p->rows[STIC_QKV], up = slices * p->rows[STIC_UP];
  const tensor all[LAYER_TENSORS] = {{l->qkv_scale_at, qkv, 32},         {l->qkv_bias_at, qkv, 32},
                                     {l->out_scale_at, width, 32},       {l->out_bias_at, width, 32},
                                     {l->attention_gamma_at, width, 32}, {l->attention_beta_at, width, 32},
                                     {l->up_scale_at, up, 32},           {l->up_bias_at, up, 32},
                                     {l->down_scale_at, width, 32},      {l->down_bias_at, width, 32},
                                     {l->ffn_gamma_at, width, 32},       {l->ffn_beta_at, width, 32}};
  return all[i];
}

static tensor of_head(const stic_package *p, uint32_t i) {
  const stic_dense *d = &p->dense[i / DENSE_TENSORS];
  const uint64_t rows = stic_pad(d->rows, STIC_TILE), columns = stic_pad(d->columns, STIC_TILE);
  return i % DENSE_TENSORS ? (tensor){d->bias_at, rows, 32} : (tensor){d->weight_at, rows * columns, 16};
}

static tensor tensor_of(const stic_package *p, uint32_t i) {
  if (i < EMBEDDING_TENSORS) return of_embedding(p, i);
  i -= EMBEDDING_TENSORS;
  if (i < LAYER_TENSORS * p->header->layers) return of_layer(p, i / LAYER_TENSORS, i % LAYER_TENSORS);
  return of_head(p, i - LAYER_TENSORS * p->header->layers);
}

stic_status stic_trunk_check_places(const stic_package *p, stic_error *error) {
  for (uint32_t i = 0; i < tensors(p); i++) {
    const tensor t = tensor_of(p, i);
    STIC_REQUIRE(tensor_place, t.at % STIC_ALIGN == 0 && t.at + t.count * t.bits / 8 <= p->trunk->bytes,
                 "index.bin: tensor %u lies outside trunk.bin", i);
  }
  return STIC_OK;
}

stic_status stic_trunk_check(const stic_package *p, const uint8_t *trunk, stic_error *error) {
  for (uint32_t i = 0; i < tensors(p); i++) {
    const tensor t = tensor_of(p, i);
    STIC_REQUIRE(tensor_finite, stic_finite(trunk + t.at, t.count, t.bits),
                 "tensor %u of trunk.bin holds values that are NaN or infinite: compile the package again", i);
  }
  return STIC_OK;
}
