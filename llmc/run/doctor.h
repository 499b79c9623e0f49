/* doctor.h: what was found on this machine, and what fits on it: `train_gpt2 doctor`. */
#ifndef LLMC_DOCTOR_H
#define LLMC_DOCTOR_H
#include "base/options.h"

/* To stdout. */
bool doctor_run(const Options *options, Error *err);
#endif
