/* ckpt_command.h: the subcommand `ckpt`: looking at checkpoints, checking, copying and clearing them away. */
#ifndef LLMC_CKPT_COMMAND_H
#define LLMC_CKPT_COMMAND_H
#include "base/options.h"

/* What a script can tell apart; 1 is any other failure, and what diff answers when two checkpoints differ. */
enum { EXIT_CORRUPT = 3, EXIT_INCOMPLETE = 4, EXIT_ABSENT = 5 };

/* The action is the first argument. A PLACE is a run folder, a staging folder, a store's folder or s3://bucket/prefix;
 * PLACE@STEP one of its checkpoints, PLACE alone the newest. On false *exit_code may tell more. */
bool ckpt_command_run(const Options *o, int *exit_code, Error *err);
#endif
