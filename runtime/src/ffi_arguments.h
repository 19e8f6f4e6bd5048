/* Arguments and results of functions that TVM's FFI calls: taken only if they are of the kind that is wanted. */
#ifndef STIC_FFI_ARGUMENTS_H
#define STIC_FFI_ARGUMENTS_H

#include <stdbool.h>

#include "../include/stic.h"
#include "tvm_ffi.h"

#define STIC_FFI_EXPORT STIC_API int

/* Raise a Python exception if TVM's library is in this process; either way the caller returns -1. Over RPC the kind
 * is lost, so `status` is kept for stic_last_status. */
int stic_ffi_raise(const char *kind, stic_status status, const char *message);

/* The same for arguments that are not those of `usage`. */
int stic_ffi_misused(const char *usage);

int stic_ffi_return(stic_ffi_any *result, int64_t value);

bool stic_ffi_take_int(const stic_ffi_any *a, int64_t *value);

/* A whole number from 0 to `most`. */
bool stic_ffi_take_count(const stic_ffi_any *a, int64_t most, int64_t *value);

/* A string, copied with an end into `text`. */
bool stic_ffi_take_string(const stic_ffi_any *a, char *text, size_t room);

/* Bytes, which stay the caller's. */
bool stic_ffi_take_bytes(const stic_ffi_any *a, const void **data, size_t *size);

/* A contiguous CPU tensor of elements of this type code and width in bits. */
bool stic_ffi_take_tensor(const stic_ffi_any *a, uint8_t code, uint8_t bits, void **data, int64_t *count);

#endif
