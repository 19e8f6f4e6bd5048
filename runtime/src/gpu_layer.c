/* One encoder layer as a row of launches; the stages of encoder.c, with attention in three kernels:
 *
 *     quantize   x                                     int8 arithmetic only, before each product
 *     qkv        a launch for each run of slices of one width
 *     scores, softmax, values                          so many query tiles at a time as scores have room
 *     out        a launch for each run, which adds to what the run before it left
 *     add_norm
 *     up         with the activation
 *     down
 *     add_norm
 */
#include "gpu.h"
#include "kernels.h"

typedef struct {
  stic_gpu *gpu;
  const stic_cut *cut;
  struct stic_kept kept;
  uint32_t number;   /* of the layer */
  uint32_t n, tiles; /* tokens, tiles of them */
  stic_error *error;
} step;

/* A product of the layer: which matrix, from and to which region. */
typedef struct {
  uint32_t kind, matrix, source, target;
} product;

static uint32_t product_kernel(uint32_t bits, bool few) {
  const uint32_t width = bits <= 8 ? bits - 2 : bits == 16 ? 7 : 8;
  return (few ? STIC_KERNEL_gemv_b2 : STIC_KERNEL_gemm_b2) + width;
}

/* Slices `first` .. `first + count - 1` of a product, all of one width. */
static stic_status run_of_slices(const step *t, const product *p, uint32_t first, uint32_t count) {
  stic_gpu *gpu = t->gpu;
  const stic_package *package = gpu->package;
  const bool joined = p->matrix == STIC_OUT || p->matrix == STIC_DOWN, few = t->n <= STIC_FEW_TOKENS;
  const uint32_t slices = t->kept.slices, rows = t->cut->rows[p->matrix], columns = t->cut->columns[p->matrix];
  const stic_linear *map = &package->blocks[t->number].matrix[p->matrix];
  const uint32_t own = joined ? 0 : first * rows; /* first of the run's rows among the layer's */
  const cl_mem *regions = gpu->regions, y = regions[STIC_GPU_Y], out = joined ? y : regions[p->target];
  const cl_mem objects[STIC_GPU_PRODUCT_OBJECTS] = {gpu->weights,
                                                    gpu->weights,
                                                    gpu->weights,
                                                    gpu->codes,
                                                    gpu->trunk,
                                                    regions[p->source],
                                                    regions[STIC_GPU_QUANTIZED],
                                                    regions[STIC_GPU_TOKEN_SCALE],
                                                    regions[STIC_GPU_TOKEN_SUM],
                                                    y,
                                                    out};
  const int32_t flags = (joined ? STIC_GPU_JOINED : 0) | (joined && first ? STIC_GPU_ACCUMULATE : 0) |
                        (p->matrix == STIC_UP ? STIC_GPU_ACTIVATED : 0);
  const int32_t scalars[STIC_GPU_PRODUCT_SCALARS] = {
      (int32_t)((t->number * STIC_LAYER_MATRICES + p->matrix) * package->most_slices + first),
      (int32_t)count,
      (int32_t)(rows / STIC_TILE),
      (int32_t)columns,
      (int32_t)(joined ? slices * columns : package->padded_hidden),
      (int32_t)(joined ? package->padded_hidden : slices * rows),
      (int32_t)(map->scale_at / sizeof(float) + own),
      (int32_t)(map->bias_at / sizeof(float) + own),
      (int32_t)t->n,
      flags,
      (int32_t)(joined ? first * columns : 0),
      (int32_t)own};
  const uint32_t units[2] = {joined ? rows : count * rows, few ? 1 : t->n};
  const uint32_t bits = stic_bits(package, t->number, first);
  return stic_gpu_launch(gpu, product_kernel(bits, few), units, objects, scalars, t->error);
}

static stic_status quantize(const step *t, uint32_t source, uint32_t width) {
  const cl_mem *regions = t->gpu->regions;
  const cl_mem objects[] = {regions[source], regions[STIC_GPU_QUANTIZED], regions[STIC_GPU_TOKEN_SCALE],
                            regions[STIC_GPU_TOKEN_SUM]};
  stic_gpu_begin_stage(t->gpu, STIC_EVENT_QUANTIZE, (int32_t)t->number);
  return stic_gpu_launch(t->gpu, STIC_KERNEL_quantize, (uint32_t[]){t->tiles, 1}, objects,
                         (int32_t[]){(int32_t)width, (int32_t)t->tiles}, t->error);
}

static stic_status project(const step *t, const product *p) {
  const stic_package *package = t->gpu->package;
  const uint32_t slices = t->kept.slices, columns = t->cut->columns[p->matrix];
  const bool joined = p->matrix == STIC_OUT || p->matrix == STIC_DOWN;
  stic_status status = STIC_OK;
  if (t->gpu->dot && t->kept.full < slices) status = quantize(t, p->source, joined ? slices * columns : columns);
  stic_gpu_begin_stage(t->gpu, p->kind, (int32_t)t->number);
  for (uint32_t first = 0, end; first < slices && !status; first = end) {
    const uint32_t bits = stic_bits(package, t->number, first);
    for (end = first + 1; end < slices && stic_bits(package, t->number, end) == bits;) end++;
    status = run_of_slices(t, p, first, end - first);
  }
  return status;
}

