/* convert.h: the work behind `train_gpt2 convert` and `ckpt export`: a model from one file format to another. */
#ifndef LLMC_CONVERT_H
#define LLMC_CONVERT_H
#include "base/options.h"
#include "ckpt/ckpt.h"

/* Reads the model `in`, whatever its format (model_file.h), of a place with checkpoints that of *id (NULL: the newest),
 * and writes it to `out`, as --format and --dtype say. --format=auto: NAME.bin is llm.c's, NAME.safetensors or a folder
 * are safetensors. The tokenizer file beside the model goes along into a folder. The output may replace the input. */
bool convert_run(const Options *options, const char *in, const CkptId *id, const char *out, Error *err);
#endif
