/* rendezvous.c: see rendezvous.h. Rank 0 listens and says where; the others try until it answers or time is up.
 *
 * On one host "where" is a file that only this user can read, with a secret that every rank must show; between hosts it
 * is TOROID_ROOT, a broadcast of MPI, or a port made from srun's job number on the first host of its list. Connections
 * that do not say the right thing are dropped, so strangers on the port only cost a moment. */
#define _DEFAULT_SOURCE
#include "comm/rendezvous.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/comm_mpi.h"
#include "comm/message.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ADDRESSES_MAX = 16, ADDRESS_BYTES = 128, PATH_BYTES = 200 };

static const double HELLO_SECONDS = 1.0, CONNECT_SECONDS = 0.5;

typedef enum { FOUND_BY_ROOT, FOUND_BY_FILE, FOUND_BY_MPI, FOUND_BY_SLURM } FoundBy;

/* Where rank 0 listens: what the file and the broadcast carry. */
typedef struct {
    uint64_t secret;
    char port[16];
    int count;
    char address[ADDRESSES_MAX][ADDRESS_BYTES];
} Whereabouts;

typedef struct {
    uint64_t secret;
    int32_t rank, size;
    HostName host;
} Hello;

typedef struct {
    const ControlPlace *place;
    FoundBy by;
    double deadline;
    HostName host;         /* this rank's */
    char path[PATH_BYTES]; /* FOUND_BY_FILE */
    Whereabouts where;
    Error wrong; /* rank 0: what is wrong with the job as it was launched; "": nothing */
} Rendezvous;

/* --- the way to rank 0 --- */

/* host:port; an IPv6 host in brackets. */
static bool parse_root(const char *text, Whereabouts *where, Error *err) {
    const char *colon = strrchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    const char *host = text;
    if (n > 2 && text[0] == '[' && text[n - 1] == ']') host++, n -= 2;
    long port = colon ? strtol(colon + 1, NULL, 10) : 0;
    if (!n || n >= ADDRESS_BYTES || port < 1 || port > 65535 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return error_set(err, "TOROID_ROOT=%.100s is not host:port of rank 0", text);
    where->count = 1;
    memcpy(where->address[0], host, n);
    where->address[0][n] = 0;
    snprintf(where->port, sizeof where->port, "%ld", port);
    return true;
}

static bool choose_way(Rendezvous *r, Error *err) {
    const ControlPlace *place = r->place;
    const char *root = getenv("TOROID_ROOT"), *name = getenv("TOROID_HOST");
    char job[96];
    if (name)
        snprintf(r->host, sizeof r->host, "%s", name);
    else if (gethostname(r->host, sizeof r->host) != 0)
        return error_set_errno(err, "the host's name");
    r->host[sizeof r->host - 1] = 0;
    if (root) {
        r->by = FOUND_BY_ROOT;
        return parse_root(root, &r->where, err);
    }
    if (place->local_size == place->size) {
        r->by = FOUND_BY_FILE;
        place_job_name(place, job, sizeof job);
        snprintf(r->path, sizeof r->path, "/tmp/toroid-%ld-%s", (long)getuid(), job);
        return true;
    }
    if (!strcmp(place->launcher, "mpirun")) {
        r->by = FOUND_BY_MPI;
        Error why;
        return mpi_start(&why) ||
               error_set(err,
                         "%.500s, and the ranks are on several hosts (set TOROID_ROOT=host:port of rank 0)",
                         why.text);
    }
    r->by = FOUND_BY_SLURM;
    int port;
    if (!place_slurm_root(r->where.address[0], ADDRESS_BYTES, &port))
        return error_set(err, "srun's list of hosts is not there (set TOROID_ROOT=host:port of rank 0)");
    r->where.count = 1;
    snprintf(r->where.port, sizeof r->where.port, "%d", port);
    return true;
}

/* --- sockets --- */

static void prepare_socket(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void sleep_seconds(double seconds) {
    nanosleep(&(struct timespec){.tv_nsec = (long)(seconds * 1e9)}, NULL);
}

/* --- rank 0 --- */

/* A listening socket; fills in the port. */
static int listen_somewhere(Rendezvous *r, Error *err) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE},
                    *found = NULL;
    bool fixed = r->by == FOUND_BY_ROOT || r->by == FOUND_BY_SLURM;
    if (r->by == FOUND_BY_ROOT && strchr(r->where.address[0], ':')) hints.ai_family = AF_INET6;
    const char *address = r->by == FOUND_BY_FILE ? "127.0.0.1" : NULL;
    int e = getaddrinfo(address, fixed ? r->where.port : "0", &hints, &found), on = 1;
    if (e) return error_set(err, "rank 0: no address to listen at: %s", gai_strerror(e)), -1;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_storage name;
    socklen_t bytes = sizeof name;
    bool ok = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 4096) == 0 &&
              getsockname(fd, (struct sockaddr *)&name, &bytes) == 0;
    if (!ok) {
        error_set_errno(err, "rank 0 cannot listen at port %s%s", fixed ? r->where.port : "0",
                        fixed ? " (is another job using it? Choose another one in TOROID_ROOT)" : "");
        if (fd >= 0) close(fd);
        fd = -1;
    } else if (!fixed)
        snprintf(r->where.port, sizeof r->where.port, "%u",
                 (unsigned)ntohs(((struct sockaddr_in *)&name)->sin_port));
    freeaddrinfo(found);
    return fd;
}

