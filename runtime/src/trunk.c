/* The tensors of trunk.bin: where they lie, and that they hold numbers. */
#include <string.h>

#include "package.h"

typedef struct {
  uint32_t at;
  uint64_t count; /* 0: the model does not have it */
  uint32_t bits;  /* of each float: 16 or 32 */
} tensor;

enum { MODEL_TENSORS = 5, DENSE_TENSORS = 2 };

static uint32_t tensors(const stic_package *p) {
  return MODEL_TENSORS + STIC_ROLES * p->header->blocks + DENSE_TENSORS * p->header->dense;
}

static tensor of_model(const stic_package *p, uint32_t i) {
  const stic_model *m = p->model;
  const uint64_t width = p->padded_hidden, length = m->max_length;
  switch (i) {
    case 0: return (tensor){m->position_at, width * (length + (m->padding != 0)), 16};
    case 1: return (tensor){m->token_type_at, width * (m->types ? m->types : 1), 16};
    case 2: return (tensor){m->embedding_gamma_at, width, 32};
    case 3: return (tensor){m->embedding_beta_at, width, 32};
    default: return (tensor){m->rotary_at, m->rotaries * length * m->rotary_features, 32};
  }
}

/* Blocks that are left out have theirs as well: another plan may keep them. */
static tensor of_block(const stic_package *p, uint32_t block, uint32_t role) {
  const stic_cut *cut = stic_cut_of(p, block);
  const uint64_t slices = stic_slices(p, block);
  uint64_t count = p->padded_hidden;
  uint32_t at;
  memcpy(&at, (const char *)p->blocks[block].matrix + role * sizeof at, sizeof at);
  const uint32_t matrix = role / 2, queries = STIC_ROLES / 2 - 2;
  if (matrix == STIC_QKV || matrix == STIC_UP || matrix == STIC_HEAD) count = slices * cut->rows[matrix];
  if (matrix == queries) count = slices * cut->attention_width;
  if (matrix == queries + 1) count = slices * cut->key_width;
  return (tensor){at, count, 32};
}

static tensor of_head(const stic_package *p, uint32_t i) {
  const stic_dense *d = &p->dense[i / DENSE_TENSORS];
  const uint64_t rows = stic_pad(d->rows, STIC_TILE), columns = stic_pad(d->columns, STIC_TILE);
  return i % DENSE_TENSORS ? (tensor){d->bias_at, rows, 32} : (tensor){d->weight_at, rows * columns, 16};
}

static tensor tensor_of(const stic_package *p, uint32_t i) {
  const uint32_t blocks = STIC_ROLES * p->header->blocks;
  tensor t;
  if (i < MODEL_TENSORS)
    t = of_model(p, i);
  else if (i - MODEL_TENSORS < blocks)
    t = of_block(p, (i - MODEL_TENSORS) / STIC_ROLES, (i - MODEL_TENSORS) % STIC_ROLES);
  else
    return of_head(p, i - MODEL_TENSORS - blocks);
  return t.at == STIC_ABSENT ? (tensor){0, 0, 32} : t;
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
