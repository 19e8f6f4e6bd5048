/* Parse index.bin. Hostile input is expected: a field is used only after it has been bounded, and products of bounded
 * fields are taken in 64 bits. */
#include "package.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "crc.h"

static const stic_limit limits[] = {
#define LIMIT(field, least, most) {offsetof(stic_header, field), #field, least, most}
    LIMIT(machine, 0, STIC_MACHINES - 1),
    LIMIT(features, 0, (1u << STIC_FEATURES) - 1),
    LIMIT(nested, 0, 1),
    LIMIT(row_stride, 0, 1u << 16),
    LIMIT(row_type, 0, STIC_ROW_TYPES - 1),
    LIMIT(table_resident, 0, 1),
    LIMIT(threads, 1, 64),
    LIMIT(lanes, 1, STIC_MOST_LANES),
    LIMIT(row_lanes, 0, STIC_MOST_LANES),
    LIMIT(request_bytes, STIC_BLOCK, 1u << 24),
    LIMIT(stack_bytes, 16384, 1u << 23),
    LIMIT(files, 5, 16),
    LIMIT(shapes, 1, STIC_MOST_SHAPES),
    LIMIT(blocks, 1, STIC_MOST_BLOCKS),
    LIMIT(dense, 0, 8),
    LIMIT(plans, 1, STIC_MOST_PLANS),
#undef LIMIT
};

stic_status stic_check_limits(const void *structure, const stic_limit *bounds, size_t count, stic_error *error) {
  for (const stic_limit *l = bounds; l < bounds + count; l++) {
    uint32_t value;
    memcpy(&value, (const char *)structure + l->at, sizeof value);
    STIC_REQUIRE(limits, value >= l->least && value <= l->most, "index.bin: %s is %u, outside %u to %u", l->name, value,
                 l->least, l->most);
  }
  return STIC_OK;
}

static stic_status check_header(const stic_header *h, size_t size, stic_error *error) {
  STIC_REQUIRE(magic, size >= sizeof *h && !memcmp(h->magic, "STICPKG", 8),
               "index.bin does not start with a stic header");
  if (h->major != STIC_MAJOR || h->minor > STIC_MINOR)
    return stic_fail(error, STIC_PACKAGE_VERSION,
                     "the package has format %u.%u and this engine reads %d.0 to %d.%d: %s", h->major, h->minor,
                     STIC_MAJOR, STIC_MAJOR, STIC_MINOR, h->major < STIC_MAJOR ? "compile it again" : "update stic");
  STIC_REQUIRE(index_size, h->index_bytes == size, "index.bin has %zu bytes of %u: copy the package again", size,
               h->index_bytes);
  static const uint8_t zeros[4];
  const size_t at = offsetof(stic_header, index_crc);
  uint32_t crc = stic_crc32(stic_crc32(0, h, at), zeros, 4);
  crc = stic_crc32(crc, (const uint8_t *)h + at + 4, size - at - 4);
  STIC_REQUIRE(index_checksum, crc == h->index_crc,
               "index.bin is corrupt (its checksum does not match): copy the package again");
  const stic_status status = stic_check_limits(h, limits, sizeof limits / sizeof *limits, error);
  if (status) return status;
  STIC_REQUIRE(full_bits, h->full_bits == 0 || h->full_bits == 16 || h->full_bits == 32, "index.bin: full_bits is %u",
               h->full_bits);
  STIC_REQUIRE(request_blocks, h->request_bytes % STIC_BLOCK == 0, "index.bin: request_bytes %u is not whole blocks",
               h->request_bytes);
  STIC_REQUIRE(stack_pages, h->stack_bytes % STIC_BLOCK == 0, "index.bin: stack_bytes %u is not whole pages",
               h->stack_bytes);
  STIC_REQUIRE(row_alignment, h->row_stride % 8 == 0, "index.bin: row_stride %u is not a multiple of 8", h->row_stride);
  STIC_REQUIRE(interleave, h->interleave == 4 || h->interleave == 8, "index.bin: interleave is %u, neither 4 nor 8",
               h->interleave);
  STIC_REQUIRE(group, h->group == 0 || h->group == STIC_GROUP, "index.bin: groups of %u columns", h->group);
  STIC_REQUIRE(row_lanes, h->row_lanes == 0 || h->row_lanes >= h->lanes, "index.bin: %u lanes read rows and %u extents",
               h->row_lanes, h->lanes);
  STIC_REQUIRE(family, h->plans == 1 || h->gpu_at == 0, "index.bin: several plans, and layers on a GPU");
  return STIC_OK;
}

