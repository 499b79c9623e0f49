/* error.c: formatting of errors of the world; see error.h. */
#include "base/error.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void put(Error *err, const char *format, va_list args) {
    vsnprintf(err->text, sizeof err->text, format, args);
    for (char *c = err->text; *c;
         c++) /* names may hold anything, but this is one line and moves no terminal's cursor */
        if ((unsigned char)*c < ' ' || *c == 127) *c = ' ';
}

bool error_set(Error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    put(err, format, args);
    va_end(args);
    return false;
}

bool error_set_errno(Error *err, const char *format, ...) {
    int saved = errno;
    va_list args;
    va_start(args, format);
    put(err, format, args);
    va_end(args);
    size_t used = strlen(err->text);
    snprintf(err->text + used, sizeof err->text - used, ": %s", strerror(saved));
    return false;
}
