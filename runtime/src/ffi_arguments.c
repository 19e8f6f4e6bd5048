#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "ffi_arguments.h"

#include <dlfcn.h>
#include <string.h>

static _Thread_local stic_status last_status;

int stic_ffi_raise(const char *kind, stic_status status, const char *message) {
  last_status = status;
  void *symbol = dlsym(RTLD_DEFAULT, "TVMFFIErrorSetRaisedFromCStr");
  void (*raise_in_tvm)(const char *, const char *);
  memcpy(&raise_in_tvm, &symbol, sizeof symbol);
  if (raise_in_tvm) raise_in_tvm(kind, message);
  return -1;
}

int stic_ffi_misused(const char *usage) { return stic_ffi_raise("TypeError", STIC_INVALID_ARGUMENT, usage); }

STIC_FFI_EXPORT __tvm_ffi_stic_last_status(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  (void)self, (void)a;
  return n ? stic_ffi_misused("stic_last_status() -> stic_status of this thread's last failure")
           : stic_ffi_return(result, last_status);
}

int stic_ffi_return(stic_ffi_any *result, int64_t value) {
  *result = (stic_ffi_any){.type_index = STIC_FFI_INT, .v_int64 = value};
  return 0;
}

bool stic_ffi_take_int(const stic_ffi_any *a, int64_t *value) {
  if (a->type_index != STIC_FFI_INT) return false;
  *value = a->v_int64;
  return true;
}

bool stic_ffi_take_count(const stic_ffi_any *a, int64_t most, int64_t *value) {
  return stic_ffi_take_int(a, value) && *value >= 0 && *value <= most;
}

/* A string or bytes that an object of TVM's holds. */
static const stic_ffi_bytes *held(const stic_ffi_any *a) {
  return (const void *)((const char *)a->v_ptr + sizeof(stic_ffi_object));
}

bool stic_ffi_take_string(const stic_ffi_any *a, char *text, size_t room) {
  const char *from;
  size_t size;
  if (a->type_index == STIC_FFI_RAW_STRING) {
    from = a->v_c_str;
    size = strlen(from);
  } else if (a->type_index == STIC_FFI_SMALL_STRING) {
    from = a->v_bytes;
    size = a->small_string_size <= sizeof a->v_bytes - 1 ? a->small_string_size : 0;
  } else if (a->type_index == STIC_FFI_STRING) {
    from = held(a)->data;
    size = held(a)->size;
  } else {
    return false;
  }
  if (size >= room) return false;
  memcpy(text, from, size);
  text[size] = 0;
  return true;
}

bool stic_ffi_take_bytes(const stic_ffi_any *a, const void **data, size_t *size) {
  if (a->type_index == STIC_FFI_SMALL_BYTES) {
    *data = a->v_bytes;
    *size = a->small_string_size;
    return *size <= sizeof a->v_bytes - 1;
  }
  if (a->type_index != STIC_FFI_BYTES && a->type_index != STIC_FFI_BYTES_POINTER) return false;
  const stic_ffi_bytes *bytes = a->type_index == STIC_FFI_BYTES ? held(a) : a->v_ptr;
  *data = bytes->data;
  *size = bytes->size;
  return true;
}

bool stic_ffi_take_tensor(const stic_ffi_any *a, uint8_t code, uint8_t bits, void **data, int64_t *count) {
  const stic_ffi_tensor *t;
  if (a->type_index == STIC_FFI_TENSOR_POINTER)
    t = a->v_ptr;
  else if (a->type_index == STIC_FFI_TENSOR)
    t = (const void *)((const char *)a->v_ptr + sizeof(stic_ffi_object));
  else
    return false;
  if (t->device_type != STIC_FFI_CPU || t->code != code || t->bits != bits || t->lanes != 1) return false;
  *count = 1;
  for (int32_t i = t->ndim - 1; i >= 0; i--) {
    if (t->strides && t->shape[i] > 1 && t->strides[i] != *count) return false;
    *count *= t->shape[i];
  }
  *data = (char *)t->data + t->byte_offset;
  return true;
}