/* All tables but the records, whose number follows from others. */
static stic_status place_tables(stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  const struct {
    const char *name;
    uint32_t at;
    uint64_t count, item;
    const void **place;
  } tables[] = {
      {"model", h->model_at, 1, sizeof(stic_model), (const void **)&p->model},
      {"files", h->files_at, h->files, sizeof(stic_file), (const void **)&p->files},
      {"shapes", h->shapes_at, h->shapes, sizeof(stic_shape), (const void **)&p->shapes},
      {"blocks", h->blocks_at, h->blocks, sizeof(stic_block), (const void **)&p->blocks},
      {"dense", h->dense_at, h->dense, sizeof(stic_dense), (const void **)&p->dense},
      {"regions", h->regions_at, STIC_REGIONS, sizeof(stic_region), (const void **)&p->region_table},
      {"plans", h->plans_at, h->plans, sizeof(stic_plan_entry), (const void **)&p->plans},
  };
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
    const uint64_t end = tables[i].at + tables[i].count * tables[i].item;
    STIC_REQUIRE(table_place, tables[i].at % 8 == 0 && end <= h->index_bytes, "index.bin: table %s lies outside it",
                 tables[i].name);
    *tables[i].place = p->index + tables[i].at;
  }
  return STIC_OK;
}

static stic_status place_records(stic_package *p, stic_error *error) {
  const stic_header *h = p->header;
  const uint64_t bytes = (uint64_t)stic_records(p) * sizeof(stic_record);
  STIC_REQUIRE(table_place, h->records_at % 8 == 0 && h->records_at + bytes <= h->index_bytes,
               "index.bin: table records lies outside it");
  p->records = (const stic_record *)(p->index + h->records_at);
  return STIC_OK;
}

/* Printable, in this folder, and zeros behind it: every reader takes it for the same file. */
static bool is_file_name(const char *name) {
  const size_t size = sizeof((stic_file *)0)->name;
  size_t length = 0;
  while (length < size && name[length]) {
    if (name[length] <= ' ' || name[length] > '~' || name[length] == '/') return false;
    length++;
  }
  for (size_t i = length; i < size; i++)
    if (name[i]) return false;
  return length && length < size && name[0] != '.' && strcmp(name, "index.bin");
}

static stic_status find_files(stic_package *p, stic_error *error) {
  const stic_file *plan = NULL;
  for (uint32_t i = 0; i < p->header->files; i++) {
    const stic_file *f = &p->files[i];
    STIC_REQUIRE(file_name, is_file_name(f->name), "index.bin: file %u has an unsafe name", i);
    for (uint32_t other = 0; other < i; other++)
      STIC_REQUIRE(file_twice, strcmp(f->name, p->files[other].name), "index.bin lists %s twice", f->name);
    STIC_REQUIRE(file_size, f->bytes < (uint64_t)1 << 48, "index.bin: file %u is too large", i);
    const struct {
      const char *name;
      const stic_file **place;
    } known[] = {{"trunk.bin", &p->trunk},    {"embeddings.bin", &p->embeddings}, {"shards.bin", &p->shards},
                 {"kernels.so", &p->kernels}, {"kernels.cl", &p->program},        {"plan.json", &plan}};
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
      if (!strcmp(f->name, known[k].name)) *known[k].place = f;
  }
  STIC_REQUIRE(files_required, p->trunk && p->embeddings && p->shards && p->kernels && plan,
               "index.bin lists no trunk.bin, embeddings.bin, shards.bin, kernels.so or plan.json");
  const uint64_t table = (uint64_t)p->model->vocabulary * p->header->row_stride;
  STIC_REQUIRE(embedding_rows, p->embeddings->bytes >= table && p->embeddings->bytes % STIC_BLOCK == 0,
               "embeddings.bin of %llu bytes cannot hold %u rows", (unsigned long long)p->embeddings->bytes,
               p->model->vocabulary);
  STIC_REQUIRE(shards_blocks, p->shards->bytes % STIC_BLOCK == 0, "shards.bin is not a whole number of blocks");
  return STIC_OK;
}

