#include "kernels.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "platform.h"

static const char *const architectures[] = {"x86_64", "aarch64"};
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
  if ((int)h->architecture != here)
    return stic_fail(error, STIC_UNSUPPORTED_CPU,
                     "the package was compiled for %s and this is %s: compile it for a target of this architecture",
                     architectures[h->architecture], here < 0 ? "another architecture" : architectures[here]);
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

stic_status stic_kernels_load(const stic_package *package, const char *path, stic_kernels *k, stic_error *error) {
  memset(k, 0, sizeof *k);
  k->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!k->library) {
    const char *reason = dlerror();
    return stic_fail(error, STIC_KERNELS, "kernels.so cannot be loaded (%s)", reason ? reason : "no reason given");
  }
  const bool halfs = package->header->row_type == STIC_ROW_FLOAT16;
  const struct {
    const char *name;
    void *function;
  } always[] = {{halfs ? "stic_embed_f16" : "stic_embed", &k->embed},
                {"stic_quantize", &k->quantize},
                {"stic_activation", &k->activation},
                {"stic_bias", &k->bias},
                {"stic_attention", &k->attention},
                {"stic_add_norm", &k->add_norm}};
  const struct {
    const char *name;
    void *function;
  } quantized[] = {
      {"stic_outliers", &k->outliers},           {"stic_dot", &k->dot},
      {"stic_dot_activated", &k->dot_activated}, {"stic_rows_outliers", &k->rows_outliers},
      {"stic_rows_finish", &k->rows_finish},     {"stic_rows_finish_activated", &k->rows_finish_activated}};
  stic_status status;
  for (size_t i = 0; i < sizeof always / sizeof *always; i++)
    if ((status = find(k->library, always[i].name, always[i].function, error))) return status;
  bool used[33] = {false};
  for (uint32_t number = 0; number < package->plans; number++) {
    const uint8_t *bits = package->index + stic_package_plan(package, number).bits_at;
    for (uint32_t i = 0; i < package->header->layers * package->header->slices; i++) used[bits[i]] = true;
  }
  bool any = false;
  for (int bits = 2; bits <= 8; bits++) {
    char unpack[] = "stic_unpack_b0", rows[] = "stic_rows_b0";
    unpack[sizeof unpack - 2] = rows[sizeof rows - 2] = (char)('0' + bits);
    if (used[bits] && ((status = find(k->library, unpack, &k->unpack[bits], error)) ||
                       (status = find(k->library, rows, &k->rows[bits], error))))
      return status;
    any = any || used[bits];
  }
  for (size_t i = 0; any && i < sizeof quantized / sizeof *quantized; i++)
    if ((status = find(k->library, quantized[i].name, quantized[i].function, error))) return status;
  if ((used[16] || package->header->dense) && (status = find(k->library, "stic_matmul_f16", &k->matmul_f16, error)))
    return status;
  if (used[32] && (status = find(k->library, "stic_matmul_f32", &k->matmul_f32, error))) return status;
  return STIC_OK;
}

void stic_kernels_unload(stic_kernels *kernels) {
  if (kernels->library) dlclose(kernels->library);
  kernels->library = NULL;
}
