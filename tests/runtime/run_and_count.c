/* usage: run_and_count PACKAGE
 * Prints how often a run, or a change of plan, took memory, over runs that stream, evict and fail. */
#include <stdio.h>
#include <stdlib.h>

#include "stic.h"

extern long allocations(void);

int main(int argc, char **argv) {
  stic_session *session;
  stic_options options = STIC_OPTIONS_DEFAULT;
  if (argc != 2 || stic_session_open(argv[1], &options, &session)) return 1;
  int32_t ids[17];
  for (int i = 0; i < 17; i++) ids[i] = 3 * i;
  const size_t size = stic_session_output_size(session, 17);
  stic_info info = {.struct_bytes = sizeof info};
  if (stic_session_info(session, &info)) return 5;
  float *output = malloc(size * sizeof *output);
  const long before = allocations();
  for (int run = 0; run < 5; run++) {
    if (stic_session_run(session, ids, NULL, 17, output, size)) return 2;
    if (stic_session_evict(session, run < 3 ? 1 : UINT64_MAX)) return 3;
    if (stic_session_run(session, ids, NULL, 100000, output, size) != STIC_INPUT_LENGTH) return 4;
    for (uint32_t number = 0; number < info.plans; number++) {
      stic_plan plan = {.struct_bytes = sizeof plan};
      uint32_t active = number + 1;
      if (stic_session_plan(session, (3 * number + (uint32_t)run) % info.plans, &plan)) return 6;
      if (stic_session_set_budget(session, plan.predicted_us, 0, &active) || active >= info.plans) return 7;
      if (stic_session_set_budget(session, 1, 0, NULL) != STIC_NO_PLAN) return 8;
      if (number % 2 && stic_session_run(session, ids, NULL, 17, output, size)) return 9;
    }
  }
  const long taken = allocations() - before;
  printf("%ld of %ld\n", taken, before);
  free(output);
  return stic_session_close(session);
}
