/* usage: verdict, with the path of a package on each line of standard input.
 *
 * Answers each with one line: "ok", or what the engine refuses and the sentence. The reader is asked for everything
 * that a package holds, whether a run would need it or not: the index, every file's size and checksum, the trunk, every
 * record and every embedding row. What it accepts is then opened and run under every plan, which has to end without a
 * fault; a machine without the package's processor, kernels or memory says so behind "ok". */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crc.h"
#include "files.h"
#include "stic.h"
#include "tied.h"

static uint8_t *contents(const char *directory, const stic_file *file, stic_error *error) {
  uint8_t *bytes = aligned_alloc(STIC_ALIGN, stic_pad(file->bytes + 1, STIC_ALIGN));
  stic_source source;
  if (!bytes) exit(3);
  if (stic_files_open(directory, file, true, &source, error)) exit(3);
  if (stic_files_read(&source, file->name, 0, (uint32_t)file->bytes, bytes, error)) exit(3);
  stic_files_close(&source);
  return bytes;
}

static stic_status check_records(const stic_package *p, const uint8_t *shards, stic_error *error) {
  stic_status status = STIC_OK;
  for (uint32_t block = 0; block < p->header->blocks; block++)
    for (uint32_t i = 0; i < STIC_LEVELS * stic_slices(p, block) && !status; i++) {
      const stic_record *r = &p->records[stic_record_index(p, block, 0, i)];
      if (!r->bytes) continue;
      STIC_REQUIRE(record_checksum, stic_crc32(0, shards + r->offset, r->bytes) == r->crc,
                   "record %u of block %u has a wrong checksum", i, block);
      status = stic_record_check(p, block, i / stic_slices(p, block), shards + r->offset, r->bytes, error);
    }
  return status;
}

static stic_status check_rows(const stic_package *p, const uint8_t *rows, stic_error *error) {
  stic_status status = STIC_OK;
  for (uint32_t id = 0; id < p->model->vocabulary && !status; id++)
    status = stic_row_check(p, rows + (size_t)id * p->header->row_stride, (int32_t)id, error);
  return status;
}

/* Take every row of a vocabulary that is the embedding, under every plan: no part may lie outside of its record. */
static void take_rows(stic_package *p, const uint8_t *shards) {
  uint8_t *found = malloc(4 * (size_t)p->padded_hidden + 512);
  if (!found) exit(3);
  for (uint32_t number = 0; number < p->header->plans; number++) {
    stic_package_select(p, number);
    for (uint32_t id = 0; id < p->model->vocabulary; id++) {
      const stic_tied_row row = stic_tied_find(p, (int32_t)id);
      for (uint32_t i = 0; i < row.parts; i++) {
        const stic_record *r = &p->records[row.part[i].record];
        if (row.part[i].at + row.part[i].bytes > r->bytes) abort();
        stic_tied_take(p, &row, i, shards + r->offset + row.part[i].at, found);
      }
    }
  }
  free(found);
}

static stic_status read_all(const char *directory, stic_package *p, stic_error *error) {
  stic_status status = stic_files_check_sizes(directory, p, error);
  for (uint32_t i = 0; i < p->header->files && !status; i++)
    if (&p->files[i] != p->shards && &p->files[i] != p->embeddings)
      status = stic_files_verify(directory, &p->files[i], NULL, error);
  if (status) return status;
  uint8_t *const trunk = contents(directory, p->trunk, error), *const shards = contents(directory, p->shards, error),
                 *const rows = contents(directory, p->embeddings, error);
  status = stic_trunk_check(p, trunk, error);
  if (!status) status = check_records(p, shards, error);
  if (!status && stic_tied(p)) take_rows(p, shards);
  if (!status && !stic_tied(p)) status = check_rows(p, rows, error);
  free(trunk);
  free(shards);
  free(rows);
  return status;
}

static stic_status read_package(const char *directory, stic_error *error) {
  uint8_t *index;
  size_t size;
  stic_package package;
  stic_status status = stic_files_read_index(directory, &index, &size, error);
  if (status) return status;
  status = stic_package_parse(index, size, &package, error);
  if (!status) status = read_all(directory, &package, error);
  free(index);
  return status;
}

/* Under every plan that a budget leads to. Returns a sentence where the machine or the budget is in the way. */
static const char *run(const char *directory) {
  static char sentence[600];
  stic_session *session;
  if (stic_session_open(directory, NULL, &session)) return stic_error_message(NULL);
  stic_info info = {.struct_bytes = sizeof info};
  if (stic_session_info(session, &info)) exit(4);
  const int32_t n = info.max_length < 19 ? (int32_t)info.max_length : 19;
  const size_t size = stic_session_output_size(session, n);
  float *output = malloc((size ? size : 1) * sizeof *output);
  int32_t *ids = malloc((size_t)n * sizeof *ids);
  if (!output || !ids) exit(3);
  for (int32_t t = 0; t < n; t++) ids[t] = (int32_t)((uint32_t)t * 7 % info.vocabulary);
  sentence[0] = 0;
  for (uint32_t number = 0; number < info.plans && !sentence[0]; number++) {
    stic_plan plan = {.struct_bytes = sizeof plan};
    if (stic_session_plan(session, number, &plan)) exit(4);
    stic_session_set_budget(session, plan.deadline_us, plan.claimed_bytes, NULL);
    if (stic_session_run(session, ids, NULL, n, output, size))
      snprintf(sentence, sizeof sentence, "%s", stic_error_message(session));
  }
  free(output);
  free(ids);
  stic_session_close(session);
  return sentence;
}

int main(void) {
  char path[4096];
  while (fgets(path, sizeof path, stdin)) {
    stic_error error = {.check = NULL};
    path[strcspn(path, "\n")] = 0;
    if (read_package(path, &error))
      printf("refused %s: %s\n", error.check ? error.check : "-", error.text);
    else
      printf("ok %s\n", run(path));
    fflush(stdout);
  }
  return 0;
}
