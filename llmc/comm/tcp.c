/* tcp.c: see tcp.h. IPv4 addresses are found by themselves; link addresses in a topology may be IPv6, too. */
#define _GNU_SOURCE
#include "comm/tcp.h"
#include "base/check.h"
#include "base/log.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ADDRESSES_MAX = 12, PENDING_MAX = 256, ATTEMPT_MILLISECONDS = 1500, PAUSE_MILLISECONDS = 20 };

#define HELLO_MAGIC 0x746f726f69643031ull /* "toroid01" */

/* What every rank tells all others about where it listens. */
typedef struct {
    uint64_t host, nonce; /* host: the same for ranks that share a loopback interface */
    uint32_t port, addresses;
    uint32_t address[ADDRESSES_MAX], mask[ADDRESSES_MAX]; /* network order */
} Place;

/* The first bytes of a connection; the answer is the same with from and to exchanged. */
typedef struct {
    uint64_t magic, nonce, plan;
    uint32_t group, epoch, from, to, channel, layer;
} Hello;

typedef struct {
    int peer, channel, fd;
} Connection;

typedef struct {
    int fd;
    size_t got;
    Hello hello;
} Pending;

/* Of the process, while it has any group: the first group, of all ranks, gathers the places. A connection that is meant
 * for another group than the one that accepts it is closed, and tried again. */
static struct {
    int groups, listener;
    Place *place; /* (ranks of the world) */
    int pendings; /* accepted, and not known yet for whom */
    Pending pending[PENDING_MAX];
} station;

struct Tcp {
    CommGroup *group;
    uint32_t epoch;
    uint64_t nonce, plan;
    Place *place; /* (size) by rank of the group */
    int connections;
    Connection connection[TCP_CONNECTIONS_MAX];
};

/* One connection that this rank opens. */
typedef enum { ATTEMPT_NEXT, ATTEMPT_CONNECTING, ATTEMPT_ASKED, ATTEMPT_DONE } AttemptState;
typedef struct {
    TcpWant want;
    AttemptState state;
    int fd, candidate;
    double since;
    size_t got;
    Hello answer;
} Attempt;

static void set_options(int fd) {
    int one = 1;
    const char *wanted = getenv("TOROID_TCP_CONGESTION");
    const char *choices[] = {wanted ? wanted : "reno", "reno", "cubic"};
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (!setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, choices[i], (socklen_t)strlen(choices[i]))) break;
}

/* --- opening --- */

static uint64_t host_identity(void) {
    struct stat ns;
    uint64_t hash = 0xcbf29ce484222325ull;
    char boot[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f) {
        if (!fgets(boot, sizeof boot, f)) boot[0] = 0;
        fclose(f);
    }
    for (const char *p = boot; *p; p++) hash = (hash ^ (unsigned char)*p) * 0x100000001b3ull;
    return stat("/proc/self/ns/net", &ns) ? hash : hash ^ (uint64_t)ns.st_ino * 0x9e3779b97f4a7c15ull;
}

static void list_addresses(Place *place) {
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list)) return;
    for (struct ifaddrs *i = list; i && place->addresses < ADDRESSES_MAX; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !i->ifa_netmask ||
            (i->ifa_flags & (IFF_UP | IFF_LOOPBACK)) != IFF_UP)
            continue;
        struct sockaddr_in address, mask;
        memcpy(&address, i->ifa_addr, sizeof address);
        memcpy(&mask, i->ifa_netmask, sizeof mask);
        place->address[place->addresses] = address.sin_addr.s_addr;
        place->mask[place->addresses++] = mask.sin_addr.s_addr;
    }
    freeifaddrs(list);
}

