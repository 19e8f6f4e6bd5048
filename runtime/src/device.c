/* What a device is asked for around a session, as functions of TVM's FFI: stic_device, stic_free_bytes,
 * stic_file_bytes, stic_crc32, stic_write, stic_rename, stic_remove, stic_list, stic_make_directory, stic_lock,
 * stic_unlock, stic_fill. A TVM RPC server takes files whole, in one message each; these go through large files in
 * parts, say what the operating system said, and rename what is complete. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "crc.h"
#include "ffi_arguments.h"
#include "format.h"
#include "platform.h"

#define EXPORT STIC_FFI_EXPORT

enum { PATH_BYTES = 4200, PART_BYTES = 1 << 16 };

/* "cannot <verb> <path>: <what the operating system says>". */
static int system_error(const char *verb, const char *path) {
  char text[PATH_BYTES + 200];
  const int number = errno;
  snprintf(text, sizeof text, "cannot %s %s: %s", verb, path, strerror(number));
  return stic_ffi_raise("OSError", STIC_IO, text);
}

static uint64_t available_memory(void) {
  unsigned long long kib;
  char line[128];
  FILE *file = fopen("/proc/meminfo", "r");
  uint64_t found = 0;
  while (file && !found && fgets(line, sizeof line, file))
    if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) found = kib << 10;
  if (file) fclose(file);
  return found;
}

EXPORT __tvm_ffi_stic_device(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char name[32];
  (void)self;
  if (n != 1 || !stic_ffi_take_string(&a[0], name, sizeof name)) return stic_ffi_misused("stic_device(name) -> number");
  if (!strcmp(name, "version")) return stic_ffi_return(result, stic_version());
  if (!strcmp(name, "format_major")) return stic_ffi_return(result, STIC_MAJOR);
  if (!strcmp(name, "format_minor")) return stic_ffi_return(result, STIC_MINOR);
  if (!strcmp(name, "architecture")) return stic_ffi_return(result, stic_cpu_architecture());
  if (!strcmp(name, "features")) return stic_ffi_return(result, stic_cpu_features());
  if (!strcmp(name, "cores")) return stic_ffi_return(result, stic_cpus_allowed().count);
  if (!strcmp(name, "page_bytes")) return stic_ffi_return(result, sysconf(_SC_PAGESIZE));
  if (!strcmp(name, "available_bytes")) return stic_ffi_return(result, (int64_t)available_memory());
  return stic_ffi_raise("ValueError", STIC_INVALID_ARGUMENT,
                        "stic_device knows version, format_major, format_minor, architecture, features, cores,"
                        " page_bytes, available_bytes");
}

EXPORT __tvm_ffi_stic_free_bytes(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  struct statvfs found;
  (void)self;
  if (n != 1 || !stic_ffi_take_string(&a[0], path, sizeof path))
    return stic_ffi_misused("stic_free_bytes(path) -> bytes that this user may still write there");
  if (statvfs(path, &found)) return system_error("ask for the free space of", path);
  const uint64_t free_bytes = (uint64_t)found.f_bavail * found.f_frsize;
  return stic_ffi_return(result, free_bytes < INT64_MAX ? (int64_t)free_bytes : INT64_MAX);
}

EXPORT __tvm_ffi_stic_file_bytes(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  struct stat found;
  (void)self;
  if (n != 1 || !stic_ffi_take_string(&a[0], path, sizeof path))
    return stic_ffi_misused("stic_file_bytes(path) -> bytes; -1: there is no such file");
  if (!stat(path, &found)) return stic_ffi_return(result, S_ISREG(found.st_mode) ? (int64_t)found.st_size : -1);
  return errno == ENOENT || errno == ENOTDIR ? stic_ffi_return(result, -1) : system_error("look at", path);
}

EXPORT __tvm_ffi_stic_crc32(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES], part[PART_BYTES];
  int64_t offset, bytes;
  (void)self;
  if (n != 3 || !stic_ffi_take_string(&a[0], path, sizeof path) || !stic_ffi_take_count(&a[1], INT64_MAX, &offset) ||
      !stic_ffi_take_count(&a[2], INT64_MAX - offset, &bytes))
    return stic_ffi_misused("stic_crc32(path, offset, bytes) -> CRC-32 of that range, or of what there is of it");
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return system_error("open", path);
  uint32_t crc = 0;
  ssize_t got = 1;
  for (const int64_t end = offset + bytes; offset < end && got > 0; offset += got) {
    got = pread(file, part, end - offset < PART_BYTES ? (size_t)(end - offset) : PART_BYTES, (off_t)offset);
    if (got > 0) crc = stic_crc32(crc, part, (size_t)got);
  }
  const int failed = got < 0 ? system_error("read", path) : 0;
  close(file);
  return failed ? failed : stic_ffi_return(result, crc);
}

/* Write all of `bytes` at `offset`, or leave the file as long as `offset`. */
static bool write_all(int file, const char *data, size_t bytes, int64_t offset) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t put = pwrite(file, data + done, bytes - done, (off_t)(offset + (int64_t)done));
    if (put > 0) {
      done += (size_t)put;
    } else if (put == 0 || errno != EINTR) {
      const int number = put == 0 ? ENOSPC : errno;
      errno = ftruncate(file, (off_t)offset) ? errno : number;
      return false;
    }
  }
  return true;
}

EXPORT __tvm_ffi_stic_write(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  int64_t offset;
  const void *data;
  size_t bytes;
  (void)self;
  if (n != 3 || !stic_ffi_take_string(&a[0], path, sizeof path) ||
      !stic_ffi_take_count(&a[1], INT64_MAX / 2, &offset) || !stic_ffi_take_bytes(&a[2], &data, &bytes) ||
      bytes > INT64_MAX / 2)
    return stic_ffi_misused("stic_write(path, offset, bytes) -> size; what the file had from offset on is cut off");
  const int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return system_error("create", path);
  const bool written = !ftruncate(file, (off_t)offset) && write_all(file, data, bytes, offset);
  const int failed = written ? 0 : system_error("write", path);
  close(file);
  return failed ? failed : stic_ffi_return(result, offset + (int64_t)bytes);
}

