/* safetensors.h: models as Hugging Face stores GPT-2: model.safetensors and config.json.
 *
 * The file: u64 length of a JSON header, the header ({name: {dtype, shape, data_offsets}}, and strings under
 * __metadata__), then the tensors without gaps. Names are those of tensors.h, with or without "transformer."
 * before them; matrices of its Conv1D are transposed; wte has V rows, without padding. What others do not
 * know, our attention window, is "toroid_window" in config.json and in __metadata__. */
#ifndef LLMC_SAFETENSORS_H
#define LLMC_SAFETENSORS_H
#include "run/model_file.h"

/* Longest JSON header that is read, bytes; the largest that gpt2_config_check lets pass needs a third. */
enum { SAFETENSORS_HEADER_MAX = 16 << 20 };

/* Could this be such a file, by its first bytes? */
bool safetensors_recognise(const TensorFile *file);

/* path: a .safetensors file, or a folder with model.safetensors or its shards (model.safetensors.index.json);
 * with the config.json beside it, if there is one. F32, BF16 and F16 can be read. The head count comes from
 * __metadata__ or config.json; where neither has it, heads of 64 channels, as in all of GPT-2, are taken. A
 * model that computes otherwise than GPT-2 (another activation, an untied head, a tensor that GPT-2 lacks) is
 * an error. */
bool safetensors_open(ModelSource *source, const char *path, Error *err);

/* Does this name ask for one file, and not for a folder? */
bool safetensors_is_file_name(const char *path);

/* Writes m as F32 or BF16. path: a name that ends in .safetensors is that one file; any other is a folder,
 * made if need be, of model.safetensors and config.json, which transformers' from_pretrained reads. The last
 * id of the vocabulary is taken for the end of text. Files are written aside and renamed. */
bool safetensors_write(const char *path, const GPT2 *m, TensorType type, Error *err);
#endif
