/* error.h: what went wrong in the world (disk, network, user, file), as a value.
 *
 * A function that can fail returns bool (true: done) and takes `Error *err` last. On failure `err->text` is
 * one line: what, where, why, and in parentheses what to do about it. Only `main` prints it and exits. */
#ifndef LLMC_ERROR_H
#define LLMC_ERROR_H
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char text[768];
} Error;

/* Formats into err->text (cut to fit, newlines made spaces) and returns false, so that a failing function can
 * say `return error_set(err, "%s: truncated at byte %zu (make it again with 'train_gpt2 tokenize')", path,
 * at);`. */
bool error_set(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As error_set, with ": " and the text of errno at the end of the formatted line. */
bool error_set_errno(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Exit codes of every program of the project. */
enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_STOPPED_AND_SAVED = 75 };
#ifdef __cplusplus
}
#endif
#endif
