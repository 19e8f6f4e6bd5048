/* Embedding rows that are those of the vocabulary block: taken from its records in memory, or read from shards.bin part
 * by part. */
#ifndef STIC_TIED_H
#define STIC_TIED_H

#include "package.h"

/* Bytes of a record that have something of a row. */
typedef struct stic_tied_part {
  uint32_t record, at, bytes; /* `at` counts from the record's start */
} stic_tied_part;

/* Where a row is: its parts are its planes, most significant first, its ratios and its table, or one at full precision. */
typedef struct stic_tied_row {
  uint32_t slice, row; /* of the slice */
  uint32_t bits, parts;
  stic_tied_part part[8 + 2];
} stic_tied_row;

/* Find the row of a token under the plan that is selected. */
stic_tied_row stic_tied_find(const stic_package *package, int32_t id);

/* Keep of part `i`, whose bytes are at `from`, what is the row's. All parts are taken in order into `found`, which has
 * 4 * HP + 512 bytes. */
void stic_tied_take(const stic_package *package, const stic_tied_row *row, uint32_t i, const uint8_t *from,
                    uint8_t *found);

/* Write the row that was found as token `t` of region x. */
void stic_tied_put(const stic_package *package, const stic_tied_row *row, const uint8_t *found, uint8_t *arena,
                   uint32_t t);

/* Add rows of positions (n, width), float16, to a tile of x, whose first lanes they belong to. */
void stic_tied_add_positions(float *x, const uint16_t *positions, uint32_t n, uint32_t width);

#endif
