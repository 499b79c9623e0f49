/* safetensors.h: models as Hugging Face stores GPT-2: model.safetensors and config.json.
 *
 * The file: u64 length of a JSON header, the header ({name: {dtype, shape, data_offsets}}, and strings under
 * __metadata__), then the tensors. Names are those of tensors.h, with or without the prefix "transformer."; matrices of
 * its Conv1D are transposed; wte has V rows, without padding. Our window and tokenizer stand in __metadata__ and in
 * config.json under "toroid", which others ignore. */
#ifndef LLMC_SAFETENSORS_H
#define LLMC_SAFETENSORS_H
#include "run/model_file.h"

/* Longest JSON header that is read: the format's own limit. */
enum { SAFETENSORS_HEADER_MAX = 100000000 };

/* Could this be such a file, by its first bytes? */
bool safetensors_recognise(const TensorFile *file);

/* path: a .safetensors file, or a folder with config.json and model.safetensors or its shards
 * (model.safetensors.index.json). F32, BF16 and F16 can be read. The head count comes from config.json or __metadata__;
 * where neither has it, heads of 64 channels, as in all of GPT-2, are taken. A model that computes otherwise than
 * GPT-2 (another activation, an untied head) is an error. */
bool safetensors_open(ModelSource *source, const char *path, Error *err);

/* Writes m as F32 or BF16. path: a name that ends in .safetensors is that one file; otherwise a folder, made if
 * need be, of model.safetensors and config.json, which transformers' from_pretrained reads. tokenizer: its name, or
 * "". */
bool safetensors_write(const char *path, const GPT2 *m, const char *tokenizer, TensorType type, Error *err);
#endif