/* Dual-stack where the kernel has IPv6, else IPv4 alone. */
static int listen_anywhere(uint32_t *port) {
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    struct sockaddr_in four = {.sin_family = AF_INET};
    int off = 0, fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) ||
                    bind(fd, (struct sockaddr *)&six, sizeof six))) {
        close(fd);
        fd = -1;
    }
    if (fd < 0) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd >= 0 && bind(fd, (struct sockaddr *)&four, sizeof four)) {
            close(fd);
            return -1;
        }
    }
    struct sockaddr_storage at;
    socklen_t length = sizeof at;
    if (fd < 0 || listen(fd, 512) || getsockname(fd, (struct sockaddr *)&at, &length)) {
        if (fd >= 0) close(fd);
        return -1;
    }
    *port = at.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&at)->sin6_port)
                                     : ntohs(((struct sockaddr_in *)&at)->sin_port);
    return fd;
}

static void station_close(void) {
    if (--station.groups > 0) return;
    for (int i = 0; i < station.pendings; i++) close(station.pending[i].fd);
    station.pendings = 0;
    close(station.listener);
    free(station.place);
}

static bool station_open(const CommGroup *group, Error *err) {
    Place mine = {0};
    Error ignored;
    if (station.groups++ > 0) return true;
    station.place = calloc((size_t)control_size(group->control), sizeof *station.place);
    station.listener = listen_anywhere(&mine.port);
    bool done = false;
    if (!station.place)
        error_set(err, "connections of rank %d: no memory", group->rank);
    else if (station.listener < 0)
        error_set_errno(err, "rank %d cannot listen for its neighbours", group->rank);
    else
        done = true;
    mine.host = host_identity();
    if (getrandom(&mine.nonce, sizeof mine.nonce, 0) != sizeof mine.nonce)
        mine.nonce = 0x9e3779b97f4a7c15ull * (unsigned)getpid();
    list_addresses(&mine);
    /* also after a failure, since the others do */
    if (station.place &&
        !control_all_gather(group->control, &mine, sizeof mine, station.place, done ? err : &ignored))
        done = false;
    if (!done) station_close();
    return done;
}

bool tcp_open(Tcp **out, CommGroup *group, Error *err) {
    *out = NULL;
    if (!station_open(group, err)) return false;
    Tcp *tcp = calloc(1, sizeof *tcp);
    if (!tcp || !(tcp->place = calloc((size_t)group->size, sizeof *tcp->place))) {
        free(tcp);
        station_close();
        return error_set(err, "connections of %d ranks: no memory", group->size);
    }
    tcp->group = group;
    for (int r = 0; r < group->size; r++) tcp->place[r] = station.place[group->world[r]];
    tcp->nonce = station.place[0].nonce;
    *out = tcp;
    return true;
}

static void tcp_drop_pending(int i) {
    station.pending[i] = station.pending[--station.pendings];
}

void tcp_forget(Tcp *tcp) {
    int kept = 0;
    for (int i = 0; i < tcp->connections; i++)
        if (tcp->connection[i].channel == TCP_CHANNEL_ALARM)
            tcp->connection[kept++] = tcp->connection[i];
        else
            close(tcp->connection[i].fd);
    tcp->connections = kept;
    tcp->epoch++;
}

void tcp_close(Tcp *tcp) {
    if (!tcp) return;
    for (int i = 0; i < tcp->connections; i++) close(tcp->connection[i].fd);
    free(tcp->place);
    free(tcp);
    station_close();
}

int tcp_fd(const Tcp *tcp, int peer, int channel) {
    for (int i = 0; i < tcp->connections; i++)
        if (tcp->connection[i].peer == peer && tcp->connection[i].channel == channel)
            return tcp->connection[i].fd;
    return -1;
}

void tcp_break(Tcp *tcp, int peer) {
    for (int i = 0; i < tcp->connections; i++)
        if (tcp->connection[i].peer == peer && tcp->connection[i].channel != TCP_CHANNEL_ALARM)
            shutdown(tcp->connection[i].fd, SHUT_RDWR);
}

static bool tcp_add(Tcp *tcp, int peer, int channel, int fd) {
    if (tcp->connections == TCP_CONNECTIONS_MAX) return false;
    set_options(fd);
    tcp->connection[tcp->connections++] = (Connection){peer, channel, fd};
    return true;
}

/* --- the accepting side --- */

