/* probe.h: the wires of a torus measured: bandwidth and latency of every link, all at once, as they are used. */
#ifndef LLMC_COMM_PROBE_H
#define LLMC_COMM_PROBE_H
#include "comm/comm.h"
#include "comm/topology.h"
#include <stdio.h>

#define PROBE_SECONDS 2.0 /* how long data flow, if nothing else is asked for */

/* Every rank of comm sends for that long over each of its links that are not down, over TCP connections of its own
 * between the addresses in the topology (where there are none: between the hosts' own addresses), and afterwards every
 * rank has the same figures in the topology: rates as measured by the receiver, latencies as half the shortest round
 * trip, addresses that were used. Rates within 5% of their axis's median are set to it. A link over which nothing came
 * is down then. out: lines about links below 0.7 of their axis's median; NULL: none. All ranks call it. */
bool probe_links(Comm *comm, Topology *topology, double seconds, FILE *out, Error *err);
#endif
