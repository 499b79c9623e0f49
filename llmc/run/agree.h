/* agree.h: that all ranks were asked for the same thing. Each is started by itself, with its own flags, environment and
 * disk: with another learning rate, or other token files, on one host the sums would still be sums, and the model one that
 * nobody asked for.
 *
 * All ranks call these, in the same order. One that differs from rank 0 fails and says in what. Of one rank: true. */
#ifndef LLMC_AGREE_H
#define LLMC_AGREE_H
#include "base/error.h"
#include "base/options.h"
#include "comm/comm.h"
#include "data/loader.h"

/* Every option but those that belong to a host: threads, instruction set, staging folder, how files are written, output. */
bool agree_on_options(const Options *options, Comm *comm, Error *err);

/* The number of tokens and of files, and the tokenizer's fingerprint; pattern: what the files were named by. */
bool agree_on_data(const Loader *loader, const char *pattern, Comm *comm, Error *err);
#endif
