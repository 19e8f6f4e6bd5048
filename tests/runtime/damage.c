/* usage: damage run PACKAGE FILE             open and run, under every plan: print "ok" or the sentence
 *        damage survive PACKAGE FILE         the same; any outcome but a crash will do
 *        damage truncate PACKAGE FILE STEP   shorten FILE of the package to every STEP-th size, and restore it
 *        damage flip PACKAGE FILE N          flip one bit of FILE, N times in N places, and restore it
 * The last two print how many damaged packages were accepted. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stic.h"

/* Change to another plan, or stay; a hostile one may be out of reach of every budget. */
static void change(stic_session *session, uint32_t turn) {
  stic_info info = {.struct_bytes = sizeof info};
  stic_plan plan = {.struct_bytes = sizeof plan};
  if (stic_session_info(session, &info) || stic_session_plan(session, 5 * turn % info.plans, &plan)) exit(4);
  const uint32_t held_us = plan.deadline_us ? plan.deadline_us : plan.predicted_us;
  stic_session_set_budget(session, held_us, plan.claimed_bytes, NULL);
  if (turn % 3 == 1) stic_session_evict(session, turn % 2 ? UINT64_MAX : 1);
}

static const char *attempt(const char *path) {
  static char sentence[600];
  const int32_t ids[] = {1, 2, 3, 500, 1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
  stic_session *session;
  if (stic_session_open(path, NULL, &session)) return stic_error_message(NULL);
  const size_t size = stic_session_output_size(session, 17);
  float *output = malloc(size * sizeof *output);
  const char *result = NULL;
  stic_info info = {.struct_bytes = sizeof info};
  if (stic_session_info(session, &info)) exit(4);
  const uint32_t turns = info.plans == 1 ? 2 : 2 * info.plans + 2;
  for (uint32_t turn = 0; turn < turns && output && !result; turn++) {
    if (turn > 1) change(session, turn);
    if (turn % 4 == 3) continue; /* changes follow one another */
    if (stic_session_run(session, ids, NULL, 17, output, size)) {
      snprintf(sentence, sizeof sentence, "%s", stic_error_message(session));
      result = sentence;
    }
  }
  free(output);
  stic_session_close(session);
  return result;
}

static void put(const char *path, const char *bytes, size_t size) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) exit(3);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  if (argc == 4) {
    const char *sentence = attempt(argv[2]);
    printf("%s\n", sentence ? sentence : "ok");
    return 0;
  }
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", argv[2], argv[3]);
  FILE *file = fopen(path, "rb");
  if (!file) return 3;
  fseek(file, 0, SEEK_END);
  const size_t size = (size_t)ftell(file);
  char *bytes = malloc(size);
  rewind(file);
  if (!bytes || fread(bytes, 1, size, file) != size) return 3;
  fclose(file);
  const size_t number = (size_t)atol(argv[4]);
  size_t accepted = 0, state = 88172645463325252u;
  if (!strcmp(argv[1], "truncate")) {
    for (size_t length = 0; length < size; length += number) {
      put(path, bytes, length);
      accepted += attempt(argv[2]) == NULL;
    }
  } else {
    for (size_t i = 0; i < number; i++) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift, Marsaglia 2003 */
      const size_t bit = state % (8 * size);
      bytes[bit / 8] ^= (char)(1 << bit % 8);
      put(path, bytes, size);
      accepted += attempt(argv[2]) == NULL;
      bytes[bit / 8] ^= (char)(1 << bit % 8);
    }
  }
  put(path, bytes, size);
  free(bytes);
  printf("%zu accepted\n", accepted);
  return 0;
}
