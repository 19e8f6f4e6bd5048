/* Check what a model is, how its blocks are cut, and that both go together. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "package.h"

static const stic_limit of_model[] = {
#define LIMIT(field, least, most) {offsetof(stic_model, field), #field, least, most}
    LIMIT(hidden, 1, 1u << 14),
    LIMIT(vocabulary, 1, 1u << 22),
    LIMIT(max_length, 1, 1u << 17),
    LIMIT(chunk, 1, 4096),
    LIMIT(causal, 0, 1),
    LIMIT(types, 0, 64),
    LIMIT(pooling, 0, STIC_POOLINGS - 1),
    LIMIT(normalize, 0, 1),
    LIMIT(output_features, 1, 1u << 22),
    LIMIT(norm, 0, STIC_NORMS - 1),
    LIMIT(cache, 0, STIC_CACHES - 1),
    LIMIT(rotaries, 0, 4),
    LIMIT(rotary_features, 0, 1024),
#undef LIMIT
};
static const stic_limit of_shape[] = {
#define LIMIT(field, least, most) {offsetof(stic_shape, field), #field, least, most}
    LIMIT(kind, 0, STIC_KINDS - 1),
    LIMIT(slices, 1, 256),
    LIMIT(heads_per_slice, 0, 256),
    LIMIT(key_heads_per_slice, 0, 256),
    LIMIT(head_dim, 0, 1024),
    LIMIT(neurons_per_slice, 0, 1u << 16),
    LIMIT(gated, 0, 1),
    LIMIT(rows_per_slice, 0, 1u << 16),
#undef LIMIT
};

/* Whether rows so far apart may begin in one block and end in another, and be no longer than both. */
static bool straddles(uint32_t row_stride) { return row_stride % STIC_BLOCK && STIC_BLOCK % row_stride; }

/* An IO lane's buffer: the blocks that a row touches. For tied rows, those of a part of what is read for one, wherever it
 * begins; then what was found of the row (tied.c). */
static uint64_t staging_bytes(const stic_package *p) {
  const uint64_t stride = p->header->row_stride, part = stic_pad(4 * (uint64_t)p->padded_hidden + 512, STIC_BLOCK);
  if (stride) return stic_pad(stride, STIC_BLOCK) + (straddles((uint32_t)stride) ? STIC_BLOCK : 0);
  return 2 * part + STIC_BLOCK;
}

static stic_status check_model(const stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  const stic_model *m = p->model;
  const stic_status status = stic_check_limits(m, of_model, sizeof of_model / sizeof *of_model, error);
  if (status) return status;
  const float multiplier = m->embedding_multiplier;
  STIC_REQUIRE(multiplier, isfinite(multiplier), "index.bin: the embedding's multiplier is no number");
  STIC_REQUIRE(row_tied,
               !stic_tied(p) ||
                   (m->causal && !h->row_stride && !h->table_resident && m->vocabulary == m->output_features),
               "index.bin: rows are tied to %u of a head, with %u tokens or a table of their own", m->output_features,
               m->vocabulary);
  STIC_REQUIRE(row_fits, stic_tied(p) || h->row_stride >= stic_row_checked(p) + 4,
               "index.bin: an embedding row does not fit row_stride %u", h->row_stride);
  STIC_REQUIRE(padding, m->padding <= m->vocabulary, "index.bin: the padding is token %u of %u", m->padding - 1,
               m->vocabulary);
  STIC_REQUIRE(rotary_pairs, m->rotary_features % 2 == 0 && !m->rotaries == !m->rotary_features,
               "index.bin: %u rotary tables of %u features", m->rotaries, m->rotary_features);
  STIC_REQUIRE(encoder,
               m->causal ||
                   (m->chunk == m->max_length && h->group == 0 && m->rotaries == 0 && m->cache == STIC_NO_CACHE &&
                    m->norm == STIC_LAYER_NORM && multiplier >= 1 && multiplier <= 1),
               "index.bin: an encoder has what decoders have");
  STIC_REQUIRE(decoder,
               !m->causal ||
                   (m->chunk <= m->max_length && h->group && m->cache != STIC_NO_CACHE && m->types == 0 &&
                    m->padding == 0 && m->pooling == 0 && m->normalize == 0 && h->dense == 0 && h->gpu_at == 0),
               "index.bin: a decoder has what encoders have, or lacks a cache or groups");
  STIC_REQUIRE(row_straddles, m->causal || !straddles(h->row_stride),
               "index.bin: row_stride %u makes rows straddle blocks", h->row_stride);
  STIC_REQUIRE(model_tensors,
               m->causal
                   ? m->token_type_at == STIC_ABSENT && m->embedding_gamma_at == STIC_ABSENT &&
                         m->embedding_beta_at == STIC_ABSENT && (m->rotary_at == STIC_ABSENT) == (m->rotaries == 0)
                   : m->position_at != STIC_ABSENT && m->token_type_at != STIC_ABSENT &&
                         m->embedding_gamma_at != STIC_ABSENT && m->embedding_beta_at != STIC_ABSENT &&
                         m->rotary_at == STIC_ABSENT,
               "index.bin: the model has a tensor of another kind of model, or lacks one");
  return STIC_OK;
}

