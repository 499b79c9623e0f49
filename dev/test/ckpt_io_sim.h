/* ckpt_io_sim.h: the crash simulator body of ckpt_io.h: the store on a simulated disk (ckpt_sim_disk.h), whose operations
 * are logged and can be made to fail.
 *
 * What always holds: the memory given to `write` is compared at `wait` with what it was, so that data changed too early is
 * a failed CHECK. One simulation is in use at a time in a process, by any number of threads. */
#ifndef CKPT_IO_SIM_H
#define CKPT_IO_SIM_H
#include "ckpt_sim_disk.h"

/* What ckpt_io_sim_open opens from now on. */
void sim_use(Sim *sim);
bool ckpt_io_sim_open(CkptIo *io, Error *err);
/* Flips one bit of a file; false if the file is shorter. */
bool sim_flip(Sim *sim, const char *path, uint64_t byte, int bit);

#endif
