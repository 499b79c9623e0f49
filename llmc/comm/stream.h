/* stream.h: data that flows through this rank: in from one peer, out to another, block by block, summed or copied on
 * the way; and where in the caller's buffer it lies. The torus backend builds every algorithm of these.
 *
 * What is received is handed on as soon as it is there, without waiting for the end of a block. Streams that share a
 * connection take turns on it, each way by itself. Nothing here waits: stream_move does what the sockets allow,
 * stream_polls says what to wait for; a socket that had nothing to give or no room is left alone until poll wakes it. */
#ifndef LLMC_STREAM_H
#define LLMC_STREAM_H
#include "comm/backend.h"
#include <poll.h>

enum { STREAM_STAGING_BYTES = 256 << 10, STREAM_POLLS = 2 };

/* A connection, and the headers that cross it before the data of an operation. */
typedef struct {
    int peer, fd;
    size_t header_out, header_in; /* bytes done */
    CommHeader theirs;
    int turn_out, turn_in; /* of which stream it is the turn to send and to receive */
    bool full, empty;      /* it took, or gave, less than it could; poll has not said more since */
} Port;

/* The data of a colour: `positions` pieces, in the order of its plan. Either one range of the buffer, in pieces of equal
 * size (start is NULL), or a piece for each position. */
typedef struct {
    char *data;
    size_t element; /* bytes */
    int positions;
    size_t base, count;       /* elements: the range */
    const size_t *start, *at; /* (positions + 1) elements before a piece; (positions) where it lies */
} Layout;

typedef struct Stream Stream;
struct Stream {
    Port *in, *out; /* NULL: none */
    const Layout *layout;
    int low, width, length; /* block b is positions low + b * width .. + width, modulo length blocks */
    int step;               /* from one block to the next: +1 or -1 */
    int first_recv, recv_blocks, recv_done;
    int first_send, send_blocks, send_done;
    size_t recv_bytes, send_bytes; /* done of the current block */
    int turn;                      /* on both ports, from 0 on; -1: it is alone there */
    bool sent, received;           /* all blocks, and the turn is the next one's */
    const Stream *gate; /* block k may be sent as far as gate has received its block k - lag; NULL: at once */
    int lag;
    const Stream
        *last_after; /* the last block is received after that stream is complete: a fixed order of sums */
    bool reduce;
    CommType type;
    CommOp op;
    unsigned char carry[4]; /* of an element that came in part */
    size_t carried;
};

typedef enum { STREAM_FINE, STREAM_BROKEN, STREAM_MISMATCH } StreamStatus;

bool stream_complete(const Stream *s);
/* *moved is set if anything went; *port is the one that broke or whose header differs. staging: STREAM_STAGING_BYTES. */
StreamStatus stream_move(Stream *s, const CommHeader *header, char *staging, bool *moved, Port **port);
/* What to poll for, and for which port; port_polled takes the answer. */
int stream_polls(const Stream *s, struct pollfd *polls, Port **ports);
void port_polled(Port *port, const struct pollfd *poll);

bool port_complete(const Port *port);
StreamStatus port_move(Port *port, const CommHeader *header, bool *moved);
#endif
