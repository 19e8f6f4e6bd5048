/* A text's state in a file: a header, then the stretches of the cache and the logits, one after another. A file is read
 * twice, first to see that it is whole: what the session holds is replaced by good bytes only. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "crc.h"
#include "files.h"

static const char magic[8] = "STICSTA";
enum { VERSION = 1, PIECE = 16384 };

typedef struct {
  char magic[8];
  uint32_t version;
  uint32_t crc; /* of this header, with 0 here */
  uint64_t identity;
  uint64_t bytes; /* that follow the header */
  uint32_t bytes_crc;
  uint32_t position; /* tokens */
  uint32_t logits;   /* 1: those of the last token are at the end */
  uint32_t reserved;
} state_header;
_Static_assert(sizeof(state_header) == 48, "a header has no padding");

static state_header header_of(const stic_session *s, uint32_t position, bool logits) {
  state_header h = {
      .version = VERSION, .identity = stic_cache_identity(&s->package), .position = position, .logits = logits};
  stic_cursor cursor = {.logits = logits};
  memcpy(h.magic, magic, sizeof magic);
  for (stic_part part; stic_cache_next(s, position, &cursor, &part);) h.bytes += part.bytes;
  return h;
}

static bool write_state(const stic_session *s, int file) {
  state_header h = header_of(s, s->text.position, s->text.logits);
  stic_cursor cursor = {.logits = h.logits}, again = cursor;
  for (stic_part part; stic_cache_next(s, h.position, &cursor, &part);)
    h.bytes_crc = stic_crc32(h.bytes_crc, part.at, (size_t)part.bytes);
  h.crc = stic_crc32(0, &h, sizeof h);
  if (!stic_files_write(file, &h, sizeof h)) return false;
  for (stic_part part; stic_cache_next(s, h.position, &again, &part);)
    if (!stic_files_write(file, part.at, part.bytes)) return false;
  return fchmod(file, 0644) == 0 && fsync(file) == 0;
}

stic_status stic_state_save(stic_session *s, const char *path) {
  char partial[STIC_PATH_BYTES];
  const int length = snprintf(partial, sizeof partial, "%s.XXXXXX", path);
  if (length < 0 || (size_t)length >= sizeof partial)
    return stic_fail(&s->error, STIC_INVALID_ARGUMENT, "the state's path is longer than this engine can handle");
  struct stat there;
  if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) /* a device or a folder would be replaced */
    return stic_fail(&s->error, STIC_IO, "%s is there and is no regular file: save under another name", path);
  const int file = mkstemp(partial);
  if (file < 0) return stic_fail(&s->error, STIC_IO, "%s cannot be written (%s)", path, strerror(errno));
  bool written = write_state(s, file);
  int reason = errno;
  if (close(file) && written) written = false, reason = errno;
  if (written && rename(partial, path)) written = false, reason = errno;
  if (written) return STIC_OK;
  unlink(partial);
  return stic_fail(&s->error, STIC_IO, "%s could not be written (%s): free some space, or save elsewhere", path,
                   strerror(reason));
}

/* Fill `to` from the file. */
static stic_status read_all(stic_session *s, int file, const char *path, void *to, uint64_t size) {
  for (uint64_t done = 0; done < size;) {
    const ssize_t got = read(file, (uint8_t *)to + done, (size_t)(size - done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return stic_fail(&s->error, STIC_IO, "%s cannot be read (%s)", path, strerror(errno));
    if (got == 0) return stic_fail(&s->error, STIC_STATE, "%s is truncated: save the state again", path);
    done += (uint64_t)got;
  }
  return STIC_OK;
}

/* Read what follows the header, into the session or, with `check`, only to see whether it is good. */
static stic_status read_state(stic_session *s, int file, const char *path, const state_header *h, bool check) {
  uint8_t piece[PIECE];
  uint32_t crc = 0;
  stic_cursor cursor = {.logits = h->logits};
  for (stic_part part; stic_cache_next(s, h->position, &cursor, &part);)
    for (uint64_t at = 0; at < part.bytes; at += PIECE) {
      const uint64_t size = part.bytes - at < PIECE ? part.bytes - at : PIECE;
      const stic_status status = read_all(s, file, path, piece, size);
      if (status) return status;
      crc = stic_crc32(crc, piece, (size_t)size);
      if (check && part.bits > 8 && !stic_finite(piece, size * 8 / part.bits, part.bits))
        return stic_fail(&s->error, STIC_STATE, "%s holds numbers that are not finite: save the state again", path);
      if (!check) memcpy(part.at + at, piece, (size_t)size);
    }
  if (crc == h->bytes_crc) return STIC_OK;
  return stic_fail(&s->error, STIC_STATE, "%s is damaged (checksum): save the state again", path);
}

/* Read the header, which says what else there is. */
static stic_status read_header(stic_session *s, int file, const char *path, state_header *h) {
  stic_error *error = &s->error;
  struct stat facts;
  if (fstat(file, &facts) || !S_ISREG(facts.st_mode))
    return stic_fail(error, STIC_STATE, "%s is not a regular file", path);
  const stic_status status = read_all(s, file, path, h, sizeof *h);
  if (status) return status;
  const uint32_t crc = h->crc;
  h->crc = 0;
  if (memcmp(h->magic, magic, sizeof magic) || stic_crc32(0, h, sizeof *h) != crc)
    return stic_fail(error, STIC_STATE, "%s is not a saved state, or its header is damaged", path);
  if (h->version != VERSION || h->reserved)
    return stic_fail(error, STIC_STATE, "%s was saved by another version of stic: compute the text again", path);
  if (h->identity != stic_cache_identity(&s->package))
    return stic_fail(error, STIC_STATE,
                     "%s was saved by a session of another model or plan: load it there, or compute the text again",
                     path);
  if (h->position > s->package.model->max_length || h->logits > 1 ||
      h->bytes != header_of(s, h->position, h->logits).bytes)
    return stic_fail(error, STIC_STATE, "%s contradicts itself: save the state again", path);
  if ((uint64_t)facts.st_size != sizeof *h + h->bytes)
    return stic_fail(error, STIC_STATE, "%s is truncated, or longer than it says: save the state again", path);
  return STIC_OK;
}

static stic_status load(stic_session *s, int file, const char *path) {
  state_header h;
  stic_status status = read_header(s, file, path, &h);
  if (status || (status = read_state(s, file, path, &h, true))) return status;
  if (lseek(file, sizeof h, SEEK_SET) < 0)
    return stic_fail(&s->error, STIC_IO, "%s cannot be read (%s)", path, strerror(errno));
  s->text.position = 0;
  s->text.logits = false;
  if ((status = read_state(s, file, path, &h, false))) return status;
  s->text.position = h.position;
  s->text.logits = h.logits;
  return STIC_OK;
}

stic_status stic_state_load(stic_session *s, const char *path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (file < 0) return stic_fail(&s->error, STIC_STATE, "%s cannot be opened (%s)", path, strerror(errno));
  const stic_status status = load(s, file, path);
  close(file);
  return status;
}
