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
  char sentence[sizeof error->text];
  memcpy(sentence, error->text, sizeof sentence);
  const size_t room = sizeof error->text - strlen(sentence) - 1;
  snprintf(error->text, sizeof error->text, "%.*s: %s", room > 2 ? (int)(room - 2) : 0, what, sentence);
}
