/* A status and its sentence, carried from where something failed to where the caller reads it. */
#ifndef STIC_ERROR_H
#define STIC_ERROR_H

#include "../include/stic.h"

typedef struct stic_error {
  stic_status status;
  char text[512];
  const char *check; /* of a package that was refused: the name of the check in package.h's STIC_REQUIRE */
} stic_error;

/* Set the error (a printf format without floating point: nothing here may allocate) and return its status. */
stic_status stic_fail(stic_error *error, stic_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "what: " in front of the sentence. */
void stic_error_prefix(stic_error *error, const char *what);

#endif
