/* probe.c: see probe.h. A thread per connection: the one who made it sends, the one who accepted it measures. What was
 * measured is put into one table by an all-reduce of maxima, since each entry is known to one rank only. */
#define _GNU_SOURCE
#include "comm/probe.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/topology_internal.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { LINKS_MAX = 2 * TOPOLOGY_AXES_MAX, PINGS = 30, CHUNK_BYTES = 1 << 18 };
static const double WAIT_SECONDS = 5; /* for a connection, a ping, or the next data */

/* What every rank tells the others. */
typedef struct {
    char host[64], address[48];
    uint16_t port[2]; /* of IPv4 and IPv6 */
} Place;

typedef struct {
    int rank, axis, direction;
} Hello;

/* One connection: over the link that leaves `from` in that direction. */
typedef struct {
    Hello from;
    int fd;
    bool outgoing, started;
    double seconds; /* to send */
    double rate;    /* measured by who receives */
    double latency; /* measured by who sends */
    pthread_t thread;
} Wire;

typedef struct {
    Comm *comm;
    Topology *topology;
    Place *places; /* (ranks) */
    int listening[2];
    Wire wires[2 * LINKS_MAX];
    int count;
} Probe;

/* --- sockets --- */

static bool set_deadlines(int fd) {
    struct timeval wait = {(time_t)WAIT_SECONDS, 0};
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5); /* if it is there */
    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) == 0 &&
           setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) == 0 &&
           setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0;
}

/* address as a socket address; returns its length, 0 if it is none. */
static socklen_t address_of(const char *address, uint16_t port, struct sockaddr_storage *out) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, address, &in.sin_addr) == 1) {
        memcpy(out, &in, sizeof in);
        return sizeof in;
    }
    if (inet_pton(AF_INET6, address, &in6.sin6_addr) != 1) return 0;
    memcpy(out, &in6, sizeof in6);
    return sizeof in6;
}

static int listen_at(const char *any, uint16_t *port) {
    struct sockaddr_storage address;
    socklen_t length = address_of(any, 0, &address);
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (fd < 0) return -1;
    if (address.ss_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, LINKS_MAX) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
        close(fd);
        return -1;
    }
    struct sockaddr_in in;
    memcpy(&in, &address, sizeof in); /* the port is at the same place in both */
    *port = ntohs(in.sin_port);
    return fd;
}

static bool receive_all(int fd, void *data, size_t bytes) {
    while (bytes) {
        ssize_t n = recv(fd, data, bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data = (char *)data + n;
        bytes -= (size_t)n;
    }
    return true;
}

/* The first address that is not of the loopback; "" if there is none. */
static void own_address(char out[48]) {
    struct ifaddrs *all;
    out[0] = 0;
    if (getifaddrs(&all) != 0) return;
    for (struct ifaddrs *i = all; i && !out[0]; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
        if (!(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK)) continue;
        struct sockaddr_in in;
        memcpy(&in, i->ifa_addr, sizeof in);
        inet_ntop(AF_INET, &in.sin_addr, out, 48);
    }
    freeifaddrs(all);
}

/* --- meeting --- */

static bool gather_places(Probe *p, Error *err) {
    int size = comm_size(p->comm), rank = comm_rank(p->comm);
    p->places = calloc((size_t)size, sizeof *p->places);
    size_t *offsets = calloc((size_t)size + 1, sizeof *offsets);
    if (!p->places || !offsets) {
        free(offsets);
        return error_set(err, "no memory for %d ranks", size);
    }
    for (int i = 0; i <= size; i++) offsets[i] = (size_t)i * sizeof *p->places;
    Place *mine = &p->places[rank];
    gethostname(mine->host, sizeof mine->host - 1);
    own_address(mine->address);
    p->listening[0] = listen_at("0.0.0.0", &mine->port[0]);
    p->listening[1] = listen_at("::", &mine->port[1]);
    bool ok = comm_wait(p->comm, comm_all_gather(p->comm, p->places, offsets, COMM_UINT8), err);
    free(offsets);
    return ok && (p->listening[0] >= 0 || error_set_errno(err, "probe: cannot listen"));
}

/* The address at which the far end of a link is reached, or the near end of it; "" if none is known. */
static const char *address_at(const Probe *p, int rank, int peer, const TopologyLink *link) {
    if (link->address[0]) return link->address;
    return strcmp(p->places[rank].host, p->places[peer].host) ? p->places[rank].address : "127.0.0.1";
}

static bool connect_link(Probe *p, int axis, int direction, Error *err) {
    int rank = comm_rank(p->comm), to = topology_neighbour(p->topology, rank, axis, direction);
    const TopologyLink *link = topology_link(p->topology, rank, axis, direction);
    if (!link || !(link->bytes_per_second > 0)) return true;
    const char *here = address_at(p, rank, to, link);
    const char *there = address_at(p, to, rank, topology_link(p->topology, to, axis, -direction));
    struct sockaddr_storage from, address;
    Hello hello = {rank, axis, direction};
    socklen_t from_length = address_of(here, 0, &from);
    socklen_t length = address_of(there, p->places[to].port[strchr(there, ':') != NULL], &address);
    if (!length) return error_set(err, "probe: no address of %s is known", p->places[to].host);
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || !set_deadlines(fd)) {
        error_set_errno(err, "probe: no socket");
        if (fd >= 0) close(fd);
        return false;
    }
    if (from_length) bind(fd, (struct sockaddr *)&from, from_length); /* else the kernel chooses */
    Wire *w = &p->wires[p->count];
    *w = (Wire){.from = hello, .fd = fd, .outgoing = true};
    if (connect(fd, (struct sockaddr *)&address, length) == 0 &&
        send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello)
        p->count++; /* else nothing is measured: it counts as down */
    else
        close(fd);
    return true;
}

