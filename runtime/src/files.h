/* The files of a package on disk: opened, their sizes and checksums compared with the index. */
#ifndef STIC_FILES_H
#define STIC_FILES_H

#include "package.h"

typedef struct stic_source {
  int file; /* descriptor; -1: not open */
  bool direct;
} stic_source;

/* Read index.bin of the package in `directory` into memory the caller frees. */
stic_status stic_files_read_index(const char *directory, uint8_t **index, size_t *size, stic_error *error);

/* Compare the size of every listed file. */
stic_status stic_files_check_sizes(const char *directory, const stic_package *package, stic_error *error);

/* Verify the checksum of a file and, if `destination` is not NULL, keep its contents there. */
stic_status stic_files_verify(const char *directory, const stic_file *file, uint8_t *destination, stic_error *error);

/* Open a file for block reads, past the page cache if that gives the same bytes as through it (some file systems
 * accept the flag and then fail or lie) and `buffered` is false. */
stic_status stic_files_open(const char *directory, const stic_file *file, bool buffered, stic_source *source,
                            stic_error *error);

/* Read exactly `bytes` at `offset`; both, and `destination`, must be whole blocks if the source is direct. */
stic_status stic_files_read(const stic_source *source, const char *name, uint64_t offset, uint32_t bytes,
                            uint8_t *destination, stic_error *error);

void stic_files_close(stic_source *source);

/* Write all of it to a descriptor; false, with errno, if that fails. */
bool stic_files_write(int file, const void *from, uint64_t size);

/* "directory/name" in `path`, of PATH_BYTES bytes. */
enum { STIC_PATH_BYTES = 4200 };
stic_status stic_files_path(const char *directory, const char *name, char *path, stic_error *error);

#endif
