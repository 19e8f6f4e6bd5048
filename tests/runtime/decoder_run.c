/* usage: decoder_run PACKAGE FOLDER
 * Goes through what a decoder's session can do, also in ways that are refused, and prints how often that took memory, if
 * allocations() is there to count it. Under sanitizers it must end without a word of theirs. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stic.h"

__attribute__((weak)) long allocations(void);

#define EXPECT(status, call) \
  do { \
    const stic_status got = (call); \
    if (got != (status)) { \
      fprintf(stderr, "line %d: status %d, not %d: %s\n", __LINE__, (int)got, (int)(status), \
              stic_error_message(session)); \
      exit(1); \
    } \
  } while (0)

enum { PROMPT = 21 };

static atomic_bool done;

static void *cancel_often(void *session) {
  const struct timespec pause = {0, 200000};
  while (!atomic_load(&done)) {
    stic_session_cancel(session);
    nanosleep(&pause, NULL);
  }
  return NULL;
}

/* Everything but saving and loading, for which stdio and the file system may take memory. */
static void use(stic_session *session, const stic_info *info, float *logits, float *again) {
  int32_t ids[PROMPT], token = -1;
  stic_token tokens[PROMPT];
  for (int i = 0; i < PROMPT; i++) {
    ids[i] = (7 * i + 3) % (int)info->vocabulary;
    tokens[i] = (stic_token){ids[i], (uint32_t)i, 0};
  }
  const size_t all = info->output_features;
  stic_sampling sampling = STIC_SAMPLING_DEFAULT;
  EXPECT(STIC_OK, stic_session_rewind(session, 0));
  EXPECT(STIC_POSITION, stic_session_logits(session, logits, all));
  EXPECT(STIC_POSITION, stic_session_sample(session, &sampling, NULL, 0, &token));
  EXPECT(STIC_INPUT_LENGTH, stic_session_extend(session, tokens, 0, NULL, 0));
  EXPECT(STIC_INVALID_ARGUMENT, stic_session_extend(session, NULL, 3, NULL, 0));
  EXPECT(STIC_CONTEXT_FULL, stic_session_extend(session, tokens, (size_t)info->max_length + 1, NULL, 0));
  EXPECT(STIC_OUTPUT_CAPACITY, stic_session_extend(session, tokens, PROMPT, logits, PROMPT * all - 1));
  EXPECT(STIC_POSITION, stic_session_extend(session, tokens + 1, 3, NULL, 0));
  tokens[2].sequence = 1;
  EXPECT(STIC_POSITION, stic_session_extend(session, tokens, 3, NULL, 0));
  tokens[2].sequence = 0;
  tokens[2].id = (int32_t)info->vocabulary;
  EXPECT(STIC_TOKEN_RANGE, stic_session_extend(session, tokens, 3, NULL, 0));
  tokens[2].id = ids[2];
  EXPECT(STIC_OK, stic_session_extend(session, tokens, PROMPT, logits, PROMPT * all));
  EXPECT(STIC_OK, stic_session_logits(session, again, all));
  if (memcmp(again, logits + (PROMPT - 1) * all, all * sizeof *again)) exit(2);
  sampling.temperature = 1;
  sampling.top_k = 5;
  sampling.top_p = 0.9f;
  sampling.repetition_penalty = 1.2f;
  EXPECT(STIC_OK, stic_session_sample(session, &sampling, ids, PROMPT, &token));
  EXPECT(STIC_TOKEN_RANGE, stic_session_sample(session, &sampling, &(int32_t){-1}, 1, &token));
  EXPECT(STIC_OK, stic_session_evict(session, UINT64_MAX));
  EXPECT(STIC_OK, stic_session_rewind(session, 10));
  EXPECT(STIC_POSITION, stic_session_rewind(session, 11));
  EXPECT(STIC_OK, stic_session_extend_ids(session, ids + 10, PROMPT - 10));
  EXPECT(STIC_OK, stic_session_logits(session, logits, all));
  if (memcmp(again, logits, all * sizeof *again)) exit(3);
  EXPECT(STIC_NOT_THIS_MODEL, stic_session_run(session, ids, NULL, 3, logits, PROMPT * all));
}

int main(int argc, char **argv) {
  stic_session *session = NULL;
  if (argc != 3) return 2;
  EXPECT(STIC_OK, stic_session_open(argv[1], NULL, &session));
  stic_info info = {.struct_bytes = sizeof info};
  EXPECT(STIC_OK, stic_session_info(session, &info));
  float *logits = malloc(PROMPT * info.output_features * sizeof *logits);
  float *again = malloc(info.output_features * sizeof *again);
  const long before = allocations ? allocations() : 0;
  for (int i = 0; i < 3; i++) use(session, &info, logits, again);
  const long taken = allocations ? allocations() - before : 0;

  char path[4096];
  snprintf(path, sizeof path, "%s/state", argv[2]);
  EXPECT(STIC_OK, stic_session_save(session, path));
  EXPECT(STIC_OK, stic_session_rewind(session, 0));
  EXPECT(STIC_OK, stic_session_load(session, path));
  EXPECT(STIC_OK, stic_session_logits(session, again, info.output_features));
  if (stic_session_position(session) != PROMPT || memcmp(again, logits, info.output_features * sizeof *again)) return 4;
  EXPECT(STIC_STATE, stic_session_load(session, argv[1]));
  EXPECT(STIC_INVALID_ARGUMENT, stic_session_save(session, NULL));

  pthread_t other;
  if (pthread_create(&other, NULL, cancel_often, session)) return 5;
  int cancelled = 0;
  for (int i = 0; i < 50; i++) {
    const stic_status status = stic_session_extend_ids(session, &(int32_t){1}, 1);
    if (status && status != STIC_CANCELLED) return 6;
    cancelled += status == STIC_CANCELLED;
    if (stic_session_position(session) != PROMPT + !status) return 7;
    EXPECT(STIC_OK, stic_session_rewind(session, PROMPT));
  }
  atomic_store(&done, true);
  pthread_join(other, NULL);
  stic_session_cancel(session); /* nothing is under way */
  EXPECT(STIC_OK, stic_session_extend_ids(session, &(int32_t){1}, 1));
  printf("%ld of %ld, %d cancelled\n", taken, before, cancelled);
  free(logits);
  free(again);
  return stic_session_close(session);
}
