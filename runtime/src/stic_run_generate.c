#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stic_run.h"

static stic_session *cancelled;
static volatile sig_atomic_t interrupted; /* also between two passes, where there is nothing to cancel */

static void interrupt(int number) {
  (void)number;
  interrupted = 1;
  stic_session_cancel(cancelled);
}

/* Ctrl-C ends the pass under way, and with it the program; a second one ends the program at once. */
static void listen(stic_session *session) {
  struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND};
  cancelled = session;
  sigaction(SIGINT, &action, NULL);
}

/* An answer as far as it is there: the ids of the prompt, then its own. */
typedef struct {
  int32_t *ids;
  size_t given, n;
  uint64_t *times; /* of each token; of the first one, with the prompt */
  uint64_t stall_us;
  const char *finish;
} answer;

static bool stops(const generation *how, int32_t token) {
  for (int32_t i = 0; i < how->stops; i++)
    if (how->stop[i] == token) return true;
  return false;
}

/* Compute what is not yet part of the text, and draw the token that follows. */
static stic_status next(stic_session *s, const generation *how, answer *a, size_t pending) {
  stic_stats stats = {.struct_bytes = sizeof stats};
  stic_status status = stic_session_extend_ids(s, a->ids + a->n - pending, pending);
  if (status) return status;
  stic_session_stats(s, &stats);
  a->times[a->n - a->given] = stats.run_us;
  a->stall_us += stats.stall_us;
  const size_t recent = a->n < how->recent ? a->n : how->recent;
  status = stic_session_sample(s, &how->sampling, a->ids + a->n - recent, recent, &a->ids[a->n]);
  if (!status) a->n++;
  return status;
}

static stic_status answer_all(stic_session *s, const generation *how, answer *a) {
  stic_info info = {.struct_bytes = sizeof info};
  stic_session_info(s, &info);
  for (uint32_t i = 0; i < how->tokens; i++) {
    const stic_status status = interrupted ? STIC_CANCELLED : next(s, how, a, i ? 1 : a->given);
    if (status) return status;
    a->finish = stops(how, a->ids[a->n - 1])                  ? "stop"
                : i + 1 == how->tokens                        ? "length"
                : stic_session_position(s) == info.max_length ? "context"
                                                              : NULL;
    if (a->finish) return STIC_OK;
  }
  return STIC_OK;
}

static void print_answer(const answer *a, bool json) {
  printf(json ? "{\"ids\":[" : "");
  for (size_t i = a->given; i < a->n; i++) printf("%s%d", i > a->given ? "," : "", a->ids[i]);
  if (json)
    printf("],\"finish\":\"%s\",", a->finish);
  else
    printf("\n%zu tokens (%s): the first after %llu us\n", a->n - a->given, a->finish, (unsigned long long)a->times[0]);
}

int generate(stic_session *session, const generation *how, const int32_t *ids, size_t n) {
  answer a = {.given = n, .n = n};
  a.ids = need(malloc((n + how->tokens) * sizeof *a.ids));
  a.times = need(malloc(how->tokens * sizeof *a.times));
  memcpy(a.ids, ids, n * sizeof *ids);
  listen(session);
  stic_status status = how->load ? stic_session_load(session, how->load) : STIC_OK;
  if (!status) status = answer_all(session, how, &a);
  if (!status && how->save) status = stic_session_save(session, how->save);
  if (!status) {
    print_answer(&a, how->json);
    print_costs(session, a.times, a.n - a.given, a.stall_us, how->json);
  }
  free(a.ids);
  free(a.times);
  if (status != STIC_CANCELLED) return status ? failed(session) : 0;
  fprintf(stderr, "stic_run: cancelled\n");
  return 1;
}
