/* message.h: what goes over the control connections (control.h), and how it is waited for. Internal to llmc/comm. */
#ifndef LLMC_COMM_MESSAGE_H
#define LLMC_COMM_MESSAGE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A message is this, then `bytes` bytes. Both ends have the same byte order. */
typedef struct {
    uint32_t magic, type, bytes, number;
} Message;

enum { MESSAGE_MAGIC = 0x746f726f, MESSAGE_BYTES_MAX = 1 << 30 };

typedef enum {
    MESSAGE_HELLO = 1,  /* to rank 0: a Hello */
    MESSAGE_WELCOME,    /* from rank 0: the host names (size) */
    MESSAGE_REJECT,     /* from rank 0: a reason */
    MESSAGE_HEARTBEAT,  /* empty */
    MESSAGE_GATHER,     /* to rank 0: one rank's part of exchange `number` */
    MESSAGE_GATHER_ALL, /* from rank 0: all parts */
    MESSAGE_ABORT,      /* a reason */
    MESSAGE_GOODBYE     /* empty */
} MessageType;

/* Deadlines are as log_seconds counts. All return false if it passes, or if the connection is closed or broken. */

/* Sends a whole message. */
bool message_send(int fd, uint32_t type, uint32_t number, const void *body, size_t bytes, double deadline);
/* Reads exactly so many bytes. */
bool message_read(int fd, void *data, size_t bytes, double deadline);
/* Until one of these events of poll(2) is there. */
bool message_wait_for(int fd, short events, double deadline);
#endif