/* Fields that a kind has are 1 at least, the others 0. */
static bool has_kind(const stic_shape *s) {
  const bool attention = s->heads_per_slice && s->key_heads_per_slice && s->head_dim;
  const bool none = !s->heads_per_slice && !s->key_heads_per_slice && !s->head_dim;
  switch (s->kind) {
    case STIC_LAYER:
      return attention && s->heads_per_slice == s->key_heads_per_slice && s->neurons_per_slice && !s->gated &&
             !s->rows_per_slice;
    case STIC_ATTENTION:
      return attention && s->heads_per_slice % s->key_heads_per_slice == 0 && !s->neurons_per_slice && !s->gated &&
             !s->rows_per_slice;
    case STIC_FEED_FORWARD: return none && s->neurons_per_slice && !s->rows_per_slice;
    default: return none && !s->neurons_per_slice && !s->gated && s->rows_per_slice;
  }
}

/* Lay out a record of a level; returns its bytes without outliers, of which there may be more than `end` can tell. */
static uint64_t lay_out_record(const stic_header *h, stic_cut *cut, uint32_t level) {
  stic_layout *layout = &cut->layouts[level];
  const uint32_t bits = level == STIC_FULL ? h->full_bits : stic_bits_of_level(level);
  const bool whole = level != STIC_FULL && (!h->nested || level == 0); /* the record stands alone */
  layout->planes = level != STIC_FULL && whole ? bits : 1;
  layout->has_outliers = whole && !h->group;
  layout->has_ratios = whole && h->group;
  uint64_t at = 0;
  for (int m = 0; m < STIC_MATRICES; m++) {
    const uint64_t codes = (uint64_t)cut->rows[m] * cut->columns[m];
    layout->plane_at[m] = (uint32_t)at;
    at +=
        level == STIC_FULL ? stic_pad(codes * bits / 8, STIC_ALIGN) : layout->planes * stic_pad(codes / 8, STIC_ALIGN);
  }
  for (int m = 0; m < STIC_MATRICES && level != STIC_FULL; m++) {
    layout->table_at[m] = (uint32_t)at;
    at += cut->rows[m] ? stic_pad(1u << bits, STIC_ALIGN) : 0;
  }
  for (int m = 0; m < STIC_MATRICES && layout->has_outliers; m++) {
    layout->blocks_at[m] = (uint32_t)at;
    at += cut->rows[m] ? stic_pad(4 * (cut->rows[m] / STIC_TILE + 1), STIC_ALIGN) : 0;
  }
  for (int m = 0; m < STIC_MATRICES && layout->has_ratios; m++) {
    layout->ratios_at[m] = (uint32_t)at;
    at = stic_pad(at + (uint64_t)cut->rows[m] * stic_groups(cut->columns[m]), STIC_ALIGN);
  }
  layout->end = (uint32_t)at;
  return at;
}

