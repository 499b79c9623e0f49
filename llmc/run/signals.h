/* signals.h: what the outside asks of a running trainer. Handlers only set flags; the loop looks after each step.
 *
 * SIGTERM, SIGINT, SIGHUP (a lost terminal, unless under nohup): finish the step, save, exit 75. A second SIGINT ends
 * the process at once. SIGUSR1: save, go on. */
#ifndef LLMC_SIGNALS_H
#define LLMC_SIGNALS_H
#include <stdbool.h>

void signals_install(void);
/* The name of the signal that asked to stop, or NULL. */
const char *signals_stop(void);
/* True once per SIGUSR1. */
bool signals_save(void);
#endif