/* Those who connect do so at once: nobody else comes after a while without any. */
static void accept_links(Probe *p) {
    int expected = 0;
    for (int axis = 0; axis < p->topology->axes; axis++)
        for (int direction = 1; direction >= (topology_one_wire(p->topology, axis) ? 1 : -1);
             direction -= 2) {
            const TopologyLink *link = topology_link(p->topology, comm_rank(p->comm), axis, direction);
            if (link && link->bytes_per_second > 0) expected++;
        }
    struct pollfd polled[2] = {{p->listening[0], POLLIN, 0}, {p->listening[1], POLLIN, 0}};
    double deadline = log_seconds() + WAIT_SECONDS + 1;
    while (expected > 0 && log_seconds() < deadline) {
        if (poll(polled, 2, 100) <= 0) continue;
        for (int i = 0; i < 2; i++) {
            if (!(polled[i].revents & POLLIN)) continue;
            Wire *w = &p->wires[p->count];
            int fd = accept(p->listening[i], NULL, NULL);
            *w = (Wire){.fd = fd};
            if (fd < 0) continue;
            expected--;
            if (set_deadlines(fd) && receive_all(fd, &w->from, sizeof w->from) && w->from.rank >= 0 &&
                w->from.rank < p->topology->places && w->from.axis >= 0 && w->from.axis < p->topology->axes)
                p->count++;
            else
                close(fd);
            if (p->count == 2 * LINKS_MAX) return;
        }
    }
}

/* --- measuring --- */

static void send_and_time(Wire *w, void *chunk) {
    char ping = 1;
    double least = WAIT_SECONDS;
    for (int i = 0; i < PINGS; i++) {
        double start = log_seconds();
        if (send(w->fd, &ping, 1, MSG_NOSIGNAL) != 1 || !receive_all(w->fd, &ping, 1)) return;
        double took = log_seconds() - start;
        if (took < least) least = took;
    }
    w->latency = least / 2;
    double end = log_seconds() + w->seconds;
    while (log_seconds() < end)
        if (send(w->fd, chunk, CHUNK_BYTES, MSG_NOSIGNAL) < 0 && errno != EINTR) return;
    shutdown(w->fd, SHUT_WR);
    receive_all(w->fd, &ping, 1); /* until the other end has it all */
}