static Hello tcp_hello(const Tcp *tcp, int peer, int channel) {
    return (Hello){.magic = HELLO_MAGIC,
                   .nonce = tcp->nonce,
                   .plan = tcp->plan,
                   .group = tcp->group->id,
                   .epoch = channel == TCP_CHANNEL_ALARM ? 0 : tcp->epoch,
                   .from = (uint32_t)tcp->group->rank,
                   .to = (uint32_t)peer,
                   .channel = (uint32_t)channel,
                   .layer = tcp->group->layer};
}

/* 1: ours; 0: not (yet) ours, and closed; -1: another plan. */
static int tcp_judge(Tcp *tcp, const Hello *theirs, int fd) {
    if (theirs->magic != HELLO_MAGIC || theirs->nonce != tcp->nonce ||
        theirs->from >= (uint32_t)tcp->group->size || theirs->channel > TCP_CHANNEL_ALARM)
        return 0;
    Hello mine = tcp_hello(tcp, (int)theirs->from, (int)theirs->channel);
    if (theirs->group != mine.group || theirs->layer != mine.layer || theirs->epoch != mine.epoch ||
        theirs->to != mine.from || tcp_fd(tcp, (int)theirs->from, (int)theirs->channel) >= 0)
        return 0;
    if (theirs->plan != mine.plan) return -1;
    return send(fd, &mine, sizeof mine, MSG_NOSIGNAL) == (ssize_t)sizeof mine &&
           tcp_add(tcp, (int)theirs->from, (int)theirs->channel, fd);
}

static bool tcp_accept(Tcp *tcp, Error *err) {
    while (station.pendings < PENDING_MAX) {
        int fd = accept4(station.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) break;
        station.pending[station.pendings++] = (Pending){.fd = fd};
    }
    for (int i = station.pendings - 1; i >= 0; i--) {
        Pending *p = &station.pending[i];
        ssize_t k = recv(p->fd, (char *)&p->hello + p->got, sizeof p->hello - p->got, 0);
        if (k < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        p->got += k > 0 ? (size_t)k : 0;
        if (k > 0 && p->got < sizeof p->hello) continue;
        int judged = k <= 0 ? 0 : tcp_judge(tcp, &p->hello, p->fd);
        uint32_t from = p->hello.from;
        if (judged <= 0) close(p->fd);
        tcp_drop_pending(i);
        if (judged < 0)
            return error_set(
                err, "rank %d and rank %u have different plans (is the topology file the same on all hosts?)",
                tcp->group->rank, from);
    }
    return true;
}

/* --- the connecting side --- */

static bool numeric_address(const char *text, uint32_t port, struct sockaddr_storage *out,
                            socklen_t *length) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST},
                    *list;
    char service[16];
    snprintf(service, sizeof service, "%u", port);
    if (getaddrinfo(text, port ? service : NULL, &hints, &list)) return false;
    memcpy(out, list->ai_addr, list->ai_addrlen);
    *length = list->ai_addrlen;
    freeaddrinfo(list);
    return true;
}

/* How good an address is: 0 in no common subnet; else the narrower (for wires) or wider (for what must survive them) that
 * subnet, the better. */
static int address_merit(const Place *me, uint32_t address, bool wide) {
    int merit = 0;
    for (uint32_t m = 0; m < me->addresses; m++)
        if (me->mask[m] != 0xffffffffu && (me->address[m] & me->mask[m]) == (address & me->mask[m])) {
            int bits = __builtin_popcount(me->mask[m]), value = wide ? 33 - bits : 1 + bits;
            merit = value > merit ? value : merit;
        }
    return merit;
}