/* The bits of the plan that is selected. */
static stic_status check_bits(const stic_package *p, stic_error *error) {
  for (uint32_t b = 0; b < p->header->blocks; b++) {
    const struct stic_kept kept = p->kept[b];
    STIC_REQUIRE(shard_kept, kept.slices == stic_slices(p, b) || stic_cut_of(p, b)->entry.kind == STIC_LAYER,
                 "index.bin: block %u keeps %u slices of %u, and is no layer", b, kept.slices, stic_slices(p, b));
    for (uint32_t s = 0; s < stic_slices(p, b); s++) {
      const uint32_t bits = stic_bits(p, b, s);
      const bool fits = s >= kept.slices ? bits == 0
                        : s < kept.full  ? bits == p->header->full_bits && bits
                                         : bits >= 2 && bits <= 8;
      STIC_REQUIRE(shard_bits, fits, "index.bin: block %u slice %u has %u bits", b, s, bits);
      STIC_REQUIRE(shard_order, s == 0 || bits <= stic_bits(p, b, s - 1),
                   "index.bin: block %u slice %u has more bits than slice %u", b, s, s - 1);
    }
  }
  return STIC_OK;
}

static stic_status check_records(const stic_package *p, stic_error *error) {
  for (uint32_t b = 0; b < p->header->blocks; b++)
    for (uint32_t level = 0; level < STIC_LEVELS; level++)
      for (uint32_t s = 0; s < stic_slices(p, b); s++) {
        const stic_record *r = &p->records[stic_record_index(p, b, level, s)];
        if (r->bytes == 0) continue;
        const stic_layout *layout = &stic_cut_of(p, b)->layouts[level];
        STIC_REQUIRE(record,
                     (level != STIC_FULL || p->header->full_bits) && r->offset % STIC_ALIGN == 0 &&
                         r->bytes % STIC_ALIGN == 0 && r->offset <= p->shards->bytes &&
                         r->bytes <= p->shards->bytes - r->offset &&
                         (layout->has_outliers ? r->bytes >= layout->end : r->bytes == layout->end),
                     "index.bin: the record of block %u level %u slice %u does not fit", b, level, s);
      }
  return STIC_OK;
}

/* The linear maps of an encoder's head. */
static stic_status check_head(const stic_package *p, stic_error *error) {
  uint32_t features = p->model->hidden;
  for (uint32_t i = 0; i < p->header->dense; i++) {
    const stic_dense *d = &p->dense[i];
    STIC_REQUIRE(head_layer,
                 d->columns == features && d->rows >= 1 && d->rows <= 1u << 16 && d->activation < STIC_ACTIVATIONS,
                 "index.bin: head layer %u takes %u features and gives %u", i, d->columns, d->rows);
    features = d->rows;
  }
  STIC_REQUIRE(head_features, p->model->causal || features == p->model->output_features,
               "index.bin: the head gives %u features of %u", features, p->model->output_features);
  return STIC_OK;
}

/* What the plan that is selected says, on its own and together with all else. */
static stic_status check_plan(const stic_package *p, stic_error *error) {
  stic_status status = check_bits(p, error);
  if (!status) status = stic_package_check_memory(p, error);
  if (!status) status = stic_package_check_extents(p, error);
  if (!status) status = stic_package_check_family(p, error);
  if (status && p->header->plans > 1) {
    char name[24];
    snprintf(name, sizeof name, "plan %u", p->number);
    stic_error_prefix(error, name);
  }
  return status;
}

stic_status stic_package_parse(const void *index, size_t size, stic_package *package, stic_error *error) {
  stic_status status;
  memset(package, 0, sizeof *package);
  package->index = index;
  package->header = index;
  if ((status = check_header(package->header, size, error))) return status;
  if ((status = place_tables(package, error))) return status;
  if ((status = stic_package_check_model(package, error))) return status;
  if ((status = place_records(package, error))) return status;
  if ((status = find_files(package, error))) return status;
  if ((status = check_records(package, error))) return status;
  if ((status = check_head(package, error))) return status;
  if ((status = stic_trunk_check_places(package, error))) return status;
  if ((status = stic_package_check_plans(package, error))) return status;
  for (uint32_t number = package->header->plans; number-- > 0;) { /* the first plan stays selected */
    stic_package_select(package, number);
    if ((status = check_plan(package, error))) return status;
  }
  return stic_package_check_gpu(package, error);
}
