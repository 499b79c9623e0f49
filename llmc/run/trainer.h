/* trainer.h: everything that a training run holds, made ready before its first step and saved between steps.
 *
 * train_gpt2.c decides when something happens; this is the what. After trainer_open nothing is allocated any more. */
#ifndef LLMC_TRAINER_H
#define LLMC_TRAINER_H
#include "base/file.h"
#include "base/options.h"
#include "data/loader.h"
#include "data/tokenizer.h"
#include "model/adamw.h"
#include "model/generate.h"
#include "model/schedule.h"
#include "run/checkpoint.h"
#include "run/outlier.h"

/* What, besides the tensors, makes a continuation bit-identical. Plain data, saved as it is. */
typedef struct {
    uint64_t samples;           /* global index of the next training sequence */
    uint64_t tokens;            /* trained on so far */
    double seconds;             /* spent training, over all resumes */
    double val_loss;            /* the last measured; NaN: none yet */
    double best_val_loss;       /* of the states saved; infinite: none yet */
    int64_t step;               /* steps done */
    int64_t skipped;            /* steps whose update was skipped as outliers */
    int64_t unusable;           /* steps in a row whose loss or gradient was not finite */
    uint64_t seed, step_tokens; /* as the run was started: a change is worth a warning */
    int64_t adamw_step;
    Outlier loss, norm;
} TrainerProgress;

/* Batches that the host may be ahead of the device. */
enum { TRAINER_SLOTS = 2 };

typedef struct {
    const Options *options;
    Comm *comm;
    int rank, size;
    GPT2 model;
    DataParallel parallel;
    AdamW optimizer;
    Schedule schedule;
    Loader *train_loader, *val_loader; /* val_loader NULL: no validation */
    Tokenizer *tokenizer;              /* NULL: unknown, so no samples can be shown */
    Generator generator;
    bool has_generator;
    size_t B, T;
    int micro_batches;    /* of one step, on each rank */
    int32_t *host_tokens; /* inputs and targets of the last batches, (TRAINER_SLOTS,2,B,T), */
    float *host_losses;   /* and their losses (TRAINER_SLOTS,B,T): batch i has slot i % TRAINER_SLOTS, */
    uint64_t marks[TRAINER_SLOTS]; /* which is free, and whose losses are there, when this is done */
    int32_t *tokens, *targets;     /* those of the batch at work, on the device */
    TrainerProgress progress;
    char staging[FILE_PATH_BYTES];
    Checkpoint checkpoint; /* of the run folder; without one it does nothing */
    double peak_flops;
} Trainer;

/* What one step has to say. */
typedef struct {
    double loss, norm, learning_rate, seconds;
    double loss_z, norm_z;
    bool skipped;    /* the update was left out as an outlier */
    bool save, stop; /* a signal asked for it, on any rank */
    CheckpointVote votes;
} StepResult;

/* Chooses the model, opens data and tokenizer, allocates, initialises or resumes; says what it did. Refuses what
 * cannot work (unknown vocabulary, too little memory, a run folder of another model) before anything is written. */
bool trainer_open(Trainer *t, const Options *options, Comm *comm, Error *err);
void trainer_close(Trainer *t);

/* This rank's batch of training sequences, the `number`-th of the step, onto the device; waits for none of the work
 * launched for the batch before it. */
bool trainer_load_batch(Trainer *t, int number, Error *err);
/* After gpt2_loss on batch `number`: its losses are on their way to the host. Their sum; waits for them. */
void trainer_keep_losses(Trainer *t, int number);
double trainer_loss_sum(Trainer *t, int number);

/* Tokens of one step, on all ranks. */
uint64_t trainer_step_tokens(const Trainer *t);

/* Mean loss over eval_batches batches of the validation data, always the same ones; NaN without validation data. */
bool trainer_evaluate(Trainer *t, double *loss, Error *err);

/* Prints a sample of the model as it is, to stdout. */
void trainer_show_sample(Trainer *t);

/* --- checkpoints; all do nothing without a run folder --- */

/* Makes the staging store ready to be written to. */
bool trainer_start_saving(Trainer *t, Error *err);
/* After a step, with the sum of all ranks' checkpoint_vote: commits and begins checkpoints; `asked` for or due. has_val:
 * the validation loss was measured at this step. */
bool trainer_checkpoint(Trainer *t, bool asked, bool has_val, const CheckpointVote *votes, Error *err);
/* Saves the state as it is, and waits until it is committed. */
bool trainer_save(Trainer *t, bool has_val, Error *err);
#endif
