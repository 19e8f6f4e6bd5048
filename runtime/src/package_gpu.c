/* Check the GPU part: tables inside index.bin, launches that a device may be asked for, state regions that hold what
 * kernels write to them. */
#include <string.h>

#include "package.h"

enum { MOST_LAUNCHES = 64, MOST_GROUP = 1024, MOST_UNITS = 1 << 20, MOST_LOCAL_BYTES = 1 << 20 };

static stic_status place_tables(stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  const uint64_t end = h->index_bytes;
  STIC_REQUIRE(gpu_place, h->gpu_at % 4 == 0 && h->gpu_at + sizeof(stic_gpu_part) <= end,
               "index.bin: the GPU part lies outside it");
  p->gpu = (const stic_gpu_part *)(p->index + h->gpu_at);
  const stic_gpu_part *g = p->gpu;
  STIC_REQUIRE(
      gpu_fields, (g->storage_bits == 16 || g->storage_bits == 32) && g->style < STIC_GPU_STYLES && g->fallback <= 1,
      "index.bin: the GPU part has %u-bit storage, style %u, fallback %u", g->storage_bits, g->style, g->fallback);
  for (size_t i = 0; i < sizeof g->reserved / sizeof *g->reserved; i++)
    STIC_REQUIRE(gpu_reserved, g->reserved[i] == 0, "index.bin: a reserved field of the GPU part is set");
  STIC_REQUIRE(gpu_launches, g->launches <= MOST_LAUNCHES,
               "index.bin: the GPU part has %u launches, at most %u are allowed", g->launches, MOST_LAUNCHES);
  STIC_REQUIRE(gpu_tables,
               g->launches_at % 4 == 0 && g->launches_at + g->launches * (uint64_t)sizeof(stic_launch) <= end &&
                   g->places_at % 4 == 0 && g->places_at + (uint64_t)h->blocks <= end && g->state_at % 4 == 0 &&
                   g->state_at + (uint64_t)STIC_GPU_REGIONS * sizeof(stic_region) <= end,
               "index.bin: a table of the GPU part lies outside it");
  p->launches = (const stic_launch *)(p->index + g->launches_at);
  p->places = p->index + g->places_at;
  p->state = (const stic_region *)(p->index + g->state_at);
  return STIC_OK;
}

static bool is_kernel_name(const char *name, size_t size) {
  size_t length = 0;
  while (length < size && name[length] > ' ' && name[length] <= '~') length++;
  return length && length < size && name[length] == 0;
}

static stic_status check_launches(const stic_package *p, stic_error *error) {
  for (uint32_t i = 0; i < p->gpu->launches; i++) {
    const stic_launch *launch = &p->launches[i];
    STIC_REQUIRE(launch_name, is_kernel_name(launch->name, sizeof launch->name),
                 "index.bin: the name of GPU launch %u is empty, has no end, or cannot be read", i);
    for (uint32_t other = 0; other < i; other++)
      STIC_REQUIRE(launch_twice, strcmp(launch->name, p->launches[other].name),
                   "index.bin: kernel %s is launched in two ways", launch->name);
    uint64_t items = 1;
    for (int axis = 0; axis < 3; axis++) {
      STIC_REQUIRE(launch_axes,
                   launch->local[axis] >= 1 && launch->local[axis] <= MOST_GROUP && launch->group[axis] >= 1 &&
                       launch->group[axis] <= MOST_UNITS,
                   "index.bin: kernel %s has work-groups of %u items for %u units", launch->name, launch->local[axis],
                   launch->group[axis]);
      items *= launch->local[axis];
    }
    STIC_REQUIRE(launch_group, items <= MOST_GROUP && launch->local_bytes <= MOST_LOCAL_BYTES && launch->reserved == 0,
                 "index.bin: kernel %s has work-groups of %llu items and %u bytes of local memory", launch->name,
                 (unsigned long long)items, launch->local_bytes);
  }
  return STIC_OK;
}

static stic_status check_places(const stic_package *p, stic_error *error) {
  bool any = false;
  for (uint32_t l = 0; l < p->header->blocks; l++) {
    STIC_REQUIRE(gpu_layer, p->places[l] < STIC_PLACES && (p->kept[l].slices || p->places[l] == STIC_ON_CPU),
                 "index.bin: layer %u of %u slices has place %u", l, p->kept[l].slices, p->places[l]);
    any = any || p->places[l] == STIC_ON_GPU;
  }
  STIC_REQUIRE(gpu_any_layer, any, "index.bin: the GPU part places no layer on the GPU");
  return STIC_OK;
}

