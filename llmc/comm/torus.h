/* torus.h: what the files of the torus backend share: comm_torus.c (the loop), torus_tracks.c (how operations are laid on
 * streams), torus_repair.c (wires that die) and torus_group.c (opening, and the functions of the backend). */
#ifndef LLMC_TORUS_H
#define LLMC_TORUS_H
#include "comm/backend.h"
#include "comm/plan.h"
#include "comm/stream.h"
#include "comm/tcp.h"

enum {
    TORUS_PEERS_MAX = 2 * PLAN_AXES_MAX,
    TORUS_STREAMS_MAX = TORUS_PEERS_MAX,
    TORUS_TRACKS_MAX = 64,
    TORUS_HALVES = 2, /* reduce-scatter, all-gather: with connections of their own, so that neither waits */
    TORUS_POLLS_MAX = (PLAN_COLOURS_MAX * TORUS_HALVES + 2) * TORUS_PEERS_MAX * STREAM_POLLS
};

typedef struct Torus Torus;
typedef struct Track Track;

/* A list of stages, one after the other; `advance` makes the streams of the next, or sets done. */
struct Track {
    void (*advance)(Torus *t, Track *track);
    bool done;
    int colour, part, stage, stages;
    int streams;
    Stream stream[TORUS_STREAMS_MAX];
    Layout layout;
    char *own; /* of an exchange: this part of the caller's data, and its elements */
    size_t own_count;
    char name[64];
};

/* The connections of one half of a colour. */
typedef struct {
    int ports;
    Port port[TORUS_PEERS_MAX];
} ColourPorts;

typedef struct {
    CommOperation operation;
    void *data;
    size_t count;
    const size_t *offsets;
    CommType type;
    CommOp op;
    int peer; /* root */
} TorusCall;

/* What an operation was given, kept until all ranks have completed it: for doing it again over other wires. */
typedef struct {
    TorusCall call;
    CommHeader header;
    uint64_t number; /* 0: none */
    char *data;
    size_t data_bytes;
    size_t *offsets; /* (size + 1) */
} TorusSaved;

typedef enum { TORUS_DONE, TORUS_FAILED, TORUS_BROKEN, TORUS_ALARM } TorusStatus;

struct Torus {
    CommGroup *group;
    Tcp *tcp;
    Topology topology; /* of the group; without the wires that died */
    Plan plan;
    bool exchanges; /* every axis allows plan_exchange */
    double weight_before[PLAN_COLOURS_MAX + 1];
    int ports;
    Port port[TORUS_PEERS_MAX]; /* to all neighbours, on the control channel */
    ColourPorts colour[PLAN_COLOURS_MAX][TORUS_HALVES];
    char *staging, *exchange, *scratch;
    size_t exchange_bytes, scratch_bytes;
    uint64_t number;       /* of the operation that runs, from 1: the same on all ranks */
    TorusSaved saved[2];   /* of operation s at s % 2: a rank may be one ahead of another */
    size_t *start, *at;    /* (TORUS_TRACKS_MAX, size + 1) */
    int *parent;           /* (size) */
    int alarms, *alarm_fd; /* to rank 0, or rank 0's to all others: readable when a wire has died */
    struct pollfd *polls;
    Port **polled; /* whose they are */
    int broken_peer;
    /* of the operation that runs */
    CommHeader header;
    void *data;
    size_t count;
    CommType type;
    CommOp op;
    bool
        headers_with_data; /* every neighbour gets data on the control channel, and the header goes with it */
    char algorithm[24];    /* for comm_last_algorithm */
    int tracks;
    Track track[TORUS_TRACKS_MAX];
};

/* torus_tracks.c */
bool torus_prepare(Torus *t, const TorusCall *call, Error *err);
void torus_prepare_pair(Torus *t, Port *port, void *data, size_t bytes, bool sends);

/* comm_torus.c */
/* Until done. BROKEN: broken_peer's connections are closed or silent, and nobody has been told. */
TorusStatus torus_run(Torus *t, Error *err);

/* torus_repair.c */
bool torus_save(Torus *t, const TorusCall *call, Error *err);
/* After BROKEN or ALARM: all ranks agree which wires are dead, plan without them, connect, and do again what any of them
 * has not completed; *call is then complete if it returns true. */
bool torus_repair(Torus *t, const TorusCall *call, TorusStatus status, Error *err);

/* torus_group.c */
bool torus_plan(Torus *t, Error *err);
bool torus_connect(Torus *t, double timeout_seconds, int *unreached, Error *err);
Port *torus_port(Torus *t, int peer);
Port *colour_port(Torus *t, int colour, int half, int peer);
bool torus_reserve(char **buffer, size_t *have, size_t bytes, Error *err);
/* For tests: this rank's connections to a peer break, as if the wire died. */
void torus_break_wire(CommGroup *group, int peer);
#endif
