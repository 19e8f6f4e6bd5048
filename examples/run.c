/* Run a package through the C API: token ids in, the output's first numbers and what the run cost out.
 *
 *   stic engine --target host -o build/engine
 *   cc -std=c11 -I runtime/include examples/run.c -L build/engine -lstic -Wl,-rpath,"$PWD/build/engine" -o build/run
 *   build/run minilm.stic 101 7592 102
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "stic.h"

static int failed(stic_session *session) {
  fprintf(stderr, "run: %s\n", stic_error_message(session));
  stic_session_close(session);
  return 1;
}

/* A run of n tokens; the session takes no memory for it, so the output's is the caller's. */
static int run(stic_session *session, const int32_t *ids, int32_t n) {
  const size_t size = stic_session_output_size(session, n);
  float *output = malloc((size + 1) * sizeof *output);
  if (!output) return fprintf(stderr, "run: out of memory\n"), stic_session_close(session), 1;
  if (stic_session_run(session, ids, NULL, n, output, size)) {
    free(output);
    return failed(session);
  }
  printf("%zu numbers:", size);
  for (size_t i = 0; i < size && i < 6; i++) printf(" %.6g", (double)output[i]);
  printf("\n");
  free(output);
  stic_stats stats = {.struct_bytes = sizeof stats};
  if (stic_session_stats(session, &stats)) return failed(session);
  printf("%" PRIu64 " us, of it %" PRIu64 " us waiting for storage; %" PRIu64 " bytes held at the peak, %" PRIu64
         " claimed\n",
         stats.run_us, stats.stall_us, stats.peak_bytes, stats.claimed_bytes);
  stic_session_close(session);
  return 0;
}

/* Token ids from words; NULL where one of them is no number, or where there is no memory. */
static int32_t *parse(char **words, int32_t n) {
  int32_t *ids = malloc((size_t)n * sizeof *ids);
  if (!ids) fprintf(stderr, "run: out of memory\n");
  for (int32_t i = 0; ids && i < n; i++) {
    char *end;
    const long id = strtol(words[i], &end, 10);
    if (end == words[i] || *end || id < 0 || id > INT32_MAX) {
      fprintf(stderr, "run: %s is no token number\n", words[i]);
      free(ids);
      return NULL;
    }
    ids[i] = (int32_t)id;
  }
  return ids;
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: run PACKAGE TOKEN...\n"), 2;
  const int32_t n = argc - 2;
  int32_t *ids = parse(argv + 2, n);
  if (!ids) return 2;
  stic_session *session;
  const int status = stic_session_open(argv[1], NULL, &session) ? failed(NULL) : run(session, ids, n);
  free(ids);
  return status;
}