/* The addresses of this host that others may reach, for MPI's broadcast. */
static void list_addresses(Whereabouts *where) {
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0) return;
    for (int loopback = 0; loopback < 2; loopback++) /* loopback last */
        for (struct ifaddrs *a = all; a; a = a->ifa_next) {
            bool is_loopback = a->ifa_flags & IFF_LOOPBACK;
            if (!a->ifa_addr || a->ifa_addr->sa_family != AF_INET || !(a->ifa_flags & IFF_UP) ||
                is_loopback != loopback || where->count == ADDRESSES_MAX)
                continue;
            const struct sockaddr_in *in = (const void *)a->ifa_addr;
            inet_ntop(AF_INET, &in->sin_addr, where->address[where->count++], ADDRESS_BYTES);
        }
    freeifaddrs(all);
}

static bool publish(Rendezvous *r, Error *err) {
    if (r->by == FOUND_BY_MPI) {
        list_addresses(&r->where);
        return mpi_share(&r->where, sizeof r->where, err);
    }
    if (r->by != FOUND_BY_FILE) return true;
    char aside[PATH_BYTES + 32];
    snprintf(aside, sizeof aside, "%s.%ld", r->path, (long)getpid());
    unlink(aside);
    int fd = open(aside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, &r->where, sizeof r->where) == (ssize_t)sizeof r->where;
    if (fd >= 0) ok = close(fd) == 0 && ok;
    ok = ok && rename(aside, r->path) == 0;
    if (ok) return true;
    error_set_errno(err, "%s: cannot be written (or set TOROID_ROOT=host:port)", aside);
    unlink(aside);
    return false;
}

/* One connection says who it is; -1: a stranger, or not of this job. */
static int greet(Rendezvous *r, int fd, HostName *hosts, const int *sockets) {
    Message m;
    Hello hello;
    char reason[256] = "";
    double until = log_seconds() + HELLO_SECONDS;
    if (!message_read(fd, &m, sizeof m, until) || m.magic != MESSAGE_MAGIC || m.type != MESSAGE_HELLO ||
        m.bytes != sizeof hello || !message_read(fd, &hello, sizeof hello, until) ||
        hello.secret != r->where.secret)
        return -1;
    hello.host[sizeof hello.host - 1] = 0;
    if (hello.size != r->place->size)
        snprintf(reason, sizeof reason, "rank %d (%s) was told of %d ranks, rank 0 (%s) of %d", hello.rank,
                 hello.host, hello.size, r->host, r->place->size);
    else if (hello.rank < 1 || hello.rank >= hello.size)
        snprintf(reason, sizeof reason, "there is no rank %d of %d", hello.rank, hello.size);
    else if (sockets[hello.rank] >= 0)
        snprintf(reason, sizeof reason, "there is a second rank %d, on %s; the first is on %s", hello.rank,
                 hello.host, hosts[hello.rank]);
    if (reason[0]) { /* the job will not begin: time only for the others to come and hear why */
        message_send(fd, MESSAGE_REJECT, 0, reason, strlen(reason) + 1, until);
        if (!r->wrong.text[0]) error_set(&r->wrong, "%s", reason);
        if (r->deadline > until) r->deadline = until;
        return -1;
    }
    memcpy(hosts[hello.rank], hello.host, sizeof hello.host);
    return hello.rank;
}

