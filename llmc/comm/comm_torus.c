/* comm_torus.c: the backend that follows the wires: collectives over the plan of a topology (plan.h), by TCP (tcp.h).
 *
 * Every operation is a set of tracks that proceed at the same time in one poll loop (torus_run): a track for each part
 * of each colour of the plan, or one that goes around all axes (small sums), down a tree (broadcast) or between two
 * ranks. A track is a list of stages, each of a few streams (stream.h). The parts of a colour follow one another through
 * the stages like cars on a road, so that no wire idles while a phase waits for its last byte. On the control channel,
 * all neighbours exchange the header of every operation before its data: what differs is an error there.
 *
 * What always holds: a byte that arrives on a connection belongs to the oldest operation there that is not complete;
 * sums are added in an order that the plan fixes, and every element has the same bits on all ranks. */
#define _GNU_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/torus.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { POLL_MILLISECONDS = 10 };

/* --- the loop --- */

static StreamStatus torus_move(Torus *t, bool *moved, bool *done, Port **port) {
    const CommHeader *header = &t->header;
    for (int i = 0; i < t->tracks; i++) {
        Track *track = &t->track[i];
        bool complete = true;
        if (track->done) continue;
        for (int s = 0; s < track->streams; s++) {
            StreamStatus status = stream_move(&track->stream[s], header, t->staging, moved, port);
            if (status != STREAM_FINE) return status;
            complete &= stream_complete(&track->stream[s]);
        }
        if (complete) {
            track->advance(t, track);
            *moved = true;
        }
        *done &= track->done;
    }
    for (int i = 0; i < t->ports; i++) {
        *port = &t->port[i];
        *done &= port_complete(*port);
        if (port_complete(*port) || t->headers_with_data) continue;
        StreamStatus status = port_move(*port, header, moved);
        if (status != STREAM_FINE) return status;
    }
    return STREAM_FINE;
}

static int torus_polls(Torus *t) {
    struct pollfd *polls = t->polls;
    int n = 0;
    for (int i = 0; i < t->tracks; i++)
        for (int s = 0; s < t->track[i].streams && !t->track[i].done; s++)
            n += stream_polls(&t->track[i].stream[s], polls + n, t->polled + n);
    for (int i = 0; i < t->ports && !t->headers_with_data; i++)
        if (!port_complete(&t->port[i])) {
            t->polled[n] = &t->port[i];
            polls[n++] = (struct pollfd){
                .fd = t->port[i].fd,
                .events = t->port[i].header_out < sizeof(CommHeader) ? POLLIN | POLLOUT : POLLIN};
        }
    CHECK_OP(n, <=, TORUS_POLLS_MAX);
    for (int i = 0; i < t->alarms; i++) polls[n++] = (struct pollfd){.fd = t->alarm_fd[i], .events = POLLIN};
    return n;
}

/* Who keeps this rank waiting: who owes data, else who does not take it. */
static int torus_culprit(const Torus *t, char *what, size_t size) {
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < t->tracks; i++)
            for (int s = 0; s < t->track[i].streams && !t->track[i].done; s++) {
                const Stream *stream = &t->track[i].stream[s];
                if (pass == 0 && stream->recv_done < stream->recv_blocks) {
                    snprintf(what, size, "sent nothing for %.3g s (%s, block %d of %d, byte %zu)",
                             t->group->timeout_seconds, t->track[i].name, stream->recv_done,
                             stream->recv_blocks, stream->recv_bytes);
                    return stream->in->peer;
                }
                if (pass == 1 && stream->send_done < stream->send_blocks) {
                    snprintf(what, size, "took nothing for %.3g s (%s, block %d of %d)",
                             t->group->timeout_seconds, t->track[i].name, stream->send_done,
                             stream->send_blocks);
                    return stream->out->peer;
                }
            }
    snprintf(what, size, "did not begin the operation for %.3g s", t->group->timeout_seconds);
    for (int i = 0; i < t->ports; i++)
        if (!port_complete(&t->port[i])) return t->port[i].peer;
    return -1;
}

/* A connection in use whose other end does not even acknowledge; its peer, or -1. */
static int torus_unheard(const Torus *t, double seconds) {
    for (int i = 0; i < t->tracks; i++)
        for (int s = 0; s < t->track[i].streams; s++) {
            const Port *out = t->track[i].stream[s].out;
            if (out && tcp_unheard(out->fd, seconds)) return out->peer;
        }
    if (!t->ports) return -1; /* between two ranks */
    for (int i = 0; i < t->ports; i++)
        if (tcp_unheard(t->port[i].fd, seconds)) return t->port[i].peer;
    /* what an earlier operation has sent may still be on the way */
    for (int c = 0; c < t->plan.colours; c++)
        for (int half = 0; half < TORUS_HALVES; half++)
            for (int i = 0; i < t->colour[c][half].ports; i++) {
                const Port *port = &t->colour[c][half].port[i];
                if (tcp_unheard(port->fd, seconds)) return port->peer;
            }
    return -1;
}

/* A message about a dead wire. That the connection closes is none: a rank that has completed everything leaves. */
static bool torus_alarmed(Torus *t, const struct pollfd *polls) {
    bool alarmed = false;
    int kept = 0;
    for (int i = 0, n = t->alarms; i < n; i++) {
        char byte;
        ssize_t k = polls[i].revents ? recv(polls[i].fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : -1;
        if (k != 0) t->alarm_fd[kept++] = polls[i].fd;
        alarmed |= k > 0;
    }
    t->alarms = kept;
    return alarmed;
}

TorusStatus torus_run(Torus *t, Error *err) {
    double moved_at = log_seconds(), unheard_seconds = t->group->timeout_seconds * 0.15;
    for (;;) {
        bool moved = false, done = true;
        int peer;
        Port *port = NULL;
        StreamStatus status = torus_move(t, &moved, &done, &port);
        if (status == STREAM_MISMATCH) {
            comm_group_mismatch(t->group, port->peer, &port->theirs, err);
            return TORUS_FAILED;
        }
        if (status == STREAM_BROKEN) {
            t->broken_peer = port->peer;
            return TORUS_BROKEN;
        }
        if (done) return TORUS_DONE;
        if (moved) {
            moved_at = log_seconds();
            continue;
        }
        int n = torus_polls(t);
        if (poll(t->polls, (nfds_t)n, POLL_MILLISECONDS) > 0)
            for (int i = 0; i < n - t->alarms; i++) port_polled(t->polled[i], &t->polls[i]);
        if (torus_alarmed(t, t->polls + n - t->alarms)) return TORUS_ALARM;
        double waited = log_seconds() - moved_at;
        if (waited < POLL_MILLISECONDS * 1e-3) continue;
        if (comm_group_failed(t->group, err)) return TORUS_FAILED;
        if (waited > unheard_seconds && (peer = torus_unheard(t, unheard_seconds)) >= 0) {
            t->broken_peer = peer;
            return TORUS_BROKEN;
        }
        if (waited > t->group->timeout_seconds) {
            char what[160];
            peer = torus_culprit(t, what, sizeof what);
            comm_group_fault(t->group, peer, what, err);
            return TORUS_FAILED;
        }
    }
}
