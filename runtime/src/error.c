#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

stic_status stic_fail(stic_error *error, stic_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  error->status = status;
  return status;
}

void stic_error_prefix(stic_error *error, const char *what) {
  const size_t length = strlen(error->text), room = sizeof error->text - length;
  size_t added = strlen(what);
  if (room <= 3) return;
  if (added > room - 3) added = room - 3;
  memmove(error->text + added + 2, error->text, length + 1);
  memcpy(error->text, what, added);
  memcpy(error->text + added, ": ", 2);
}