/* Zeros for `features` of stored activations, where a layer reads what it did not write. */
static stic_status clear(const step *t, uint32_t region, uint32_t features) {
  static const uint32_t zero;
  stic_gpu *gpu = t->gpu;
  stic_error *error = t->error;
  const size_t bytes = (size_t)t->tiles * features * STIC_TILE * (gpu->package->gpu->storage_bits / 8);
  return STIC_CL(gpu, EnqueueFillBuffer(gpu->queue, gpu->regions[region], &zero, sizeof zero, 0, bytes, 0, NULL, NULL));
}

static stic_status attend(const step *t) {
  stic_gpu *gpu = t->gpu;
  const stic_package *p = gpu->package;
  const cl_mem *regions = gpu->regions, scores = regions[STIC_GPU_SCORES], qkv = regions[STIC_GPU_QKV];
  const stic_shape *shape = &t->cut->entry;
  const uint32_t slices = t->kept.slices, heads = slices * shape->heads_per_slice;
  const int32_t parts = (int32_t)shape->heads_per_slice, width = (int32_t)t->cut->attention_width, n = (int32_t)t->n;
  const int32_t qkv_rows = (int32_t)(3 * slices) * width, context_rows = (int32_t)slices * width;
  stic_status status = STIC_OK;
  /* Features that pad a slice's heads are quantised and multiplied with the others, and nothing computes them. */
  if (shape->heads_per_slice * shape->head_dim != t->cut->attention_width)
    status = clear(t, STIC_GPU_CONTEXT, (uint32_t)context_rows);
  stic_gpu_begin_stage(gpu, STIC_EVENT_ATTENTION, (int32_t)t->number);
  for (uint32_t first = 0; first < t->tiles && !status; first += p->gpu->scores_tiles) {
    const uint32_t left = t->tiles - first, count = left < p->gpu->scores_tiles ? left : p->gpu->scores_tiles;
    const uint32_t units = heads * count;
    const int32_t at = (int32_t)first, queries = (int32_t)count;
    status = stic_gpu_launch(gpu, STIC_KERNEL_scores, (uint32_t[]){units, t->tiles * STIC_TILE},
                             (cl_mem[]){qkv, scores}, (int32_t[]){parts, width, qkv_rows, n, at, queries}, t->error);
    if (status) break;
    status = stic_gpu_launch(gpu, STIC_KERNEL_softmax, (uint32_t[]){units, 1}, &scores, (int32_t[]){n, (int32_t)units},
                             t->error);
    if (status) break;
    status = stic_gpu_launch(gpu, STIC_KERNEL_values, (uint32_t[]){units, shape->head_dim},
                             (cl_mem[]){scores, qkv, regions[STIC_GPU_CONTEXT]},
                             (int32_t[]){parts, width, qkv_rows, context_rows, n, at, queries}, t->error);
  }
  return status;
}

static stic_status normalise(const step *t, const stic_norm *norm) {
  const stic_gpu *gpu = t->gpu;
  const cl_mem objects[] = {gpu->regions[STIC_GPU_X], gpu->regions[STIC_GPU_Y], gpu->trunk};
  const int32_t scalars[] = {(int32_t)(norm->gamma_at / sizeof(float)), (int32_t)(norm->beta_at / sizeof(float)),
                             (int32_t)t->tiles};
  stic_gpu_begin_stage(t->gpu, STIC_EVENT_NORM, (int32_t)t->number);
  return stic_gpu_launch(t->gpu, STIC_KERNEL_add_norm, (uint32_t[]){t->tiles, 1}, objects, scalars, t->error);
}

stic_status stic_gpu_layer_stages(stic_gpu *gpu, uint32_t number, uint32_t n, stic_error *error) {
  const stic_block *b = &gpu->package->blocks[number];
  const stic_cut *cut = stic_cut_of(gpu->package, number);
  const struct stic_kept kept = gpu->package->kept[number];
  const step t = {gpu, cut, kept, number, n, (n + STIC_TILE - 1) / STIC_TILE, error};
  const product qkv = {STIC_EVENT_QKV, STIC_QKV, STIC_GPU_X, STIC_GPU_QKV};
  const product out = {STIC_EVENT_OUT, STIC_OUT, STIC_GPU_CONTEXT, STIC_GPU_Y};
  const product up = {STIC_EVENT_UP, STIC_UP, STIC_GPU_X, STIC_GPU_FFN};
  const product down = {STIC_EVENT_DOWN, STIC_DOWN, STIC_GPU_FFN, STIC_GPU_Y};
  stic_status status = STIC_OK;
  /* Products for few tokens leave half of a tile's lanes as they were, maybe no numbers, and values of keys there are
   * multiplied with zero. */
  if (n <= STIC_FEW_TOKENS) status = clear(&t, STIC_GPU_QKV, 3 * kept.slices * cut->attention_width);
  if (status) return status;
  if ((status = project(&t, &qkv)) || (status = attend(&t)) || (status = project(&t, &out))) return status;
  if ((status = normalise(&t, &b->attention))) return status;
  if ((status = project(&t, &up)) || (status = project(&t, &down))) return status;
  return normalise(&t, &b->post);
}