/* The rate is counted from a quarter of the time on: before, queues fill and windows open. */
static void echo_and_count(Wire *w, void *chunk) {
    char ping;
    for (int i = 0; i < PINGS; i++)
        if (!receive_all(w->fd, &ping, 1) || send(w->fd, &ping, 1, MSG_NOSIGNAL) != 1) return;
    double first = 0, counted_from = 0, last = 0, bytes = 0;
    for (;;) {
        ssize_t n = recv(w->fd, chunk, CHUNK_BYTES, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        last = log_seconds();
        if (first == 0) first = last;
        if (counted_from > 0)
            bytes += (double)n;
        else if (last - first >= w->seconds / 4)
            counted_from = last;
    }
    if (counted_from > 0 && last > counted_from) w->rate = bytes / (last - counted_from);
}

static void *work(void *argument) {
    Wire *w = argument;
    void *chunk = calloc(1, CHUNK_BYTES);
    if (chunk && w->outgoing) send_and_time(w, chunk);
    if (chunk && !w->outgoing) echo_and_count(w, chunk);
    free(chunk);
    shutdown(w->fd, SHUT_RDWR);
    return NULL;
}

/* --- the result --- */

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static size_t entry_of(const Topology *t, Hello link) {
    return topology_link_index(t, t->place_of[link.rank], link.axis, link.direction) * 2;
}

/* Medians of one axis over its links that carry anything; scratch: as many as links. */
static float median_of(const Topology *t, const float *table, int axis, int what, float *scratch) {
    size_t n = 0;
    for (int place = 0; place < t->places; place++)
        for (int direction = 1; direction >= -1; direction -= 2) {
            const float *entry = table + 2 * topology_link_index(t, place, axis, direction);
            if (entry[0] > 0) scratch[n++] = entry[what];
        }
    if (!n) return 0;
    qsort(scratch, n, sizeof *scratch, compare);
    return scratch[n / 2];
}

/* Three digits in this unit: more would be noise. */
static double rounded(float x, double unit) {
    char text[32];
    snprintf(text, sizeof text, "%.3g", (double)x / unit);
    return strtod(text, NULL) * unit;
}

static void fill_link(Probe *p, Hello link, const float *table, const float usual[2], FILE *out) {
    Topology *t = p->topology;
    int to = topology_neighbour(t, link.rank, link.axis, link.direction);
    const TopologyLink *old = to < 0 ? NULL : topology_link(t, link.rank, link.axis, link.direction);
    if (!old || !(old->bytes_per_second > 0)) return;
    const float *entry = table + entry_of(t, link);
    const float *back =
        table + entry_of(t, (Hello){to, link.axis, topology_one_wire(t, link.axis) ? 1 : -link.direction});
    bool up = entry[0] > 0 && back[0] > 0;
    TopologyLink now = *old;
    float rate = entry[0] > 0.95f * usual[0] && entry[0] < 1.05f * usual[0] ? usual[0] : entry[0];
    now.bytes_per_second = up ? rounded(rate, 125e3) : 0;
    now.latency_seconds = rounded(1e6f * usual[1], 1) / 1e6;
    snprintf(now.address, sizeof now.address, "%.47s", address_at(p, link.rank, to, old));
    t->links[entry_of(t, link) / 2] = now;
    if (topology_one_wire(t, link.axis)) t->links[entry_of(t, (Hello){link.rank, link.axis, -1}) / 2] = now;
    if (!out || (up && entry[0] >= 0.7f * usual[0])) return;
    fprintf(out, "probe: rank %d (%s) to rank %d (%s), %c%c: ", link.rank, p->places[link.rank].host, to,
            p->places[to].host, link.direction > 0 ? '+' : '-', topology_axis_names[link.axis]);
    if (up)
        fprintf(out, "slow, %.4g MB/s, %.2f of the axis's median\n", 1e-6 * (double)entry[0],
                (double)(entry[0] / usual[0]));
    else
        fprintf(out, "down, nothing came through\n");
}

static bool share_results(Probe *p, FILE *out, Error *err) {
    Topology *t = p->topology;
    size_t links = (size_t)t->places * (size_t)t->axes * 2;
    float *table = calloc(links * 2, sizeof *table), *scratch = calloc(links, sizeof *scratch);
    bool ok = table && scratch;
    if (!ok) error_set(err, "probe: no memory for %zu links", links);
    for (int i = 0; ok && i < p->count; i++) {
        float *entry = table + entry_of(t, p->wires[i].from);
        if (p->wires[i].outgoing)
            entry[1] = (float)p->wires[i].latency;
        else
            entry[0] = (float)p->wires[i].rate;
    }
    ok = ok && comm_wait(p->comm, comm_all_reduce(p->comm, table, links * 2, COMM_FP32, COMM_MAX), err);
    for (int axis = 0; ok && axis < t->axes; axis++) {
        float usual[2] = {median_of(t, table, axis, 0, scratch), median_of(t, table, axis, 1, scratch)};
        for (int rank = 0; rank < t->places; rank++)
            for (int direction = 1; direction >= (topology_one_wire(t, axis) ? 1 : -1); direction -= 2)
                fill_link(p, (Hello){rank, axis, direction}, table, usual, out);
        t->known[axis] = true;
    }
    free(table);
    free(scratch);
    return ok;
}

bool probe_links(Comm *comm, Topology *topology, double seconds, FILE *out, Error *err) {
    Probe p = {.comm = comm, .topology = topology, .listening = {-1, -1}};
    if (topology->axes == 0)
        return error_set(
            err, "probe: a flat topology has no wires to measure (give --topology=torus:... or file:PATH)");
    CHECK_OP(topology->places, ==, comm_size(comm));
    bool ok = gather_places(&p, err);
    for (int axis = 0; ok && axis < topology->axes; axis++) {
        ok = connect_link(&p, axis, 1, err);
        if (ok && !topology_one_wire(topology, axis)) ok = connect_link(&p, axis, -1, err);
    }
    if (ok) accept_links(&p);
    if (!ok) comm_abort(comm, err->text);
    ok = ok && comm_barrier(comm, err);
    for (int i = 0; ok && i < p.count; i++) {
        p.wires[i].seconds = seconds;
        p.wires[i].started = pthread_create(&p.wires[i].thread, NULL, work, &p.wires[i]) == 0;
    }
    for (int i = 0; i < p.count; i++) {
        if (p.wires[i].started) pthread_join(p.wires[i].thread, NULL);
        close(p.wires[i].fd);
    }
    ok = ok && share_results(&p, out, err);
    for (int i = 0; i < 2; i++)
        if (p.listening[i] >= 0) close(p.listening[i]);
    free(p.places);
    return ok;
}