/* "ranks 3, 5 and 12 more of 64 did not arrive ..." */
static bool say_missing(const Rendezvous *r, const int *sockets, double seconds, Error *err) {
    char list[200] = "";
    int missing = 0, shown = 0;
    size_t n = 0;
    for (int i = 1; i < r->place->size; i++) {
        if (sockets[i] >= 0) continue;
        if (missing++ < 8) {
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%d", shown ? ", " : "", i);
            shown++;
        }
    }
    if (missing > shown) snprintf(list + n, sizeof list - n, " and %d more", missing - shown);
    return error_set(
        err,
        "rank%s %s of %d did not reach rank 0 (%s) within %.3g s (launched by %s; did %s start, and "
        "can %s reach port %s there? If each rank has a wrapper, set TOROID_JOB or TOROID_ROOT)",
        missing == 1 ? "" : "s", list, r->place->size, r->host, seconds, r->place->launcher,
        missing == 1 ? "it" : "they", missing == 1 ? "it" : "they", r->where.port);
}

static bool gather_ranks(Rendezvous *r, double seconds, int *sockets, HostName *hosts, Error *err) {
    int here = 1, size = r->place->size;
    bool ok = false;
    if (r->by == FOUND_BY_FILE || r->by == FOUND_BY_MPI)
        if (getrandom(&r->where.secret, sizeof r->where.secret, 0) != (ssize_t)sizeof r->where.secret)
            return error_set_errno(err, "no random number");
    int listener = listen_somewhere(r, err);
    if (listener < 0 || !publish(r, err)) goto out;
    while (here < size) {
        if (!message_wait_for(listener, POLLIN, r->deadline)) break;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        prepare_socket(fd);
        int rank = greet(r, fd, hosts, sockets);
        if (rank < 0) {
            close(fd);
            continue;
        }
        sockets[rank] = fd;
        here++;
    }
    ok = here == size && !r->wrong.text[0];
    if (r->wrong.text[0])
        *err = r->wrong;
    else if (!ok)
        say_missing(r, sockets, seconds, err);
    for (int i = 1; i < size; i++) {
        if (sockets[i] < 0) continue;
        double until = log_seconds() + HELLO_SECONDS;
        if (!ok)
            message_send(sockets[i], MESSAGE_REJECT, 0, err->text, strlen(err->text) + 1, until);
        else if (!message_send(sockets[i], MESSAGE_WELCOME, 0, hosts, sizeof *hosts * (size_t)size, until))
            ok = error_set(err, "rank %d (%s) left before the job began", i, hosts[i]);
    }
out:
    if (listener >= 0) close(listener);
    if (r->by == FOUND_BY_FILE) unlink(r->path);
    return ok;
}

/* --- the others --- */

static bool look_up(Rendezvous *r, Error *err) {
    if (r->by == FOUND_BY_MPI && !r->where.count) return mpi_share(&r->where, sizeof r->where, err);
    if (r->by != FOUND_BY_FILE) return true;
    struct stat s;
    Whereabouts where;
    r->where.count = 0;
    int fd = open(r->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return true; /* not yet */
    if (fstat(fd, &s) == 0 && s.st_uid == getuid() &&
        read(fd, &where, sizeof where) == (ssize_t)sizeof where) {
        r->where = where;
        r->where.count = 1;
        snprintf(r->where.address[0], ADDRESS_BYTES, "127.0.0.1");
        r->where.port[sizeof r->where.port - 1] = 0;
    }
    close(fd);
    return true;
}

/* A connection to one address, or -1. */
static int connect_to(const char *address, const char *port, double deadline) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int fd = -1;
    if (getaddrinfo(address, port, &hints, &found)) return -1;
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        int error = 0;
        socklen_t bytes = sizeof error;
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) continue;
        prepare_socket(fd);
        double until = log_seconds() + CONNECT_SECONDS;
        bool ok =
            connect(fd, a->ai_addr, a->ai_addrlen) == 0 ||
            (errno == EINPROGRESS && message_wait_for(fd, POLLOUT, until < deadline ? until : deadline) &&
             getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 && error == 0);
        if (ok) break;
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

