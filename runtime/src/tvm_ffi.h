/* What of TVM-FFI's C ABI the exports use (tvm/ffi/c_api.h, dlpack/dlpack.h of apache-tvm-ffi 0.1). */
#ifndef STIC_TVM_FFI_H
#define STIC_TVM_FFI_H

#include <stddef.h>
#include <stdint.h>

enum {
  STIC_FFI_NONE = 0,
  STIC_FFI_INT = 1,
  STIC_FFI_TENSOR_POINTER = 7, /* v_ptr: DLTensor */
  STIC_FFI_RAW_STRING = 8,
  STIC_FFI_BYTES_POINTER = 9, /* v_ptr: stic_ffi_bytes */
  STIC_FFI_SMALL_STRING = 11,
  STIC_FFI_SMALL_BYTES = 12,
  STIC_FFI_STRING = 65, /* object header, then stic_ffi_bytes */
  STIC_FFI_BYTES = 66,  /* the same */
  STIC_FFI_TENSOR = 70  /* object header, then stic_ffi_tensor */
};

enum { STIC_FFI_CPU = 1, STIC_FFI_CODE_INT = 0, STIC_FFI_CODE_UINT = 1, STIC_FFI_CODE_FLOAT = 2 };

/* TVMFFIAny */
typedef struct stic_ffi_any {
  int32_t type_index;
  uint32_t small_string_size;
  union {
    int64_t v_int64;
    void *v_ptr;
    const char *v_c_str;
    char v_bytes[8];
  };
} stic_ffi_any;

/* TVMFFIObject */
typedef struct stic_ffi_object {
  uint64_t references;
  int32_t type_index;
  uint32_t padding;
  void (*deleter)(void *, int);
} stic_ffi_object;

/* TVMFFIByteArray */
typedef struct stic_ffi_bytes {
  const char *data;
  size_t size;
} stic_ffi_bytes;

/* DLTensor */
typedef struct stic_ffi_tensor {
  void *data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} stic_ffi_tensor;

_Static_assert(sizeof(stic_ffi_any) == 16 && sizeof(stic_ffi_object) == 24, "64-bit TVM-FFI ABI");

#endif
