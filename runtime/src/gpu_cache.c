/* Compiled programs beside the package: opencl-<16 hex digits>.bin, one for each device, driver and set of options.
 *
 *     magic  "STICOCL1"
 *     bytes  uint64 of the key, uint64 of the binary
 *     crc    uint32 of the key, uint32 of the binary
 *     key    text: device, vendor, driver, version, options, size and CRC of kernels.cl
 *     binary as the driver gave it
 *
 * The digits only name the file; the key is compared as a whole. A file that is damaged, stale or refused by the driver
 * counts as absent and is replaced; a folder that cannot be written to just has none. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc.h"
#include "gpu.h"

enum { MOST_BINARY_BYTES = 1 << 26, KEY_BYTES = 1400 };

typedef struct {
  char magic[8];
  uint64_t key_bytes, binary_bytes;
  uint32_t key_crc, binary_crc;
} cache_header;

_Static_assert(sizeof(cache_header) == 32, "no padding");

static const char magic[8] = {'S', 'T', 'I', 'C', 'O', 'C', 'L', '1'};

/* The key, and the path of its file; false if a name is too long to have a file. */
static bool name_file(const stic_gpu *gpu, const char *path, const char *options, char *key, char *file) {
  const stic_file *source = gpu->package->program;
  const int length = snprintf(key, KEY_BYTES, "%soptions %s\nsource %llu bytes, CRC %08x\n", gpu->key, options,
                              (unsigned long long)source->bytes, source->crc);
  uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
  for (const char *c = key; *c; c++) hash = (hash ^ (uint8_t)*c) * 0x100000001b3u;
  char name[40];
  snprintf(name, sizeof name, "opencl-%016llx.bin", (unsigned long long)hash);
  stic_error ignored;
  return length < KEY_BYTES && stic_files_path(path, name, file, &ignored) == STIC_OK;
}

/* The binary in the file, to be freed; NULL if there is none for this key. */
static uint8_t *load(const char *file, const char *key, size_t *size) {
  cache_header header;
  struct stat facts;
  const size_t key_bytes = strlen(key);
  uint8_t *body = NULL;
  const int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return NULL;
  if (fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode) && read(fd, &header, sizeof header) == (ssize_t)sizeof header &&
      !memcmp(header.magic, magic, sizeof magic) && header.key_bytes == key_bytes && header.binary_bytes > 0 &&
      header.binary_bytes <= MOST_BINARY_BYTES &&
      (uint64_t)facts.st_size == sizeof header + key_bytes + header.binary_bytes &&
      (body = malloc(key_bytes + (size_t)header.binary_bytes))) {
    const size_t whole = key_bytes + (size_t)header.binary_bytes;
    size_t done = 0;
    for (ssize_t got; done < whole && (got = read(fd, body + done, whole - done)) > 0;) done += (size_t)got;
    const bool good = done == whole && !memcmp(body, key, key_bytes) &&
                      stic_crc32(0, body, key_bytes) == header.key_crc &&
                      stic_crc32(0, body + key_bytes, (size_t)header.binary_bytes) == header.binary_crc;
    *size = (size_t)header.binary_bytes;
    if (good)
      memmove(body, body + key_bytes, *size);
    else
      free(body), body = NULL;
  }
  close(fd);
  return body;
}

cl_program stic_gpu_cache_read(stic_gpu *gpu, const char *path, const char *options) {
  char key[KEY_BYTES], file[STIC_PATH_BYTES];
  size_t size;
  cl_int loaded = 0, code = 0;
  if (!name_file(gpu, path, options, key, file)) return NULL;
  uint8_t *binary = load(file, key, &size);
  if (!binary) return NULL;
  const unsigned char *bytes = binary;
  cl_program program = gpu->cl->CreateProgramWithBinary(gpu->context, 1, &gpu->device, &size, &bytes, &loaded, &code);
  free(binary);
  if (code || !program) return NULL;
  /* Of a binary this links at most. */
  if (!loaded && !gpu->cl->BuildProgram(program, 1, &gpu->device, options, NULL, NULL)) return program;
  gpu->cl->ReleaseProgram(program);
  return NULL;
}

static void save(const char *file, const char *key, const uint8_t *binary, size_t size) {
  char temporary[STIC_PATH_BYTES + 32];
  snprintf(temporary, sizeof temporary, "%s.XXXXXX", file);
  const int fd = mkstemp(temporary);
  if (fd < 0) return;
  const size_t key_bytes = strlen(key);
  cache_header header = {.key_bytes = key_bytes,
                         .binary_bytes = size,
                         .key_crc = stic_crc32(0, key, key_bytes),
                         .binary_crc = stic_crc32(0, binary, size)};
  memcpy(header.magic, magic, sizeof magic);
  const bool written = stic_files_write(fd, &header, sizeof header) && stic_files_write(fd, key, key_bytes) &&
                       stic_files_write(fd, binary, size) && fchmod(fd, 0644) == 0 && fsync(fd) == 0;
  if (close(fd) || !written || rename(temporary, file)) unlink(temporary);
}

void stic_gpu_cache_write(stic_gpu *gpu, const char *path, const char *options, cl_program program) {
  char key[KEY_BYTES], file[STIC_PATH_BYTES];
  size_t size = 0;
  if (!name_file(gpu, path, options, key, file) ||
      gpu->cl->GetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) || size == 0 ||
      size > MOST_BINARY_BYTES)
    return;
  unsigned char *binary = malloc(size);
  if (binary && !gpu->cl->GetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL))
    save(file, key, binary, size);
  free(binary);
}
