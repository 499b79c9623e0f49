/* model_file.h: where the weights of a model lie on disk, whatever the format, and llm.c's model files.
 *
 * A ModelSource says for every tensor and layer in which file, at which byte, in which type it lies. Each
 * format only fills that table when it is opened (all sizes checked against the files), and one function
 * loads them all, in blocks. Formats, recognised by content:
 *   llm.c's .bin       256 int32: magic 20240326, version 3 (fp32) or 5 (bf16), context, V, layers, heads,
 *                      channels, Vp; then the tensors in the order of tensors.h, each with all its layers
 *                      together.
 *   safetensors        a file, or a folder of Hugging Face's with config.json (safetensors.h).
 *   checkpoints        of a run's folder, a staging folder, or s3://bucket/prefix: the newest that is whole
 *                      (checkpoint.h); one that turns out damaged while loading is passed over with a warning. */
#ifndef LLMC_MODEL_FILE_H
#define LLMC_MODEL_FILE_H
#include "base/error.h"
#include "ckpt/ckpt_reader.h"
#include "model/gpt2.h"
#include "run/tensor_io.h"

enum { MODEL_FILE_MAGIC = 20240326, MODEL_FILE_HEADER_INTS = 256 };

typedef struct {
    int file; /* index in files; -1: not seen yet */
    TensorType type;
    uint64_t offset; /* bytes from the start of the file */
    bool transposed; /* stored cols x rows */
} TensorPlace;

typedef struct {
    const char *format; /* for people: "llm.c model file, bf16" */
    GPT2Config config;  /* window is 0 where the format does not say */
    TensorFile *files;
    int file_count;
    TensorPlace *places; /* [layer * NUM_PARAM_TENSORS + tensor]; MODEL tensors at layer 0 */
    CkptReader *reader;  /* of a checkpoint, which has no files and places here; else NULL */
    CkptId checkpoint;
} ModelSource;

/* Opens whatever model lies at path: a file of one of the formats, or a folder of one. Fails unless every
 * tensor of the configuration is there with its exact shape. After a failure nothing needs closing. */
bool model_source_open(ModelSource *source, const char *path, Error *err);
/* One checkpoint of a place that holds some. */
bool model_source_open_checkpoint(ModelSource *source, const char *path, CkptId id, Error *err);
/* Reads all weights into m->params; m->config must have the sizes of source->config. The padded rows become
 * zero. A weight that is not finite is an error. On failure m's weights are not to be used. */
bool model_source_load(ModelSource *source, GPT2 *m, Error *err);
void model_source_close(ModelSource *source);

/* Are there checkpoints at path? Their place is that for ckpt_reader_open. */
bool model_source_checkpoints(const char *path, char place[FILE_PATH_BYTES]);

/* For the formats' own files: makes an empty table for source->config, and room for files not yet open. */
bool model_source_allocate(ModelSource *source, int files, Error *err);
TensorPlace *model_source_place(const ModelSource *source, int tensor, int layer);

/* Writes m's weights as llm.c's model file, F32 (version 3) or BF16 (version 5), aside, durable, then
 * renamed. The window is not in the format. */
bool model_file_write(const char *path, const GPT2 *m, TensorType type, Error *err);
#endif
