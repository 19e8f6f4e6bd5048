#include "kernels.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "platform.h"

static const char *const machines[] = {"x86_64", "aarch64"};
static const char *const features[] = {"AVX2",
                                       "FMA",
                                       "F16C",
                                       "AVX-512F",
                                       "AVX-512BW",
                                       "AVX-512VL",
                                       "AVX-512 VNNI",
                                       "AVX-512 VBMI",
                                       "Advanced SIMD",
                                       "the dot product extension",
                                       "GFNI",
                                       "AVX-VNNI",
                                       "the 8-bit matrix multiply extension"};
_Static_assert(sizeof features / sizeof *features == STIC_FEATURES, "one name a feature");

stic_status stic_kernels_check_cpu(const stic_package *package, stic_error *error) {
  const int here = stic_cpu_architecture();
  const stic_header *h = package->header;
  if ((int)h->machine != here)
    return stic_fail(error, STIC_UNSUPPORTED_CPU,
                     "the package was compiled for %s and this is %s: compile it for a target of this architecture",
                     machines[h->machine], here < 0 ? "another architecture" : machines[here]);
  const uint32_t missing = h->features & ~stic_cpu_features();
  for (int i = 0; i < STIC_FEATURES; i++)
    if (missing >> i & 1)
      return stic_fail(error, STIC_UNSUPPORTED_CPU,
                       "the package was compiled for a CPU with %s, which this one lacks: compile it for this target",
                       features[i]);
  return STIC_OK;
}

static stic_status find(void *library, const char *name, void *function, stic_error *error) {
  void *symbol = dlsym(library, name);
  memcpy(function, &symbol, sizeof symbol); /* ISO C has no cast from object to function pointer */
  if (!symbol)
    return stic_fail(error, STIC_KERNELS, "kernels.so has no function %s: compile the package again with this stic",
                     name);
  return STIC_OK;
}

typedef struct {
  const char *name;
  void *function;
} kernel;

static stic_status find_all(void *library, const kernel *kernels, size_t count, stic_error *error) {
  for (size_t i = 0; i < count; i++) {
    const stic_status status = find(library, kernels[i].name, kernels[i].function, error);
    if (status) return status;
  }
  return STIC_OK;
}

/* Decoders of weights by bits, and what multiplies with any of them. */
static stic_status find_quantized(const bool *used, bool grouped, stic_kernels *k, stic_error *error) {
  const kernel products_in_groups[] = {{"stic_quantize_grouped", &k->quantize_grouped},
                                       {"stic_dot_grouped", &k->dot_grouped},
                                       {"stic_dot_grouped_finish", &k->dot_grouped_finish},
                                       {"stic_rows_grouped_finish", &k->rows_grouped_finish}};
  const kernel products[] = {
      {"stic_outliers", &k->outliers},           {"stic_dot", &k->dot},
      {"stic_dot_activated", &k->dot_activated}, {"stic_rows_outliers", &k->rows_outliers},
      {"stic_rows_finish", &k->rows_finish},     {"stic_rows_finish_activated", &k->rows_finish_activated}};
  bool any = false;
  for (int bits = 2; bits <= 8; bits++) {
    char unpack[] = "stic_unpack_b0", rows[] = "stic_rows_b0", rows_grouped[] = "stic_rows_grouped_b0";
    unpack[sizeof unpack - 2] = rows[sizeof rows - 2] = rows_grouped[sizeof rows_grouped - 2] = (char)('0' + bits);
    const kernel decoders[] = {{unpack, &k->unpack[bits]},
                               grouped ? (kernel){rows_grouped, &k->rows_grouped[bits]}
                                       : (kernel){rows, &k->rows[bits]}};
    const stic_status status = used[bits] ? find_all(k->library, decoders, 2, error) : STIC_OK;
    if (status) return status;
    any = any || used[bits];
  }
  if (!any) return STIC_OK;
  return grouped ? find_all(k->library, products_in_groups, sizeof products_in_groups / sizeof *products, error)
                 : find_all(k->library, products, sizeof products / sizeof *products, error);
}

/* What blocks of kind layer need beside their products, with the embedding before them. */
static stic_status find_layer(const stic_package *package, stic_kernels *k, stic_error *error) {
  const bool halfs = package->header->row_type == STIC_ROW_FLOAT16;
  const kernel stages[] = {{halfs ? "stic_embed_f16" : "stic_embed", &k->embed},
                           {"stic_quantize", &k->quantize},
                           {"stic_activation", &k->activation},
                           {"stic_bias", &k->bias},
                           {"stic_attention", &k->attention},
                           {"stic_add_norm", &k->add_norm}};
  return find_all(k->library, stages, sizeof stages / sizeof *stages, error);
}