/* Address number i of a peer, the best first; false: no more. */
static bool peer_address(const Tcp *tcp, int peer, int channel, int i, struct sockaddr_storage *out,
                         socklen_t *length) {
    const Place *me = &tcp->place[tcp->group->rank], *they = &tcp->place[peer];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)they->port)};
    bool wide = channel == TCP_CHANNEL_ALARM || channel == TCP_CHANNEL_DIRECT, local = me->host == they->host;
    if (local ? i > 0 : i >= (int)they->addresses) return false;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (uint32_t a = 0; a < they->addresses && !local; a++) {
        int before = 0, merit = address_merit(me, they->address[a], wide);
        for (uint32_t b = 0; b < they->addresses; b++) {
            int other = address_merit(me, they->address[b], wide);
            before += other > merit || (other == merit && b < a);
        }
        if (before == i) to.sin_addr.s_addr = they->address[a];
    }
    memcpy(out, &to, sizeof to);
    *length = sizeof to;
    return true;
}

static void attempt_begin(Tcp *tcp, Attempt *a, const Plan *plan, const Topology *topology) {
    struct sockaddr_storage to, own;
    socklen_t to_length, own_length;
    int axis, direction;
    const TopologyLink *here = NULL, *there = NULL;
    if (a->want.channel != TCP_CHANNEL_ALARM && topology->axes &&
        plan_wire(plan, tcp->group->rank, a->want.peer, &axis, &direction)) {
        here = topology_link(topology, tcp->group->rank, axis, direction);
        there = topology_link(topology, a->want.peer, axis, -direction);
    }
    bool wired = there && there->address[0], direct = a->want.channel == TCP_CHANNEL_DIRECT;
    bool by_link = wired && (!direct || a->candidate == 0); /* from rank to rank another way will do, too */
    int number = a->candidate - (wired && direct);
    a->since = log_seconds();
    if (by_link ? !numeric_address(there->address, tcp->place[a->want.peer].port, &to, &to_length)
                : !peer_address(tcp, a->want.peer, a->want.channel, number, &to, &to_length)) {
        a->candidate = 0;
        return;
    }
    a->candidate++;
    a->fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (a->fd < 0) return;
    set_options(a->fd);
    if (by_link && here->address[0] && numeric_address(here->address, 0, &own, &own_length))
        (void)bind(a->fd, (struct sockaddr *)&own, own_length);
    if (connect(a->fd, (struct sockaddr *)&to, to_length) && errno != EINPROGRESS) {
        close(a->fd);
        return;
    }
    a->state = ATTEMPT_CONNECTING;
}

/* Moves an attempt on as far as it goes without waiting. */
static bool attempt_move(Tcp *tcp, Attempt *a, Error *err) {
    bool failed = log_seconds() - a->since > ATTEMPT_MILLISECONDS * 1e-3 && a->state == ATTEMPT_CONNECTING;
    if (a->state == ATTEMPT_CONNECTING && !failed) {
        struct pollfd ready = {.fd = a->fd, .events = POLLOUT};
        int error = 0;
        socklen_t length = sizeof error;
        if (poll(&ready, 1, 0) <= 0) return true;
        Hello mine = tcp_hello(tcp, a->want.peer, a->want.channel);
        failed = getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &length) || error ||
                 send(a->fd, &mine, sizeof mine, MSG_NOSIGNAL) != (ssize_t)sizeof mine;
        a->state = ATTEMPT_ASKED;
        a->got = 0;
    }
    if (a->state == ATTEMPT_ASKED && !failed) {
        ssize_t k = recv(a->fd, (char *)&a->answer + a->got, sizeof a->answer - a->got, 0);
        if (k < 0 && (errno == EAGAIN || errno == EINTR)) return true;
        a->got += k > 0 ? (size_t)k : 0;
        if (k > 0 && a->got < sizeof a->answer) return true;
        failed = k <= 0 || a->answer.magic != HELLO_MAGIC || a->answer.nonce != tcp->nonce ||
                 a->answer.from != (uint32_t)a->want.peer || a->answer.to != (uint32_t)tcp->group->rank;
        if (!failed) {
            a->state = ATTEMPT_DONE;
            return tcp_add(tcp, a->want.peer, a->want.channel, a->fd) ||
                   error_set(err, "rank %d: more than %d connections", tcp->group->rank, TCP_CONNECTIONS_MAX);
        }
    }
    if (failed) {
        close(a->fd);
        a->state = ATTEMPT_NEXT;
        a->since = log_seconds();
    }
    return true;
}

