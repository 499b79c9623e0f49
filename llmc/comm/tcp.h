/* tcp.h: the TCP connections of one group of ranks: found, checked, opened and closed; the data is the engine's.
 *
 * A connection belongs to a peer and a channel. One to a neighbour by wire runs between the addresses of that wire's
 * two ends where the topology knows them; else to the first of the peer's addresses that answers as that rank,
 * addresses of a common subnet first. The rank with the higher number connects, the other accepts. All sockets are
 * non-blocking and without Nagle's delay; their congestion control is reno (TOROID_TCP_CONGESTION sets another): BBR
 * takes rings on shaped links for a long queue.
 *
 * What always holds: both ends have the same group, epoch and plan, or there is no connection. */
#ifndef LLMC_TCP_H
#define LLMC_TCP_H
#include "comm/backend.h"
#include "comm/plan.h"

enum {
    TCP_CHANNEL_CONTROL = 0, /* to every neighbour: headers, and small messages */
    TCP_CHANNEL_COLOUR = 1,  /* the first of one for each colour */
    TCP_CHANNEL_DIRECT = 64, /* send and recv, between any two ranks */
    TCP_CHANNEL_ALARM = 65,  /* to rank 0, for agreement about dead wires; survives tcp_forget */
    TCP_CONNECTIONS_MAX = 1024
};

typedef struct {
    int peer, channel;
} TcpWant;

typedef struct Tcp Tcp;

/* The first group of a process is opened by all ranks of the world together, and gathers their addresses. */
bool tcp_open(Tcp **tcp, CommGroup *group, Error *err);
void tcp_close(Tcp *tcp);

/* Opens what is wanted and not open yet; the peers want the same. On failure by the network, *unreached is the peer (or
 * -1), and no other rank has been told. */
bool tcp_connect(Tcp *tcp, const Plan *plan, const Topology *topology, const TcpWant *want, int wants,
                 double timeout_seconds, int *unreached, Error *err);
int tcp_fd(const Tcp *tcp, int peer, int channel); /* -1: not open */

/* Closes all but the alarm channel; connections from here on belong to the next epoch. */
void tcp_forget(Tcp *tcp);
/* Closes the connections to one peer, both ways, as a pulled cable would in the end (for tests). */
void tcp_break(Tcp *tcp, int peer);

/* Has this connection sent what nobody acknowledged for so long, over several attempts? A peer that is merely late or
 * stopped still acknowledges. */
bool tcp_unheard(int fd, double seconds);
#endif
