#include "versions.h"

#include <string.h>

/* No version of a structure is as large; a larger number was never set. */
enum { MOST_BYTES = 4096 };

bool stic_version_has_size(uint32_t bytes) {
  return bytes >= sizeof(uint32_t) && bytes <= MOST_BYTES && bytes % sizeof(uint32_t) == 0;
}

stic_status stic_version_read(const char *name, void *options, size_t known, const void *given, stic_error *error) {
  const uint8_t *const from = given;
  uint32_t bytes;
  memcpy(&bytes, given, sizeof bytes);
  if (!stic_version_has_size(bytes))
    return stic_fail(error, STIC_INVALID_ARGUMENT,
                     "%s.struct_bytes is %u: start from the default that stic.h has of it", name, bytes);
  for (size_t at = known; at < bytes; at++)
    if (from[at])
      return stic_fail(error, STIC_INVALID_ARGUMENT,
                       "%s has %u bytes, of which this engine, %d.%d, knows %zu, and what lies beyond asks"
                       " for something: leave it 0, or use a newer engine",
                       name, bytes, STIC_VERSION_MAJOR, STIC_VERSION_MINOR, known);
  const size_t shared = bytes < known ? bytes : known, own = sizeof bytes;
  memcpy((uint8_t *)options + own, from + own, shared - own);
  return STIC_OK;
}

void stic_version_write(void *target, const void *found, size_t size) {
  uint32_t bytes;
  memcpy(&bytes, target, sizeof bytes);
  const size_t shared = bytes < size ? bytes : size, own = sizeof bytes;
  memcpy((uint8_t *)target + own, (const uint8_t *)found + own, shared - own);
  if (bytes > size) memset((uint8_t *)target + size, 0, bytes - size);
}