typedef enum { ANSWER_NONE, ANSWER_WELCOME, ANSWER_REJECT } Answer;

static Answer say_hello(Rendezvous *r, int fd, HostName *hosts, Error *err) {
    Hello hello = {.secret = r->where.secret, .rank = r->place->rank, .size = r->place->size};
    memcpy(hello.host, r->host, sizeof hello.host);
    /* rank 0 waits for the last rank, and then says who is missing: a little longer here */
    double until = r->deadline + 2 * HELLO_SECONDS;
    size_t bytes = sizeof *hosts * (size_t)r->place->size;
    Message m;
    if (!message_send(fd, MESSAGE_HELLO, 0, &hello, sizeof hello, until) ||
        !message_read(fd, &m, sizeof m, until) || m.magic != MESSAGE_MAGIC)
        return ANSWER_NONE;
    if (m.type == MESSAGE_WELCOME && m.bytes == bytes && message_read(fd, hosts, bytes, until)) {
        for (int i = 0; i < r->place->size; i++) hosts[i][sizeof hosts[i] - 1] = 0;
        return ANSWER_WELCOME;
    }
    char reason[CONTROL_REASON_BYTES] = "";
    size_t length = m.bytes < sizeof reason ? m.bytes : sizeof reason - 1;
    if (m.type != MESSAGE_REJECT || !message_read(fd, reason, length, until)) return ANSWER_NONE;
    error_set(err, "%s", reason);
    return ANSWER_REJECT;
}

static bool find_root(Rendezvous *r, double seconds, int *socket_out, HostName *hosts, Error *err) {
    double pause = 0.002;
    bool spoke = false;
    while (log_seconds() < r->deadline) {
        if (!look_up(r, err)) return false;
        for (int i = 0; i < r->where.count; i++) {
            int fd = connect_to(r->where.address[i], r->where.port, r->deadline);
            if (fd < 0) continue;
            spoke = true;
            Answer answer = say_hello(r, fd, hosts, err);
            if (answer == ANSWER_WELCOME) {
                *socket_out = fd;
                return true;
            }
            close(fd);
            if (answer == ANSWER_REJECT) return false;
        }
        sleep_seconds(pause);
        if (pause < 0.1) pause *= 1.5;
    }
    const char *at = r->by == FOUND_BY_FILE ? r->path : r->where.address[0];
    return error_set(
        err,
        "rank %d (%s): rank 0 %s at %s%s%s within %.3g s (launched by %s; did rank 0 start? If each "
        "rank has a wrapper, set TOROID_JOB to the same name, or TOROID_ROOT=host:port)",
        r->place->rank, r->host, spoke ? "did not take this rank" : "was not found", at,
        r->by == FOUND_BY_FILE ? "" : ":", r->by == FOUND_BY_FILE ? "" : r->where.port, seconds,
        r->place->launcher);
}

bool rendezvous_open(const ControlPlace *place, double timeout_seconds, int *sockets, HostName *hosts,
                     Error *err) {
    Rendezvous r = {.place = place};
    for (int i = 0; i < (place->rank ? 1 : place->size); i++) sockets[i] = -1;
    if (!choose_way(&r, err)) return false;
    r.deadline = log_seconds() + timeout_seconds;
    memcpy(hosts[place->rank], r.host, sizeof r.host);
    if (place->size == 1) return true;
    if (place->rank) return find_root(&r, timeout_seconds, &sockets[0], hosts, err);
    if (gather_ranks(&r, timeout_seconds, sockets, hosts, err)) return true;
    for (int i = 0; i < place->size; i++)
        if (sockets[i] >= 0) close(sockets[i]);
    return false;
}
