/* The insides of records and embedding rows. */
#include <string.h>

#include "crc.h"
#include "package.h"

bool stic_finite(const void *numbers, uint64_t count, uint32_t bits) {
  bool finite = true;
  const uint16_t *halves = numbers;
  const uint32_t *singles = numbers;
  for (uint64_t i = 0; bits == 16 && i < count; i++) finite &= (halves[i] & 0x7c00) != 0x7c00;
  for (uint64_t i = 0; bits == 32 && i < count; i++) finite &= (singles[i] & 0x7f800000) != 0x7f800000;
  return finite;
}

stic_status stic_row_check(const stic_package *p, const uint8_t *row, int32_t id, stic_error *error) {
  const size_t checked = stic_row_checked(p);
  uint32_t crc;
  memcpy(&crc, row + checked, sizeof crc);
  STIC_REQUIRE(row_checksum, stic_crc32(0, row, checked) == crc,
               "embeddings.bin is corrupt at token %d (checksum): copy the package again", id);
  const bool halves = p->header->row_type == STIC_ROW_FLOAT16;
  const uint8_t *numbers = halves ? row : row + checked - sizeof(float);
  STIC_REQUIRE(row_scale, stic_finite(numbers, halves ? p->model->hidden : 1, halves ? 16 : 32),
               "the row of token %d in embeddings.bin holds a number that is not finite: compile the package again",
               id);
  return STIC_OK;
}

stic_status stic_record_check(const stic_package *p, uint32_t block, uint32_t level, const uint8_t *record,
                              uint32_t size, stic_error *error) {
  const stic_cut *cut = stic_cut_of(p, block);
  const stic_layout *layout = &cut->layouts[level];
  for (int m = 0; m < STIC_MATRICES && level == STIC_FULL; m++)
    STIC_REQUIRE(
        weight_finite,
        stic_finite(record + layout->plane_at[m], (uint64_t)cut->rows[m] * cut->columns[m], p->header->full_bits),
        "a weight at full precision is not a finite number");
  if (level == STIC_FULL) return STIC_OK;
  for (int m = 0; m < STIC_MATRICES; m++) /* the dot products have room for magnitudes of 127 */
    STIC_REQUIRE(code_table,
                 !cut->rows[m] || !memchr(record + layout->table_at[m], 0x80, (size_t)1 << stic_bits_of_level(level)),
                 "a code table holds -128");
  uint64_t at = layout->end;
  for (int m = 0; m < STIC_MATRICES && layout->has_outliers; m++) {
    if (!cut->rows[m]) continue;
    const uint32_t *starts = (const uint32_t *)(const void *)(record + layout->blocks_at[m]);
    const uint32_t blocks = cut->rows[m] / STIC_TILE, count = starts[blocks], limit = STIC_TILE * cut->columns[m];
    STIC_REQUIRE(outlier_start, starts[0] == 0, "outlier blocks do not start at 0");
    for (uint32_t b = 0; b < blocks; b++)
      STIC_REQUIRE(outlier_blocks, starts[b] <= starts[b + 1], "outlier blocks run backwards");
    STIC_REQUIRE(outlier_room, at + 4 * (uint64_t)count <= size, "outliers run past the record's end");
    const uint16_t *entries = (const uint16_t *)(const void *)(record + at);
    for (uint32_t b = 0; b < blocks; b++)
      for (uint32_t i = starts[b]; i < starts[b + 1]; i++) {
        STIC_REQUIRE(outlier_place, entries[2 * i] < limit, "an outlier lies outside its block of rows");
        STIC_REQUIRE(outlier_order, i == starts[b] || entries[2 * i - 2] < entries[2 * i],
                     "outliers of a block are out of order");
        STIC_REQUIRE(outlier_finite, (entries[2 * i + 1] & 0x7c00) != 0x7c00, "an outlier is not a finite number");
      }
    at = stic_pad(at + 4 * (uint64_t)count, STIC_ALIGN);
  }
  STIC_REQUIRE(record_end, at == size, "a record does not end with its outliers");
  return STIC_OK;
}

const uint32_t *stic_record_outliers(const stic_cut *cut, uint32_t level, const uint8_t *record, uint32_t matrix,
                                     const uint16_t **entries) {
  const stic_layout *layout = &cut->layouts[level];
  uint64_t at = layout->end;
  const uint32_t *starts = NULL;
  for (uint32_t m = 0; m <= matrix; m++) {
    if (!cut->rows[m]) continue;
    *entries = (const uint16_t *)(const void *)(record + at);
    starts = (const uint32_t *)(const void *)(record + layout->blocks_at[m]);
    at = stic_pad(at + 4 * (uint64_t)starts[cut->rows[m] / STIC_TILE], STIC_ALIGN);
  }
  return starts;
}
