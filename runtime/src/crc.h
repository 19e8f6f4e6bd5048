/* CRC-32 as in zlib. */
#ifndef STIC_CRC_H
#define STIC_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Continue `crc` (0 to start) over `size` bytes. */
uint32_t stic_crc32(uint32_t crc, const void *data, size_t size);

#endif