EXPORT __tvm_ffi_stic_rename(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char from[PATH_BYTES], to[PATH_BYTES];
  (void)self;
  if (n != 2 || !stic_ffi_take_string(&a[0], from, sizeof from) || !stic_ffi_take_string(&a[1], to, sizeof to))
    return stic_ffi_misused("stic_rename(from, to) -> 0, once the contents of `from` are on the storage");
  const int file = open(from, O_RDONLY | O_CLOEXEC);
  if (file < 0) return system_error("open", from);
  const int lost = fsync(file) ? system_error("write", from) : 0;
  close(file);
  if (lost) return lost;
  return rename(from, to) ? system_error("rename a file to", to) : stic_ffi_return(result, 0);
}

EXPORT __tvm_ffi_stic_remove(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  (void)self;
  if (n != 1 || !stic_ffi_take_string(&a[0], path, sizeof path))
    return stic_ffi_misused("stic_remove(path of a file or an empty directory) -> 1; 0: there was none");
  if (!remove(path)) return stic_ffi_return(result, 1);
  return errno == ENOENT ? stic_ffi_return(result, 0) : system_error("remove", path);
}

EXPORT __tvm_ffi_stic_list(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES], *room;
  int64_t capacity, used = 0;
  (void)self;
  if (n != 2 || !stic_ffi_take_string(&a[0], path, sizeof path) ||
      !stic_ffi_take_tensor(&a[1], STIC_FFI_CODE_UINT, 8, (void **)&room, &capacity))
    return stic_ffi_misused("stic_list(folder, uint8 tensor for names, each with a '/' after it) -> bytes they need;"
                            " 0, too, if it is no folder");
  const int file = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC); /* links lead out of what is meant */
  const bool none = file < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP);
  if (none) return stic_ffi_return(result, 0);
  DIR *folder = file < 0 ? NULL : fdopendir(file);
  if (!folder) {
    const int failed = system_error("list", path);
    if (file >= 0) close(file);
    return failed;
  }
  for (const struct dirent *entry; (entry = readdir(folder));) {
    const int64_t size = (int64_t)strlen(entry->d_name);
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    if (used + size < capacity) {
      memcpy(room + used, entry->d_name, (size_t)size);
      room[used + size] = '/';
    }
    used += size + 1;
  }
  closedir(folder);
  return stic_ffi_return(result, used);
}

EXPORT __tvm_ffi_stic_make_directory(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  (void)self;
  if (n != 1 || !stic_ffi_take_string(&a[0], path, sizeof path) || path[0] != '/')
    return stic_ffi_misused("stic_make_directory(absolute path) -> 0, with those above it");
  for (char *end = path + 1;; end++) {
    if (*end != '/' && *end) continue;
    const char kept = *end;
    *end = 0;
    /* Where nothing may be made, what is above may still be there. */
    if (mkdir(path, 0700) && errno != EEXIST && !kept) return system_error("make the directory", path);
    if (!(*end = kept)) break;
  }
  return access(path, W_OK | X_OK) ? system_error("write in", path) : stic_ffi_return(result, 0);
}

/* Held until its process ends, however that happens; -1 as a result: another process holds it. */
EXPORT __tvm_ffi_stic_lock(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  (void)self;
  if (n != 1 || !stic_ffi_take_string(&a[0], path, sizeof path))
    return stic_ffi_misused("stic_lock(path) -> descriptor for stic_unlock; -1: another process holds it");
  const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return system_error("create", path);
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  if (fcntl(file, F_SETLK, &whole) != -1) return stic_ffi_return(result, file);
  const int failed = errno == EACCES || errno == EAGAIN ? 0 : system_error("lock", path);
  close(file);
  return failed ? failed : stic_ffi_return(result, -1);
}

EXPORT __tvm_ffi_stic_unlock(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  int64_t file;
  (void)self;
  if (n != 1 || !stic_ffi_take_count(&a[0], INT32_MAX, &file)) return stic_ffi_misused("stic_unlock(descriptor) -> 0");
  return close((int)file) ? system_error("close", "the lock") : stic_ffi_return(result, 0);
}

EXPORT __tvm_ffi_stic_fill(void *self, const stic_ffi_any *a, int32_t n, stic_ffi_any *result) {
  char path[PATH_BYTES];
  uint64_t part[PART_BYTES / sizeof(uint64_t)], noise = 0x9e3779b97f4a7c15u;
  int64_t bytes;
  (void)self;
  if (n != 2 || !stic_ffi_take_string(&a[0], path, sizeof path) || !stic_ffi_take_count(&a[1], INT64_MAX / 2, &bytes))
    return stic_ffi_misused("stic_fill(path, bytes) -> 0: a new file of noise, on the storage");
  const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0) return system_error("create", path);
  bool written = true;
  for (int64_t at = 0; written && at < bytes; at += PART_BYTES) {
    for (size_t i = 0; i < PART_BYTES / sizeof *part; i++) { /* xorshift64: what no storage can compress */
      noise ^= noise << 13;
      noise ^= noise >> 7;
      part[i] = noise ^= noise << 17;
    }
    written = write_all(file, (const char *)part, bytes - at < PART_BYTES ? (size_t)(bytes - at) : PART_BYTES, at);
  }
  const int failed = written && !fsync(file) ? 0 : system_error("write", path);
  close(file);
  return failed ? failed : stic_ffi_return(result, 0);
}
