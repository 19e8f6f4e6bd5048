#include "versions.h"

#include <string.h>

/* No version of a structure is as large; a larger number was never set. */
enum { MOST_BYTES = 4096 };

bool stic_version_has_size(uint32_t bytes) {
  return bytes >= sizeof(uint32_t) && bytes <= MOST_BYTES && bytes % sizeof(uint32_t) == 0;
}

stic_status stic_version_read(stic_options *options, const stic_options *given, stic_error *error) {
  const size_t known = sizeof *options, bytes = given->struct_bytes;
  const uint8_t *const from = (const uint8_t *)given;
  if (!stic_version_has_size(given->struct_bytes))
    return stic_fail(error, STIC_INVALID_ARGUMENT, "stic_options.struct_bytes is %u: start from STIC_OPTIONS_DEFAULT",
                     given->struct_bytes);
  for (size_t at = known; at < bytes; at++)
    if (from[at])
      return stic_fail(error, STIC_INVALID_ARGUMENT,
                       "stic_options has %zu bytes, of which this engine, %d.%d, knows %zu, and what lies beyond asks"
                       " for something: leave it 0, or use a newer engine",
                       bytes, STIC_VERSION_MAJOR, STIC_VERSION_MINOR, known);
  memcpy(options, from, bytes < known ? bytes : known);
  options->struct_bytes = (uint32_t)known;
  return STIC_OK;
}

void stic_version_write(void *target, const void *found, size_t size) {
  uint32_t bytes;
  memcpy(&bytes, target, sizeof bytes);
  const size_t shared = bytes < size ? bytes : size, own = sizeof bytes;
  memcpy((uint8_t *)target + own, (const uint8_t *)found + own, shared - own);
  if (bytes > size) memset((uint8_t *)target + size, 0, bytes - size);
}
