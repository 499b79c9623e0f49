/* convert.h: the work behind `train_gpt2 convert`: a model from one file format to another. */
#ifndef LLMC_CONVERT_H
#define LLMC_CONVERT_H
#include "base/options.h"

/* Reads the model at the first argument, whatever its format (model_file.h), and writes it to the second, as
 * --format and --dtype say. --format=auto: NAME.bin is llm.c's, NAME.safetensors or a folder are safetensors.
 * The tokenizer file beside the model goes along into a folder. The output may replace the input. */
bool convert_run(const Options *options, Error *err);
#endif
