/* usage: versions PACKAGE      structures of every size that older and newer callers have, each in a block of its own size
 * so that sanitizers see every byte too many. Prints "ok", or what went wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stic.h"

enum { BEYOND = 64 };

static int wrong(const char *what, size_t bytes) { return printf("%s, %zu bytes\n", what, bytes), 1; }

/* A structure of a caller of `bytes`: the first of them from `from`, zeros behind. */
static uint8_t *block(const void *from, size_t size, size_t bytes) {
  uint8_t *made = calloc(1, bytes);
  if (!made) exit(3);
  memcpy(made, from, size < bytes ? size : bytes);
  const uint32_t own = (uint32_t)bytes;
  memcpy(made, &own, sizeof own);
  return made;
}

/* Whether a caller's block holds what is known, as far as it goes, and zeros beyond. */
static int filled(const uint8_t *made, size_t bytes, const void *whole, size_t size) {
  uint32_t own;
  memcpy(&own, made, sizeof own);
  if (own != bytes || memcmp(made + 4, (const uint8_t *)whole + 4, (size < bytes ? size : bytes) - 4)) return 0;
  for (size_t at = size; at < bytes; at++)
    if (made[at]) return 0;
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  const stic_options options = STIC_OPTIONS_DEFAULT;
  stic_session *session;
  for (size_t bytes = 4; bytes <= sizeof options + BEYOND; bytes += 4) {
    uint8_t *made = block(&options, sizeof options, bytes);
    if (stic_session_open(argv[1], (const stic_options *)(void *)made, &session)) return wrong("not opened", bytes);
    stic_session_close(session);
    if (bytes > sizeof options) {
      made[bytes - 1] = 1;
      if (stic_session_open(argv[1], (const stic_options *)(void *)made, &session) != STIC_INVALID_ARGUMENT || session)
        return wrong("opened in spite of an option that is not known", bytes);
    }
    free(made);
  }
  if (stic_session_open(argv[1], NULL, &session)) return wrong(stic_error_message(NULL), 0);
  stic_info info = {.struct_bytes = sizeof info};
  stic_plan plan = {.struct_bytes = sizeof plan};
  stic_stats stats = {.struct_bytes = sizeof stats};
  if (stic_session_info(session, &info) || stic_session_plan(session, 0, &plan) || stic_session_stats(session, &stats))
    return wrong("nothing is told", 0);
  for (size_t bytes = 4; bytes <= sizeof stats + BEYOND; bytes += 4) {
    uint8_t *made = calloc(1, bytes);
    if (!made) return 3;
    const uint32_t own = (uint32_t)bytes;
    memset(made, 0xee, bytes);
    memcpy(made, &own, sizeof own);
    if (stic_session_info(session, (stic_info *)(void *)made) || !filled(made, bytes, &info, sizeof info))
      return wrong("stic_session_info", bytes);
    memset(made + 4, 0xee, bytes - 4);
    if (stic_session_plan(session, 0, (stic_plan *)(void *)made) || !filled(made, bytes, &plan, sizeof plan))
      return wrong("stic_session_plan", bytes);
    memset(made + 4, 0xee, bytes - 4);
    if (stic_session_stats(session, (stic_stats *)(void *)made) || !filled(made, bytes, &stats, sizeof stats))
      return wrong("stic_session_stats", bytes);
    free(made);
  }
  return stic_session_close(session) ? wrong("not closed", 0) : (puts("ok"), 0);
}
