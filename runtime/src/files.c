#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc.h"
#include "platform.h"

enum { MOST_INDEX_BYTES = 1 << 26 };

stic_status stic_files_path(const char *directory, const char *name, char *path, stic_error *error) {
  /* A slash keeps dlopen from searching the system's directories. */
  const int length = snprintf(path, STIC_PATH_BYTES, "%s/%s", directory, name);
  if (length < 0 || length >= STIC_PATH_BYTES)
    return stic_fail(error, STIC_INVALID_ARGUMENT, "the path of the package is longer than this engine can handle");
  return STIC_OK;
}

static stic_status open_file(const char *directory, const char *name, int *file, uint64_t *size, stic_error *error) {
  char path[STIC_PATH_BYTES];
  struct stat facts;
  const stic_status status = stic_files_path(directory, name, path, error);
  if (status) return status;
  *file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (*file < 0)
    return stic_fail(error, STIC_PACKAGE_MISSING, "%s cannot be opened (%s): is this a stic package?", name,
                     strerror(errno));
  if (fstat(*file, &facts) || !S_ISREG(facts.st_mode)) {
    close(*file);
    return stic_fail(error, STIC_PACKAGE_MISSING, "%s is not a regular file", name);
  }
  *size = (uint64_t)facts.st_size;
  return STIC_OK;
}

stic_status stic_files_read(const stic_source *source, const char *name, uint64_t offset, uint32_t bytes,
                            uint8_t *destination, stic_error *error) {
  for (uint32_t done = 0; done < bytes;) {
    /* After a short read, O_DIRECT must go on from a whole block. */
    if (source->direct) done -= done % STIC_BLOCK;
    const ssize_t got = pread(source->file, destination + done, bytes - done, (off_t)(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return stic_fail(error, STIC_IO, "reading %s at %llu failed (%s)", name, (unsigned long long)(offset + done),
                       strerror(errno));
    if (got == 0 || (source->direct && got < STIC_BLOCK))
      return stic_fail(error, STIC_IO, "%s ended at %llu while being read: was it changed since it was opened?", name,
                       (unsigned long long)(offset + done));
    done += (uint32_t)got;
  }
  return STIC_OK;
}

stic_status stic_files_read_index(const char *directory, uint8_t **index, size_t *size, stic_error *error) {
  uint64_t bytes;
  stic_source source = {-1, false};
  stic_status status = open_file(directory, "index.bin", &source.file, &bytes, error);
  if (status) return status;
  *index = NULL;
  *size = (size_t)bytes;
  if (bytes == 0 || bytes > MOST_INDEX_BYTES)
    status = stic_fail(error, STIC_PACKAGE_CORRUPT, "index.bin has %llu bytes: copy the package again",
                       (unsigned long long)bytes);
  else if (!(*index = malloc((size_t)bytes)))
    status = stic_fail(error, STIC_OUT_OF_MEMORY, "no memory for index.bin (%llu bytes)", (unsigned long long)bytes);
  else
    status = stic_files_read(&source, "index.bin", 0, (uint32_t)bytes, *index, error);
  if (status) {
    free(*index);
    *index = NULL;
  }
  close(source.file);
  return status;
}

static stic_status check_size(const stic_file *file, uint64_t size, stic_error *error) {
  STIC_REQUIRE(file_bytes, size == file->bytes, "%s has %llu bytes of %llu: copy the package again", file->name,
               (unsigned long long)size, (unsigned long long)file->bytes);
  return STIC_OK;
}

stic_status stic_files_check_sizes(const char *directory, const stic_package *package, stic_error *error) {
  for (uint32_t i = 0; i < package->header->files; i++) {
    int file;
    uint64_t size;
    stic_status status = open_file(directory, package->files[i].name, &file, &size, error);
    if (status) return status;
    close(file);
    if ((status = check_size(&package->files[i], size, error))) return status;
  }
  return STIC_OK;
}

stic_status stic_files_verify(const char *directory, const stic_file *file, uint8_t *destination, stic_error *error) {
  uint8_t chunk[16384];
  uint32_t crc = 0;
  uint64_t size, at = 0;
  stic_source source = {-1, false};
  stic_status status = open_file(directory, file->name, &source.file, &size, error);
  if (status) return status;
  status = check_size(file, size, error);
  while (!status && at < size) {
    const uint32_t bytes = size - at < sizeof chunk ? (uint32_t)(size - at) : (uint32_t)sizeof chunk;
    uint8_t *to = destination ? destination + at : chunk;
    if ((status = stic_files_read(&source, file->name, at, bytes, to, error))) break;
    crc = stic_crc32(crc, to, bytes);
    at += bytes;
  }
  close(source.file);
  if (!status)
    STIC_REQUIRE(file_checksum, crc == file->crc, "%s is corrupt (its checksum does not match): copy the package again",
                 file->name);
  return status;
}

/* Read the first and the last block both ways. */
static bool direct_is_right(int direct, int buffered, uint64_t size) {
  void *memory = NULL;
  if (size == 0 || size % STIC_BLOCK || posix_memalign(&memory, STIC_BLOCK, 2 * STIC_BLOCK)) return false;
  uint8_t *a = memory, *b = a + STIC_BLOCK;
  bool same = true;
  const uint64_t offsets[] = {0, size - STIC_BLOCK};
  for (int i = 0; i < 2 && same; i++)
    same = pread(direct, a, STIC_BLOCK, (off_t)offsets[i]) == STIC_BLOCK &&
           pread(buffered, b, STIC_BLOCK, (off_t)offsets[i]) == STIC_BLOCK && !memcmp(a, b, STIC_BLOCK);
  free(memory);
  return same;
}

stic_status stic_files_open(const char *directory, const stic_file *file, bool buffered, stic_source *source,
                            stic_error *error) {
  char path[STIC_PATH_BYTES];
  uint64_t size;
  stic_status status = stic_files_path(directory, file->name, path, error);
  if (status) return status;
  if ((status = open_file(directory, file->name, &source->file, &size, error))) return status;
  source->direct = false;
  if ((status = check_size(file, size, error))) {
    stic_files_close(source);
    return status;
  }
  const int direct = buffered ? -1 : stic_open_direct(path);
  if (direct < 0) return STIC_OK;
  const bool right = direct_is_right(direct, source->file, size);
  stic_forget_cached(source->file, 0, 0);
  close(right ? source->file : direct);
  if (right) source->file = direct;
  source->direct = right;
  return STIC_OK;
}

void stic_files_close(stic_source *source) {
  if (source->file >= 0) close(source->file);
  source->file = -1;
}

bool stic_files_write(int file, const void *from, uint64_t size) {
  for (uint64_t done = 0; done < size;) {
    const ssize_t put = write(file, (const uint8_t *)from + done, (size_t)(size - done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    done += (uint64_t)put;
  }
  return true;
}
