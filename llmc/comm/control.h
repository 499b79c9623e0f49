/* control.h: how the ranks of a job find, watch and stop each other, beside the wires that carry the data.
 *
 * Ranks come from mpirun (built with MPI or not), srun, or TOROID_RANK and TOROID_SIZE. Every rank keeps one TCP
 * connection to rank 0; rank 0 passes on what one rank has to say to all. A thread on every rank sends and expects
 * heartbeats. What always holds: a rank that dies (its connection closes), stops or is unreachable (no heartbeat within
 * the timeout), or gives up (control_abort) is known on every other rank: at once, or within the timeout. */
#ifndef LLMC_COMM_CONTROL_H
#define LLMC_COMM_CONTROL_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CONTROL_HOST_BYTES = 64, CONTROL_REASON_BYTES = 512 };

typedef struct Control Control;

/* Where this process stands in its job, from the environment alone; size 1 without a launcher. */
typedef struct {
    int rank, size, local_rank, local_size; /* local: on this host; 0 and 0 where the launcher does not say */
    const char *launcher;                   /* "mpirun", "srun", "TOROID_RANK", "none" */
} ControlPlace;
bool control_place(ControlPlace *place, Error *err);
/* After a failure, when this process has said why it ends: stays for so long, in which the other ranks of the host say it,
 * too, and somewhat longer, if mpirun would otherwise cut them short. Under other launchers it returns at once. For main. */
void control_linger(double seconds);

/* Meets all ranks of the job within the timeout, or says which are missing. Rank 0 is found (rendezvous.c)
 *   at TOROID_ROOT=host:port where that is set;
 *   all on one host: through a file in /tmp, named after the job (mpirun's, srun's, TOROID_JOB, else the parent process);
 *   else through MPI where that is built in and launched by mpirun, or by srun's list of hosts.
 * TOROID_HOST replaces the host's name (to try several "hosts" on one). */
bool control_open(Control **control, double timeout_seconds, Error *err);
/* Says goodbye, so that the others do not take it for death; rank 0 stays until all have, or one has failed. NULL:
 * nothing. */
void control_close(Control *control);

int control_rank(const Control *control);
int control_size(const Control *control);
const char *control_host(const Control *control, int rank); /* its host name */
int control_local_rank(const Control *control, int rank);   /* its number among the ranks of its host */
int control_hosts(const Control *control);                  /* how many different hosts */

/* All ranks call it in the same order: everyone's `bytes` bytes (at most 1 MiB), in the order of ranks, into all (size *
 * bytes). Not for several threads at once. */
bool control_all_gather(Control *control, const void *mine, size_t bytes, void *all, Error *err);

/* The first failure known, of any rank, as one line in err (may be NULL); true if there is one. One load while there is
 * none: may be called in a spin. */
bool control_failed(const Control *control, Error *err);
/* Has a rank been silent for longer than it should be, but not yet for so long that it is given up? Then what looks like a
 * fault may be an echo of that: each rank notices rank 0's silence by itself, some a little later than others. */
bool control_doubts(const Control *control);
/* This rank gives up: all ranks fail with this reason. Only the first one counts. On its way when this returns. */
void control_abort(Control *control, const char *reason);

/* --- a process that does not notice --- */

/* If a failure is known and nobody has called control_answer for grace_seconds, `end` is called, once, from the control
 * thread: it says why and ends the process, whose other threads are busy elsewhere. */
void control_watch(Control *control, double grace_seconds, void (*end)(void *context), void *context);
/* This process knows of the failure and is about to end by itself. Does not return if `end` came first. */
void control_answer(Control *control);
/* While on, `end` waits: something must not be broken off. */
void control_hold(Control *control, bool on);

/* --- who is behind --- */

/* How many operations among all ranks this one has begun; goes along with its heartbeats. */
void control_note(Control *control, uint32_t begun);
/* The rank that has begun fewest, if all the others have begun more; -1: none. As of the last heartbeats. */
int control_laggard(const Control *control);
#endif