/* A kernel, and whether the model needs it. */
typedef struct {
  kernel kernel;
  bool needed;
} need;

/* What a decoder's blocks need beside their products. */
static stic_status find_decoder(const stic_package *p, stic_kernels *k, stic_error *error) {
  const stic_model *m = p->model;
  const bool integers = m->cache == STIC_CACHE_INT8;
  bool rms = false, layer = false, gated = false, plain = false, capped = false;
  for (uint32_t b = 0; b < p->header->blocks; b++) {
    const stic_block *block = &p->blocks[b];
    const stic_shape *shape = &stic_cut_of(p, b)->entry;
    const bool norms = block->input.gamma_at != STIC_ABSENT || block->branch.gamma_at != STIC_ABSENT ||
                       block->post.gamma_at != STIC_ABSENT;
    const bool heads = block->query_norm.gamma_at != STIC_ABSENT, by_layer = block->flags & STIC_LAYER_HEAD_NORM;
    rms = rms || (norms && m->norm == STIC_RMS_NORM) || (heads && !by_layer);
    layer = layer || (norms && m->norm == STIC_LAYER_NORM) || (heads && by_layer);
    gated = gated || (shape->kind == STIC_FEED_FORWARD && shape->gated);
    plain = plain || (shape->kind == STIC_FEED_FORWARD && !shape->gated);
    capped = capped || (shape->kind == STIC_VOCABULARY && block->softcap > 0);
  }
  const bool halfs = p->header->row_type == STIC_ROW_FLOAT16;
  const need needs[] = {{{halfs ? "stic_embed_plain_f16" : "stic_embed_plain_i8", &k->embed_plain}, !stic_tied(p)},
                        {{"stic_add", &k->add}, true},
                        {{"stic_bias", &k->bias}, true},
                        {{"stic_rms_norm", &k->rms_norm}, rms},
                        {{"stic_layer_norm", &k->layer_norm}, layer},
                        {{"stic_gate", &k->gate}, gated},
                        {{"stic_activation", &k->activation}, plain},
                        {{"stic_softcap", &k->softcap}, capped},
                        {{"stic_rope", &k->rope}, m->rotaries > 0},
                        {{"stic_cache_store_f16", &k->cache_store_f16}, !integers},
                        {{"stic_cache_store_i8", &k->cache_store_i8}, integers},
                        {{"stic_cached_attention_f16", &k->cached_attention_f16}, !integers},
                        {{"stic_cached_attention_i8", &k->cached_attention_i8}, integers}};
  for (size_t i = 0; i < sizeof needs / sizeof *needs; i++) {
    const stic_status status = needs[i].needed ? find_all(k->library, &needs[i].kernel, 1, error) : STIC_OK;
    if (status) return status;
  }
  return STIC_OK;
}

stic_status stic_kernels_load(const stic_package *package, const char *path, stic_kernels *k, stic_error *error) {
  memset(k, 0, sizeof *k);
  k->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!k->library) {
    const char *reason = dlerror();
    return stic_fail(error, STIC_KERNELS, "kernels.so cannot be loaded (%s)", reason ? reason : "no reason given");
  }
  bool used[33] = {false};
  for (uint32_t number = 0; number < package->header->plans; number++) {
    const uint8_t *bits = package->index + package->plans[number].bits_at;
    for (uint32_t i = 0; i < package->first_slice[package->header->blocks]; i++) used[bits[i]] = true;
  }
  stic_status status;
  if ((status = package->model->causal ? find_decoder(package, k, error) : find_layer(package, k, error)))
    return status;
  if ((status = find_quantized(used, package->header->group > 0, k, error))) return status;
  const bool halfs = used[16] || package->header->dense;
  if (halfs && (status = find(k->library, "stic_matmul_f16", &k->matmul_f16, error))) return status;
  return used[32] ? find(k->library, "stic_matmul_f32", &k->matmul_f32, error) : STIC_OK;
}

void stic_kernels_unload(stic_kernels *kernels) {
  if (kernels->library) dlclose(kernels->library);
  kernels->library = NULL;
}
