/* signals.h: what the outside asks of a running trainer. Handlers only set flags; the loop looks after each step.
 *
 * SIGTERM, SIGINT, SIGUSR2, SIGHUP (a lost terminal, unless under nohup): finish the step, save, exit 75. A second SIGINT
 * ends the process at once. SIGUSR1: save, go on. mpirun turns SIGINT and SIGTERM into SIGTERM and a second later SIGKILL,
 * but passes on SIGUSR1 and SIGUSR2; ranks whose mpirun is gone stop as if they had been asked to. */
#ifndef LLMC_SIGNALS_H
#define LLMC_SIGNALS_H
#include <stdbool.h>

/* under_mpirun: the parent process is the launcher, without which there is no point in going on. */
void signals_install(bool under_mpirun);
/* Who asked to stop, by name, or NULL. */
const char *signals_stop(void);
/* True once per SIGUSR1. */
bool signals_save(void);
#endif
