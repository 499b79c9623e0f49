/* checkpoint.h: a training run in the checkpoint store: which tensors this rank owns, what all ranks must agree on, and
 * how a run goes on from the newest state that all of them can read.
 *
 * A checkpoint holds every parameter and both moments, each rank's shares written by that rank, and small plain states
 * written by rank 0. Names are those of tensors.h: params/wte, params/h.3.qkvw, adamw_m/..., adamw_v/..., master/... (where there is one),
 * state/progress. No layout
 * is in it, so any number of ranks goes on from it. What a rank has to tell the others (is a shard under way? did it
 * fail?) travels in the sums that end every step; nothing here waits for another rank inside a step. */
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H
#include "ckpt/ckpt_reader.h"
#include "ckpt/drain.h"
#include "run/data_parallel.h"

/* --- when --- */

typedef enum { CHECKPOINT_AT_END, CHECKPOINT_STEPS, CHECKPOINT_SECONDS, CHECKPOINT_AUTO } CheckpointKind;
typedef struct {
    CheckpointKind kind;
    int64_t steps;  /* CHECKPOINT_STEPS */
    double seconds; /* CHECKPOINT_SECONDS */
} CheckpointEvery;

/* 0: at the end only; N: steps; Ns, Nm, Nh: seconds, minutes, hours; auto: checkpoint_auto_seconds. */
bool checkpoint_every_parse(const char *text, CheckpointEvery *every, Error *err);
/* The interval that loses the least: T = Ts + sqrt(2 (Tf + Tr) Ts + Ts^2) for a checkpoint that costs the training Ts
 * seconds, a mean time Tf between failures and Tr to restart (Young 1974, Daly 2006, as in arXiv 2410.18124), but so
 * long that no more than tb_per_day terabytes a day are written. */
double checkpoint_auto_seconds(double cost_seconds, double failure_seconds, double restart_seconds,
                               double bytes, double tb_per_day);

/* --- what --- */

/* In a run folder: the staging folder, or a link to it (checkpoint_link). */
#define CHECKPOINT_FOLDER "checkpoints"

/* Before a run is gone on with, on rank 0. staging: of --staging, "" if not given. An error where the run folder holds, or
 * leads to, checkpoints that would not be gone on from, or leads nowhere. */
bool checkpoint_check_place(const char *run, const char *staging, Error *err);
/* Once the staging folder is there, on rank 0: makes RUN/checkpoints lead to it. That it cannot is no error, but said. */
bool checkpoint_link(const char *run, const char *staging, Error *err);

/* params/wte, params/h.3.qkvw: kind is params, adamw_m or adamw_v. */
void checkpoint_tensor_name(char name[CKPT_NAME_BYTES], const char *kind, const TensorInfo *info, int layer);

enum { CHECKPOINT_STATES_MAX = 4 };
/* Small plain data, the same on every rank. Optional ones come last: a checkpoint without them leaves them as they are. */
typedef struct {
    const char *name;
    void *data;
    size_t bytes; /* 0: none in this run */
    bool optional;
} CheckpointState;

typedef struct {
    GPT2 *model;
    DataParallel *parallel;
    AdamW *optimizer;
    CheckpointState states[CHECKPOINT_STATES_MAX];
    int num_states;
} CheckpointParts;

typedef struct {
    const char *staging; /* folder of this host's segments */
    const char *remote; /* store.h: where checkpoints are drained to, and can be restored from; "": nowhere */
    const char *io, *policy;
    int keep, keep_remote;            /* checkpoints; remote: 0: all */
    double drain_seconds;             /* checkpoint_close waits so long for uploads */
    uint64_t upload_bytes_per_second; /* 0: no limit */
    CheckpointEvery every;
    double failure_seconds, tb_per_day; /* of CHECKPOINT_AUTO */
    bool anew; /* nothing is to be gone on from, so the remote store need not be there */
} CheckpointConfig;

typedef struct {
    CheckpointConfig config;
    CheckpointParts parts;
    Comm *comm;
    int rank, size;
    CkptReader *readers[2]; /* staging, remote: from checkpoint_open to checkpoint_start; NULL: none */
    Ckpt *ckpt;             /* from checkpoint_start on */
    Drain *drain;           /* on the first rank of each host, where there is a remote store */
    TensorView *views;
    size_t num_views, num_needed; /* the optional ones are the last */
    CkptId restored;              /* attempt 0: none */
    uint32_t attempt;             /* of this start of the run: one more than any seen, on any rank */
    uint8_t run[16];              /* UUID */
    int64_t pending;              /* step begun and not yet committed; -1: none */
    bool pending_best;
    uint64_t mark;     /* device_mark of what is being saved */
    double last_begun; /* log_seconds */
    bool asked;        /* for a checkpoint that could not be begun yet */
    bool said_behind;
    int64_t saved, left_out;                                /* since the start */
    double stall_seconds, stall_seconds_max, write_seconds; /* of those saved */
} Checkpoint;

/* Lists this rank's tensors, looks at what is there, and agrees with the other ranks on which run this is. The memory of
 * config's strings and of the parts must stay. */
bool checkpoint_open(Checkpoint *c, const CheckpointConfig *config, const CheckpointParts *parts, Error *err);
void checkpoint_close(Checkpoint *c);

/* Reads a state of the newest checkpoint that has it whole, before anything else is decided by it; the same on all
 * ranks. *found false: there is none. */
bool checkpoint_peek(Checkpoint *c, const char *name, void *data, size_t bytes, bool *found, Error *err);
/* Fills tensors and states from the newest checkpoint that all ranks can read, here or in the remote store, and gathers
 * the parameters. One whose bytes do not match their checksums is passed over with a warning, for the one before it.
 * *found false: nothing was ever completed. That there are some, and none can be read, is an error. */
bool checkpoint_restore(Checkpoint *c, bool *found, Error *err);
/* Opens the staging store for writing, after the restore if there was one. */
bool checkpoint_start(Checkpoint *c, Error *err);

/* --- every step --- */

/* What this rank tells the others at the end of a step's backward. */
typedef struct {
    double writing, failed; /* 1: its shard is under way; could not be written */
    double due;             /* 1: rank 0's clock says so */
} CheckpointVote;
CheckpointVote checkpoint_vote(const Checkpoint *c);
/* Before the optimizer changes anything. */
void checkpoint_fence(Checkpoint *c);
/* After the step, with the votes of all ranks summed: commits what is durable everywhere, and begins the checkpoint of
 * `step` if it is due or `asked` for and nothing is under way (then c->pending is `step`). best: no saved one was as good; it is
 * kept until there is a better one. Returns at once. */
bool checkpoint_step(Checkpoint *c, int64_t step, bool asked, bool best, const CheckpointVote *sums,
                     Error *err);
/* Saves `step` and waits until it is committed on all ranks. */
bool checkpoint_finish(Checkpoint *c, int64_t step, bool best, Error *err);
/* Says what saving has cost so far. */
void checkpoint_report(const Checkpoint *c);
#endif