static stic_status check_shape(stic_package *p, uint32_t number, stic_error *error) {
  const stic_shape *s = &p->shapes[number];
  stic_cut *cut = &p->cuts[number];
  const stic_status status = stic_check_limits(s, of_shape, sizeof of_shape / sizeof *of_shape, error);
  if (status) return status;
  STIC_REQUIRE(shape_kind, has_kind(s), "index.bin: shape %u has sizes of another kind, or lacks one", number);
  const uint32_t hidden = p->padded_hidden;
  cut->entry = *s;
  cut->attention_width = (uint32_t)stic_pad(s->heads_per_slice * s->head_dim, STIC_TILE);
  cut->key_width = (uint32_t)stic_pad(s->key_heads_per_slice * s->head_dim, STIC_TILE);
  cut->ffn_width = (uint32_t)stic_pad(s->neurons_per_slice, STIC_TILE);
  const bool attends = cut->attention_width, feeds = cut->ffn_width, tells = s->rows_per_slice;
  const uint32_t rows[STIC_MATRICES] = {attends ? cut->attention_width + 2 * cut->key_width : 0, attends ? hidden : 0,
                                        cut->ffn_width << s->gated, feeds ? hidden : 0,
                                        (uint32_t)stic_pad(s->rows_per_slice, STIC_TILE)};
  const uint32_t columns[STIC_MATRICES] = {attends ? hidden : 0, cut->attention_width, feeds ? hidden : 0,
                                           cut->ffn_width, tells ? hidden : 0};
  memcpy(cut->rows, rows, sizeof rows);
  memcpy(cut->columns, columns, sizeof columns);
  for (int m = 0; m < STIC_MATRICES; m++)
    STIC_REQUIRE(shape_columns, columns[m] <= (p->header->group ? 1u << 16 : 1u << 12),
                 "index.bin: a matrix of shape %u has %u columns, more than outliers or kernels can name", number,
                 columns[m]);
  for (uint32_t level = 0; level < STIC_LEVELS; level++)
    STIC_REQUIRE(shape_record, lay_out_record(p->header, cut, level) < (uint64_t)1 << 31,
                 "index.bin: a record of shape %u is larger than 2 GiB", number);
  if (s->head_dim > p->widest_head) p->widest_head = s->head_dim;
  if (s->slices > p->most_slices) p->most_slices = s->slices;
  return STIC_OK;
}

/* Tensors of a block in the order of stic_block, as bits; which a kind must have and which it may have. */
enum {
  SCALE = 1,
  LINEAR = 3, /* scale and bias, gamma and beta */
  NORM = 3,
  QKV = 0,
  OUT = 2,
  UP = 4,
  DOWN = 6,
  HEAD = 8,
  INPUT = 10,
  BRANCH = 12,
  POST = 14,
  BETWEEN = 16,
  QUERIES = 18,
  KEYS = 20
};
static const struct {
  uint32_t required, optional;
} tensors_of[STIC_KINDS] = {
    [STIC_LAYER] = {LINEAR << QKV | LINEAR << OUT | LINEAR << UP | LINEAR << DOWN | NORM << POST | NORM << BETWEEN, 0},
    [STIC_ATTENTION] = {SCALE << QKV | SCALE << OUT, LINEAR << QKV | LINEAR << OUT | NORM << INPUT | NORM << BRANCH |
                                                         NORM << POST | NORM << QUERIES | NORM << KEYS},
    [STIC_FEED_FORWARD] = {SCALE << UP | SCALE << DOWN,
                           LINEAR << UP | LINEAR << DOWN | NORM << INPUT | NORM << BRANCH | NORM << POST},
    [STIC_VOCABULARY] = {SCALE << HEAD, LINEAR << HEAD | NORM << INPUT},
};

/* What a norm of layers has and others do not. */
static uint32_t betas_of(const stic_package *p, const stic_block *b) {
  uint32_t betas = 0;
  if (p->model->norm == STIC_LAYER_NORM) betas |= 2u << INPUT | 2u << BRANCH | 2u << POST | 2u << BETWEEN;
  if (b->flags & STIC_LAYER_HEAD_NORM) betas |= 2u << QUERIES | 2u << KEYS;
  return betas;
}

static bool has_tensors(const stic_package *p, const stic_block *b, uint32_t kind) {
  uint32_t present = 0, places[STIC_ROLES];
  memcpy(places, (const char *)b + offsetof(stic_block, matrix), sizeof places);
  for (uint32_t i = 0; i < STIC_ROLES; i++) present |= (uint32_t)(places[i] != STIC_ABSENT) << i;
  const uint32_t gammas = 1u << INPUT | 1u << BRANCH | 1u << POST | 1u << BETWEEN | 1u << QUERIES | 1u << KEYS;
  const uint32_t beside = present >> 1 & gammas; /* gammas of the betas that are there */
  const uint32_t required = tensors_of[kind].required, allowed = required | tensors_of[kind].optional;
  return (present & required) == required && (present & ~allowed) == 0 && (beside & ~present) == 0 &&
         (present & gammas << 1 & ~betas_of(p, b)) == 0 && (present >> QUERIES & 1) == (present >> KEYS & 1);
}

