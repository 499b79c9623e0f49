/* fault.h: faults on request, for tests: see fault.c. Internal to llmc/comm. */
#ifndef LLMC_COMM_FAULT_H
#define LLMC_COMM_FAULT_H
#include "comm/world.h"

/* Called for every operation that is begun. */
void fault_strike(const CommGroup *group, int64_t step, WorldOperation *o);
#endif