/* `ffn` may lie over what attention has finished with. */
static bool may_share(uint32_t a, uint32_t b) {
  return (a == STIC_GPU_FFN || b == STIC_GPU_FFN) &&
         (a == STIC_GPU_QKV || b == STIC_GPU_QKV || a == STIC_GPU_CONTEXT || b == STIC_GPU_CONTEXT ||
          a == STIC_GPU_SCORES || b == STIC_GPU_SCORES);
}

static uint64_t most_kept(const stic_package *p) {
  uint64_t most = 0;
  for (uint32_t l = 0; l < p->header->blocks; l++)
    if (p->kept[l].slices > most) most = p->kept[l].slices;
  return most;
}

static stic_status check_state(const stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  const stic_gpu_part *g = p->gpu;
  const uint64_t lanes = (uint64_t)p->tiles * STIC_TILE, stored = lanes * (g->storage_bits / 8), slices = most_kept(p),
                 length = p->model->max_length;
  const stic_cut *cut = p->cuts; /* the only one */
  const uint64_t attention = slices * cut->attention_width, ffn = slices * cut->ffn_width;
  uint64_t widest = p->padded_hidden, sum = 0;
  if (attention > widest) widest = attention;
  if (ffn > widest) widest = ffn;
  STIC_REQUIRE(gpu_scores, g->scores_tiles >= 1 && g->scores_tiles <= p->tiles,
               "index.bin: room for the scores of %u query tiles", g->scores_tiles);
  const uint64_t needed[STIC_GPU_REGIONS] = {
      [STIC_GPU_X] = p->padded_hidden * stored,
      [STIC_GPU_Y] = p->padded_hidden * lanes * 4,
      [STIC_GPU_QKV] = 3 * attention * stored,
      [STIC_GPU_CONTEXT] = attention * stored,
      [STIC_GPU_FFN] = ffn * stored,
      [STIC_GPU_QUANTIZED] = widest * lanes,
      [STIC_GPU_TOKEN_SCALE] = lanes * 4,
      [STIC_GPU_TOKEN_SUM] = lanes * 4,
      [STIC_GPU_SCORES] = slices * cut->entry.heads_per_slice * g->scores_tiles * STIC_TILE * lanes * 4,
      [STIC_GPU_ROWS] = length * h->row_stride,
      [STIC_GPU_TYPES] = length * 4,
  };
  for (uint32_t r = 0; r < STIC_GPU_REGIONS; r++) {
    const stic_region *region = &p->state[r];
    STIC_REQUIRE(state_place,
                 region->offset % STIC_BLOCK == 0 && region->offset <= g->state_bytes &&
                     region->bytes <= g->state_bytes - region->offset && region->bytes >= needed[r] &&
                     region->bytes <= needed[r] + STIC_BLOCK && needed[r] < (uint64_t)1 << 31,
                 "index.bin: GPU region %u has %llu bytes and needs %llu", r, (unsigned long long)region->bytes,
                 (unsigned long long)needed[r]);
    sum += region->bytes + STIC_BLOCK;
    for (uint32_t other = 0; other < r; other++) {
      const stic_region *b = &p->state[other];
      STIC_REQUIRE(state_apart,
                   may_share(r, other) || region->offset + region->bytes <= b->offset ||
                       b->offset + b->bytes <= region->offset,
                   "index.bin: GPU regions %u and %u overlap", r, other);
    }
  }
  STIC_REQUIRE(state_size, g->state_bytes <= sum, "index.bin: %llu bytes of GPU state for regions of %llu",
               (unsigned long long)g->state_bytes, (unsigned long long)sum);
  return STIC_OK;
}

stic_status stic_package_check_gpu(stic_package *p, stic_error *error) {
  if (p->header->gpu_at == 0) return STIC_OK;
  stic_status status = place_tables(p, error);
  if (status) return status;
  STIC_REQUIRE(gpu_program, p->program, "index.bin has a GPU part and lists no kernels.cl");
  STIC_REQUIRE(gpu_program_size, p->program->bytes >= 1 && p->program->bytes <= 1u << 26, "kernels.cl has %llu bytes",
               (unsigned long long)p->program->bytes);
  const stic_region *preload = &p->regions[STIC_REGION_PRELOAD], *working = &p->regions[STIC_REGION_WORKING];
  STIC_REQUIRE(gpu_weights, preload->offset == 0 && working->offset == stic_pad(preload->bytes, STIC_BLOCK),
               "index.bin: the weights are not one stretch of memory from the arena's start on");
  STIC_REQUIRE(gpu_weights_size,
               stic_weights_bytes(p) < ((uint64_t)1 << 31) - 2 * STIC_BLOCK && p->trunk->bytes < (uint64_t)1 << 31,
               "index.bin: %llu bytes of weights are more than a GPU kernel can index",
               (unsigned long long)stic_weights_bytes(p));
  if ((status = check_launches(p, error))) return status;
  if ((status = check_places(p, error))) return status;
  return check_state(p, error);
}