/* One round over all attempts; *missing counts what is not open yet, *peer is one of them. */
static bool tcp_round(Tcp *tcp, const Plan *plan, const Topology *topology, Attempt *attempt, int attempts,
                      const TcpWant *want, int wants, int *missing, int *peer, Error *err) {
    if (!tcp_accept(tcp, err)) return false;
    for (int i = 0; i < attempts; i++) {
        Attempt *a = &attempt[i];
        if (a->state == ATTEMPT_NEXT && log_seconds() >= a->since) {
            attempt_begin(tcp, a, plan, topology);
            if (a->state == ATTEMPT_NEXT) /* nothing was begun, or no address is left: again, after a pause */
                a->since = log_seconds() + PAUSE_MILLISECONDS * 1e-3;
        }
        if ((a->state == ATTEMPT_CONNECTING || a->state == ATTEMPT_ASKED) && !attempt_move(tcp, a, err))
            return false;
    }
    *missing = 0;
    for (int i = 0; i < wants; i++)
        if (tcp_fd(tcp, want[i].peer, want[i].channel) < 0) {
            *peer = want[i].peer;
            ++*missing;
        }
    return true;
}

bool tcp_connect(Tcp *tcp, const Plan *plan, const Topology *topology, const TcpWant *want, int wants,
                 double timeout_seconds, int *unreached, Error *err) {
    double begun = log_seconds();
    int missing = 0, attempts = 0;
    bool done = false;
    *unreached = -1;
    Attempt *attempt = calloc((size_t)wants + 1, sizeof *attempt);
    struct pollfd *polled = calloc((size_t)wants + PENDING_MAX + 1, sizeof *polled);
    if (!attempt || !polled) {
        error_set(err, "connections of rank %d: no memory", tcp->group->rank);
        goto out;
    }
    tcp->plan = plan_hash(plan);
    for (int i = 0; i < wants; i++)
        if (want[i].peer < tcp->group->rank && tcp_fd(tcp, want[i].peer, want[i].channel) < 0)
            attempt[attempts++] = (Attempt){.want = want[i]};
    for (;;) {
        int peer = -1, n = 0;
        if (!tcp_round(tcp, plan, topology, attempt, attempts, want, wants, &missing, &peer, err)) goto out;
        if (!missing) break;
        if (comm_group_failed(tcp->group, err)) goto out;
        if (log_seconds() - begun > timeout_seconds) {
            *unreached = peer;
            error_set(err, "rank %d on %s has no connection to rank %d on %s after %.3g s", tcp->group->rank,
                      control_host(tcp->group->control, tcp->group->world[tcp->group->rank]), peer,
                      control_host(tcp->group->control, tcp->group->world[peer]), timeout_seconds);
            goto out;
        }
        polled[n++] = (struct pollfd){.fd = station.listener, .events = POLLIN};
        for (int i = 0; i < station.pendings; i++)
            polled[n++] = (struct pollfd){.fd = station.pending[i].fd, .events = POLLIN};
        for (int i = 0; i < attempts; i++)
            if (attempt[i].state == ATTEMPT_CONNECTING || attempt[i].state == ATTEMPT_ASKED)
                polled[n++] = (struct pollfd){.fd = attempt[i].fd,
                                              .events = attempt[i].state == ATTEMPT_ASKED ? POLLIN : POLLOUT};
        poll(polled, (nfds_t)n, 10);
    }
    done = true;
out:
    for (int i = 0; i < attempts; i++)
        if (attempt[i].state == ATTEMPT_CONNECTING || attempt[i].state == ATTEMPT_ASKED) close(attempt[i].fd);
    free(attempt);
    free(polled);
    return done;
}

bool tcp_unheard(int fd, double seconds) {
    struct tcp_info info;
    socklen_t length = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length)) return false;
    return info.tcpi_unacked > 0 && info.tcpi_retransmits >= 3 &&
           info.tcpi_last_ack_recv > (uint32_t)(seconds * 1000);
}
