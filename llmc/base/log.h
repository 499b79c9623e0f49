/* log.h: lines for people, on stderr; results go to stdout. Rank 0 speaks; other ranks only warn. */
#ifndef LLMC_LOG_H
#define LLMC_LOG_H
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Ranks above 0 print warnings only, prefixed with their number. quiet: no info lines on any rank. */
void log_open(int rank, bool quiet);

void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Seconds of the monotonic clock. */
double log_seconds(void);

#ifdef __cplusplus
}
#endif
#endif
