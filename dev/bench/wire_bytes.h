/* wire_bytes.h: how many bytes have left over every wire of this host, as Linux counts them, for bench_comm.c. A wire is
 * the interface that has the address of one of the host's links in the topology file; without addresses, or elsewhere
 * than on Linux, nothing is known. */
#ifndef WIRE_BYTES_H
#define WIRE_BYTES_H
#include "comm/topology.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <stdio.h>
#include <string.h>

enum { WIRES_MAX = 8 };

typedef struct {
    int count;
    char name[WIRES_MAX][32];
} Wires;

typedef struct {
    double sent[WIRES_MAX];
} WireBytes;

static inline void wires_add(Wires *w, const char *address) {
    struct ifaddrs *all;
    unsigned char wanted[16];
    int family = strchr(address, ':') ? AF_INET6 : AF_INET;
    if (inet_pton(family, address, wanted) != 1 || getifaddrs(&all) != 0) return;
    for (struct ifaddrs *i = all; i && w->count < WIRES_MAX; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != family) continue;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        bool same;
        if (family == AF_INET) {
            memcpy(&in, i->ifa_addr, sizeof in);
            same = !memcmp(&in.sin_addr, wanted, 4);
        } else {
            memcpy(&in6, i->ifa_addr, sizeof in6);
            same = !memcmp(&in6.sin6_addr, wanted, 16);
        }
        if (!same) continue;
        for (int k = 0; k < w->count; k++) same = same && strcmp(w->name[k], i->ifa_name) != 0;
        if (same) snprintf(w->name[w->count++], sizeof w->name[0], "%.31s", i->ifa_name);
    }
    freeifaddrs(all);
}

/* The wires of a rank of the topology. */
static inline void wires_open(Wires *w, const Topology *topology, int rank) {
    w->count = 0;
    for (int axis = 0; axis < topology->axes; axis++)
        for (int direction = 1; direction >= -1; direction -= 2) {
            const TopologyLink *link = topology_link(topology, rank, axis, direction);
            if (link && link->address[0]) wires_add(w, link->address);
        }
}

static inline void wire_bytes_read(const Wires *w, WireBytes *out) {
    char line[512], name[32];
    double sent;
    memset(out, 0, sizeof *out);
    FILE *f = w->count ? fopen("/proc/self/net/dev", "r") : NULL;
    if (!f) return;
    while (fgets(line, sizeof line, f)) /* received: 8 numbers; then the bytes sent */
        if (sscanf(line, " %31[^:]: %*s %*s %*s %*s %*s %*s %*s %*s %lf", name, &sent) == 2)
            for (int i = 0; i < w->count; i++)
                if (!strcmp(name, w->name[i])) out->sent[i] = sent;
    fclose(f);
}

/* Of the wire that carried most. */
static inline double wire_bytes_most(const Wires *w, const WireBytes *before, const WireBytes *after) {
    double most = 0;
    for (int i = 0; i < w->count; i++)
        if (after->sent[i] - before->sent[i] > most) most = after->sent[i] - before->sent[i];
    return most;
}
#endif
