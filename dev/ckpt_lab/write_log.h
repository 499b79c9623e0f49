/* write_log.h: the log between write_log.c and images.c: entries back to back, each with its bytes behind it. */
#ifndef CKPT_LAB_WRITE_LOG_H
#define CKPT_LAB_WRITE_LOG_H
#include <stdint.h>

enum { LOG_WRITE = 1, LOG_FLUSH, LOG_MARK };

typedef struct {
    uint32_t kind, bytes;
    uint64_t offset;
} LogEntry;
#endif