static stic_status check_block(const stic_package *p, uint32_t number, stic_error *error) {
  const stic_model *m = p->model;
  const stic_block *b = &p->blocks[number];
  STIC_REQUIRE(block_shape, b->shape < p->header->shapes, "index.bin: block %u has shape %u of %u", number, b->shape,
               p->header->shapes);
  const stic_shape *s = &p->cuts[b->shape].entry;
  const bool attends = s->kind == STIC_ATTENTION, last = number + 1 == p->header->blocks;
  STIC_REQUIRE(block_order,
               m->causal ? s->kind != STIC_LAYER && (s->kind == STIC_VOCABULARY) == last : s->kind == STIC_LAYER,
               "index.bin: block %u is of kind %u, which has no place there", number, s->kind);
  const bool follows = number && stic_cut_of(p, number - 1)->entry.kind == STIC_ATTENTION;
  const bool normed = b->query_norm.gamma_at != STIC_ABSENT;
  const bool padded = s->heads_per_slice * s->head_dim % STIC_TILE || s->key_heads_per_slice * s->head_dim % STIC_TILE;
  STIC_REQUIRE(block_flags,
               b->flags <= STIC_FLAGS && (!(b->flags & STIC_PARALLEL) || (s->kind == STIC_FEED_FORWARD && follows)) &&
                   (normed || !(b->flags & (STIC_WHOLE_HEAD_NORM | STIC_LAYER_HEAD_NORM))) &&
                   (!padded || !(b->flags & STIC_WHOLE_HEAD_NORM)),
               "index.bin: block %u has flags %u, which do not go with its kind", number, b->flags);
  STIC_REQUIRE(block_attention,
               b->window <= m->max_length && b->rotary <= m->rotaries && (attends || (!b->window && !b->rotary)) &&
                   (!b->rotary || m->rotary_features <= s->head_dim),
               "index.bin: block %u has a window of %u tokens and rotary table %u", number, b->window, b->rotary);
  const float softcap = b->softcap;
  STIC_REQUIRE(block_softcap,
               isfinite(softcap) && softcap >= 0 && (softcap <= 0 || attends || s->kind == STIC_VOCABULARY),
               "index.bin: block %u has a softcap that cannot be", number);
  STIC_REQUIRE(block_tensors, has_tensors(p, b, s->kind), "index.bin: block %u has a tensor too many, or lacks one",
               number);
  return STIC_OK;
}

static void lay_out(stic_package *p) {
  const stic_header *h = p->header;
  p->padded_hidden = (uint32_t)stic_pad(p->model->hidden, STIC_TILE);
  p->tiles = (uint32_t)(stic_pad(p->model->chunk, STIC_TILE) / STIC_TILE);
  p->row_lanes = h->row_lanes ? h->row_lanes : h->lanes;
  p->staging_bytes = (uint32_t)staging_bytes(p);
}

stic_status stic_package_check_model(stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  stic_status status = check_model(p, error);
  if (status) return status;
  lay_out(p);
  for (uint32_t i = 0; i < h->shapes; i++)
    if ((status = check_shape(p, i, error))) return status;
  for (uint32_t i = 0; i < h->blocks; i++) {
    if ((status = check_block(p, i, error))) return status;
    p->first_slice[i + 1] = p->first_slice[i] + stic_cut_of(p, i)->entry.slices;
  }
  const stic_shape *last = &stic_cut_of(p, h->blocks - 1)->entry;
  STIC_REQUIRE(vocabulary_rows,
               !p->model->causal || p->model->output_features <= (uint64_t)last->slices * last->rows_per_slice,
               "index.bin: a vocabulary of %u rows in %u slices of %u", p->model->output_features, last->slices,
               last->rows_per_slice);
  STIC_REQUIRE(gpu_shape, h->gpu_at == 0 || h->shapes == 1, "index.bin: %u shapes, and layers on a GPU", h->shapes);
  return STIC_OK;
}
