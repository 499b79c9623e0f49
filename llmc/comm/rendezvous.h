/* rendezvous.h: how the ranks of a job find rank 0 and connect to it. Internal to llmc/comm: control.c is its user. */
#ifndef LLMC_COMM_RENDEZVOUS_H
#define LLMC_COMM_RENDEZVOUS_H
#include "comm/control.h"

typedef char HostName[CONTROL_HOST_BYTES];

/* What goes over a control connection: this, then `bytes` bytes. Both ends have the same byte order. */
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

/* Rank 0: sockets (size) by rank, its own -1. Others: sockets[0] leads to rank 0. hosts (size). */
bool rendezvous_open(const ControlPlace *place, double timeout_seconds, int *sockets, HostName *hosts,
                     Error *err);

/* Sends a whole message, waiting at most until `deadline` (log_seconds). False: the connection is broken or stuck. */
bool message_send(int fd, uint32_t type, uint32_t number, const void *body, size_t bytes, double deadline);
#endif
