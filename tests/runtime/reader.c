/* usage: reader INDEX SHARDS: parse index.bin and check the inside of every record; prints "ok" or the sentence. */
#include <stdio.h>
#include <stdlib.h>

#include "package.h"

static void *contents(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(3);
  *size = (size_t)ftell(file);
  rewind(file);
  void *bytes = aligned_alloc(STIC_ALIGN, stic_pad(*size + 1, STIC_ALIGN));
  if (!bytes || fread(bytes, 1, *size, file) != *size) exit(3);
  fclose(file);
  return bytes;
}

static stic_status check(const stic_package *p, const uint8_t *shards, size_t size, stic_error *error) {
  for (uint32_t block = 0; block < p->header->blocks; block++)
    for (uint32_t i = 0; i < STIC_LEVELS * stic_slices(p, block); i++) {
      const stic_record *r = &p->records[stic_record_index(p, block, 0, i)];
      const uint32_t level = i / stic_slices(p, block);
      if (r->offset + r->bytes > size) exit(3);
      const stic_status status =
          r->bytes ? stic_record_check(p, block, level, shards + r->offset, r->bytes, error) : STIC_OK;
      if (status) return status;
    }
  return STIC_OK;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  size_t index_bytes, shard_bytes;
  void *index = contents(argv[1], &index_bytes), *shards = contents(argv[2], &shard_bytes);
  stic_package package;
  stic_error error;
  stic_status status = stic_package_parse(index, index_bytes, &package, &error);
  if (!status) status = check(&package, shards, shard_bytes, &error);
  printf("%s\n", status ? error.text : "ok");
  free(index);
  free(shards);
  return 0;
}
