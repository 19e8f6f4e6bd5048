/* Structures of the public header that a caller of another version passes: shorter ones, or longer ones. */
#ifndef STIC_VERSIONS_H
#define STIC_VERSIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Whether a caller's struct_bytes can be the size of some version's structure: that many bytes are read or written. */
bool stic_version_has_size(uint32_t struct_bytes);

/* Take `given`, whose first field is its struct_bytes, into `options`, `known` bytes that hold their own struct_bytes and
 * the default of every field. What an older caller lacks stays at its default; what a newer caller has beyond must be
 * zero, which asks for nothing. `name` is what sentences call the structure. */
stic_status stic_version_read(const char *name, void *options, size_t known, const void *given, stic_error *error);

/* Give the caller as much of `found`, `size` bytes, as `target` holds, zeros where it holds more. Its struct_bytes stays:
 * the caller knows what it has. */
void stic_version_write(void *target, const void *found, size_t size);

#endif
