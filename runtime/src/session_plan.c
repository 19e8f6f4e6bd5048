/* The plans of a session's package: what they are, and changing from one to another between two runs. Nothing here
 * allocates. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "session.h"

void stic_session_place_records(stic_session *s) {
  const stic_package *p = &s->package;
  memset(s->record_at, 0, stic_records(p) * sizeof *s->record_at);
  for (uint32_t i = 0; i < p->plan.extents; i++) {
    const stic_extent *e = &p->extents[i];
    for (uint32_t slice = e->first; slice < (uint32_t)e->first + e->count; slice++) {
      const uint32_t r = stic_record_index(p, e->block, e->level, slice);
      s->record_at[r] = e->destination + (p->records[r].offset - e->file_offset);
    }
  }
}

stic_status stic_session_plan(const stic_session *s, uint32_t number, stic_plan *plan) {
  if (!s || !plan || !stic_version_has_size(plan->struct_bytes) || number >= s->package.header->plans)
    return stic_fail(stic_error_without_session(), STIC_INVALID_ARGUMENT,
                     "stic_session_plan was given a null pointer, a wrong struct_bytes, or the number of no plan");
  const stic_plan_entry e = s->package.plans[number];
  const stic_plan found = {.struct_bytes = sizeof found,
                           .deadline_us = e.deadline_us,
                           .predicted_us = e.predicted_us,
                           .claimed_bytes = e.claimed_bytes,
                           .preload_bytes = e.preload.bytes,
                           .quality = e.quality};
  stic_version_write(plan, &found, sizeof found);
  return STIC_OK;
}

/* Memory is taken before anything changes, and given back when all that is kept has been moved out of it. Pages that are
 * gained come with what is read into them: to touch them here would take longer than all else that a change does. */
static stic_status change_to(stic_session *s, uint32_t number) {
  stic_package *p = &s->package;
  const uint64_t before = p->plan.arena_bytes, after = p->plans[number].arena_bytes;
  const stic_extent *extents = p->extents;
  const uint32_t resident = p->plan.resident_extents;
  if (after > before && !stic_allow(s->arena + before, (size_t)(after - before)))
    return stic_fail(&s->error, STIC_OUT_OF_MEMORY, "no memory for an arena of %llu bytes instead of %llu",
                     (unsigned long long)after, (unsigned long long)before);
  stic_package_select(p, number);
  stic_io_replan(&s->io, extents, resident);
  stic_session_place_records(s);
  if (after < before) stic_discard(s->arena + after, (size_t)(before - after));
  return STIC_OK;
}

stic_status stic_session_set_budget(stic_session *s, uint32_t deadline_us, uint64_t memory_bytes, uint32_t *number) {
  uint32_t chosen = 0;
  stic_status status = stic_session_enter(s, "stic_session_set_budget");
  if (status) return status;
  status = stic_package_choose(&s->package, deadline_us, memory_bytes, &chosen, &s->error);
  if (!status && chosen != s->package.number) status = change_to(s, chosen);
  if (!status && number) *number = chosen;
  stic_session_leave(s);
  return status;
}
