/* rendezvous.h: how the ranks of a job find rank 0 and connect to it. Internal to llmc/comm: control.c is its user. */
#ifndef LLMC_COMM_RENDEZVOUS_H
#define LLMC_COMM_RENDEZVOUS_H
#include "comm/control.h"

typedef char HostName[CONTROL_HOST_BYTES];

/* --- control_place.c --- */

/* What tells this job from others on the host, as part of a file's name. */
void place_job_name(const ControlPlace *place, char *out, size_t size);
/* Under srun: the first host of its list, where its rank 0 is unless told otherwise ("node[03-07,9],other" -> "node03"), and a
 * port made from the job's number. False: there is no list. */
bool place_slurm_root(char *host, size_t size, int *port);

/* --- rendezvous.c --- */

/* Rank 0: sockets (size) by rank, its own -1. Others: sockets[0] leads to rank 0. hosts (size). */
bool rendezvous_open(const ControlPlace *place, double timeout_seconds, int *sockets, HostName *hosts,
                     Error *err);
#endif
