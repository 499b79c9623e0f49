/* option_table.h: every option of every command, once. options.h makes the struct from it; options.c the
 * parser, the bounds, the environment and the configuration file; options_show.c the help, the man page, the
 * completions and the printed configuration.
 *
 * To add an option add a row; nothing else has to change:
 * X(type, field, letter, default, min, max, unit, commands, group, choices, help)
 *   field     the flag is the same with '-' for '_'
 *   letter    short form, 0: none
 *   default   as text, read as a user's value is
 *   min, max  of numbers (int64: at most 2^53, so that a double holds it)
 *   unit      of a number, or what a STRING names: file, folder, glob, text
 *   choices   of a CHOICE
 *   help      one phrase, which need not repeat default, bounds, unit and choices */
#ifndef LLMC_OPTION_TABLE_H
#define LLMC_OPTION_TABLE_H

// clang-format off
/* X(command, arguments, minimum and maximum number of arguments, summary); the first is the default. */
#define OPTION_COMMANDS(X)                                                                                   \
    X(TRAIN, train, "", 0, 0, "train a model, from scratch or from --init, and show its progress")           \
    X(SAMPLE, sample, "[MODEL]", 0, 1, "write text with a trained model")                                    \
    X(TOKENIZE, tokenize, "INPUT...", 1, 1 << 30, "make token files from text, or text from them (--decode)")\
    X(EVAL, eval, "[MODEL]", 0, 1, "measure the validation loss of a model, and HellaSwag")                  \
    X(CONVERT, convert, "IN OUT", 2, 2, "convert models between llm.c's .bin and safetensors")               \
    X(PLOT, plot, "RUN...", 1, 1 << 30, "draw the loss curves of one or more run folders as SVG")            \
    X(CKPT, ckpt, "ACTION PLACE [...]", 0, 3,                                                                \
      "look at, check, copy and export checkpoints ('ckpt help' lists the actions)")                         \
    X(DOCTOR, doctor, "", 0, 0, "show what was found here: processor, libraries, memory, what fits")

/* Groups of --help, in its order. */
#define OPTION_GROUPS(X)                                                                                     \
    X(MODEL, "Model")                                                                                        \
    X(DATA, "Data")                                                                                          \
    X(BATCH, "Batch")                                                                                        \
    X(OPTIMIZER, "Optimizer")                                                                                \
    X(RUN, "Run")                                                                                            \
    X(CHECKPOINTS, "Checkpoints")                                                                            \
    X(RANKS, "Ranks")                                                                                        \
    X(SAMPLING, "Sampling")                                                                                  \
    X(OUTPUT, "Output")                                                                                      \
    X(SYSTEM, "System")                                                                                      \
    X(GENERAL, "General")

/* Where one command's default differs from the row's: X(command, field, default). */
#define OPTION_COMMAND_DEFAULTS(X)                                                                           \
    X(EVAL, batch_size, "4")                                                                                 \
    X(TOKENIZE, tokenizer, "byte")                                                                           \
    X(PLOT, output, "loss.svg")

#define ONE_OF(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NONE        NULL

#define OPTION_TABLE(X)                                                                                      \
    /* --- model --- */                                                                                      \
    X(CHOICE, preset, 'p', "", 0, 0, "", TRAIN | DOCTOR, MODEL,                                              \
      ONE_OF("tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "list"),                                \
      "model size and settings by name; list shows them with their parameters and memory")                   \
    X(INT, layers, 'l', "0", 0, 1000, "", TRAIN, MODEL, NONE,                                                \
      "transformer blocks; 0: as the preset or --init says")                                                 \
    X(INT, heads, 0, "0", 0, 1000, "", TRAIN, MODEL, NONE,                                                   \
      "attention heads, which must divide the channels; 0: as the preset or --init says")                    \
    X(INT, channels, 0, "0", 0, 65536, "", TRAIN, MODEL, NONE,                                               \
      "width of the residual stream; 0: as the preset or --init says")                                       \
    X(INT, context, 0, "0", 0, 1048576, "tokens", TRAIN, MODEL, NONE,                                        \
      "tokens of the longest sequence the model has positions for; 0: as the preset or --init says")         \
    X(INT, window, 'w', "0", 0, 1048576, "tokens", TRAIN | SAMPLE | EVAL, MODEL, NONE,                       \
      "tokens that a token attends to, itself and those before it; 0: all")                                  \
    X(STRING, init, 0, "", 0, 0, "file", TRAIN, MODEL, NONE,                                                 \
      "model to start from (.bin or .safetensors); empty: random weights as in GPT-2")                       \
    X(STRING, model, 'm', "", 0, 0, "file", SAMPLE | EVAL, MODEL, NONE,                                      \
      "model to use (.bin or .safetensors, or a run folder); may also stand as an argument")                 \
    X(INT64, seed, 's', "1337", 0, 9007199254740992.0, "", TRAIN | SAMPLE, MODEL, NONE,                      \
      "seed of all random numbers: same seed and settings, same bits")                                       \
    /* --- data --- */                                                                                       \
    X(STRING, train_data, 'i', "", 0, 0, "glob", TRAIN, DATA, NONE,                                          \
      "token files to train on, such as 'tokens_train_*.bin'")                                               \
    X(STRING, val_data, 'j', "", 0, 0, "glob", TRAIN | EVAL, DATA, NONE,                                     \
      "token files for the validation loss")                                                                 \
    X(STRING, tokenizer, 't', "", 0, 0, "file", TRAIN | SAMPLE | TOKENIZE | EVAL, DATA, NONE,                \
      "byte, or a vocab.bpe file; empty: the one that made the data or the model")                           \
    X(STRING, hellaswag, 0, "", 0, 0, "file", EVAL, DATA, NONE,                                              \
      "HellaSwag questions (.jsonl) to answer")                                                              \
    X(INT, train_bpe, 0, "0", 0, 65536, "tokens", TOKENIZE, DATA, NONE,                                      \
      "tokens of a BPE vocabulary to train on the inputs first, and use; 0: do not")                         \
    X(CHOICE, documents, 0, "file", 0, 0, "", TOKENIZE, DATA, ONE_OF("file", "blank-line"),                  \
      "what ends a document: each end of file, or each blank line")                                          \
    X(DOUBLE, val_fraction, 0, "0.1", 0, 1, "of the text", TOKENIZE, DATA, NONE,                             \
      "part at the start that is held back for validation")                                                  \
    X(INT64, val_tokens, 0, "0", 0, 1e15, "tokens", TOKENIZE, DATA, NONE,                                    \
      "tokens at the start that are held back for validation; 0: by --val-fraction")                         \
    X(INT64, shard_tokens, 0, "100000000", 1024, 1e15, "tokens", TOKENIZE, DATA, NONE,                       \
      "tokens in one file at most")                                                                          \
    X(BOOL, decode, 'd', "no", 0, 0, "", TOKENIZE, DATA, NONE,                                               \
      "turn token files back into text, on stdout")                                                          \
    /* --- batch --- */                                                                                      \
    X(INT, batch_size, 'b', "0", 0, 65536, "sequences", TRAIN | EVAL, BATCH, NONE,                           \
      "sequences in one forward and backward pass; 0: as many as suit the processor or GPU")                 \
    X(INT, sequence, 0, "0", 0, 1048576, "tokens", TRAIN | EVAL, BATCH, NONE,                                \
      "tokens in a sequence; 0: the context")                                                                \
    X(INT64, total_batch, 'B', "0", 0, 1e12, "tokens", TRAIN, BATCH, NONE,                                   \
      "tokens in one step, by gradient accumulation: a multiple of batch size x sequence; 0: just that")     \
    /* --- optimizer --- */                                                                                  \
    X(DOUBLE, learning_rate, 'r', "6e-4", 0, 1000, "", TRAIN, OPTIMIZER, NONE,                               \
      "learning rate of AdamW at its highest")                                                               \
    X(CHOICE, schedule, 0, "cosine", 0, 0, "", TRAIN, OPTIMIZER,                                             \
      ONE_OF("cosine", "linear", "constant", "wsd"),                                                         \
      "shape of the learning rate after the warm-up")                                                        \
    X(INT, warmup, 'u', "0", 0, 1000000000, "steps", TRAIN, OPTIMIZER, NONE,                                 \
      "steps in which the learning rate rises from 0")                                                       \
    X(DOUBLE, decay_fraction, 0, "0.2", 0, 1, "of the steps", TRAIN, OPTIMIZER, NONE,                        \
      "last part of the run, in which --schedule wsd goes down")                                             \
    X(DOUBLE, final_fraction, 0, "0.1", 0, 1, "of the learning rate", TRAIN, OPTIMIZER, NONE,                \
      "learning rate at the last step")                                                                      \
    X(DOUBLE, weight_decay, 'c', "0.1", 0, 10, "", TRAIN, OPTIMIZER, NONE,                                   \
      "decoupled weight decay of matrices and embeddings")                                                   \
    X(DOUBLE, beta1, 0, "0.9", 0, 0.999999999, "", TRAIN, OPTIMIZER, NONE,                                   \
      "memory of AdamW's mean of gradients")                                                                 \
    X(DOUBLE, beta2, 0, "0.95", 0, 0.999999999, "", TRAIN, OPTIMIZER, NONE,                                  \
      "memory of AdamW's mean of squared gradients")                                                         \
    X(DOUBLE, epsilon, 0, "1e-8", 1e-30, 1, "", TRAIN, OPTIMIZER, NONE,                                      \
      "added to AdamW's denominator")                                                                        \
    X(DOUBLE, grad_clip, 0, "1", 0, 1e30, "", TRAIN, OPTIMIZER, NONE,                                        \
      "largest global norm of the gradient; 0: no clipping")                                                 \
    X(DOUBLE, skip_loss_z, 0, "0", 0, 1e9, "", TRAIN, OPTIMIZER, NONE,                                       \
      "skip the update of a step whose loss is so many standard deviations above the last ones; 0: never")   \
    X(DOUBLE, skip_grad_z, 0, "0", 0, 1e9, "", TRAIN, OPTIMIZER, NONE,                                       \
      "the same for the norm of the gradient; 0: never")                                                     \
    /* --- run --- */                                                                                        \
    X(INT, steps, 'n', "1000", 0, 2000000000, "steps", TRAIN, RUN, NONE,                                     \
      "steps to train for, those before a resume included")                                                  \
    X(STRING, run, 'o', "", 0, 0, "folder", TRAIN, RUN, NONE,                                                \
      "where the model, the metrics and config.txt go; empty: nothing is written")                           \
    X(CHOICE, resume, 0, "auto", 0, 0, "", TRAIN, RUN, ONE_OF("auto", "never", "must"),                      \
      "go on from what the run folder holds: if there is something, never, or else fail")                    \
    X(INT, eval_every, 'v', "100", 0, 1000000000, "steps", TRAIN, RUN, NONE,                                 \
      "steps between measurements of the validation loss; 0: never")                                         \
    X(INT, eval_batches, 0, "20", 0, 1000000000, "batches", TRAIN | EVAL, RUN, NONE,                         \
      "batches to measure the validation loss on; 0: all there are")                                         \
    X(INT, sample_every, 0, "0", 0, 1000000000, "steps", TRAIN, RUN, NONE,                                   \
      "steps between samples shown while training; 0: none")                                                 \
    X(INT, sample_tokens, 0, "200", 1, 1048576, "tokens", TRAIN, RUN, NONE,                                  \
      "tokens in each sample shown while training")                                                          \
    X(INT, log_every, 0, "1", 1, 1000000000, "steps", TRAIN, RUN, NONE,                                      \
      "steps between progress lines")                                                                        \
    /* --- checkpoints --- */                                                                                \
    X(STRING, checkpoint_every, 0, "0", 0, 0, "text", TRAIN, CHECKPOINTS, NONE,                              \
      "when to save while training goes on: every 100 (steps), 30s, 10m, 1h, or auto; 0: only at the end")   \
    X(INT, keep, 0, "2", 1, 1000, "checkpoints", TRAIN | CKPT, CHECKPOINTS, NONE,                                   \
      "newest restorable checkpoints that are kept in the staging folder")                                   \
    X(STRING, staging, 0, "", 0, 0, "folder", TRAIN, CHECKPOINTS, NONE,                                      \
      "fast local disk for checkpoints, to which RUN/checkpoints then leads; empty: that folder itself")    \
    X(STRING, remote, 0, "", 0, 0, "text", TRAIN | CKPT, CHECKPOINTS, NONE,                                         \
      "where checkpoints are copied to while training: s3://bucket/prefix or a folder; empty: nowhere")      \
    X(INT, keep_remote, 0, "0", 0, 1000000, "checkpoints", TRAIN | CKPT, CHECKPOINTS, NONE,                  \
      "newest complete checkpoints that are kept in the remote store; 0: all")                               \
    X(DOUBLE, upload_rate, 0, "0", 0, 1e6, "MB/s", TRAIN | CKPT, CHECKPOINTS, NONE,                          \
      "the most that copying to the remote store takes; 0: no limit")                                        \
    X(DOUBLE, drain_seconds, 0, "60", 0, 86400, "seconds", TRAIN, CHECKPOINTS, NONE,                         \
      "how long the end of a run, or a signal to stop, waits for the remote store")                          \
    X(CHOICE, checkpoint_policy, 0, "auto", 0, 0, "", TRAIN, CHECKPOINTS, ONE_OF("auto", "lazy", "snapshot"), \
      "write from the tensors themselves, or from a copy; auto: by what stalls less")                        \
    X(CHOICE, checkpoint_io, 0, "auto", 0, 0, "", TRAIN, CHECKPOINTS, ONE_OF("auto", "uring", "plain"),      \
      "how files are written; auto: io_uring and O_DIRECT where they work")                                  \
    X(DOUBLE, mtbf, 0, "24", 0.001, 1e6, "hours", TRAIN, CHECKPOINTS, NONE,                                  \
      "mean time between failures that --checkpoint-every auto reckons with")                                \
    X(DOUBLE, wear, 0, "10", 0, 1e6, "TB/day", TRAIN, CHECKPOINTS, NONE,                                     \
      "the most that --checkpoint-every auto writes to the staging disks; 0: no limit")                      \
    X(BOOL, deep, 0, "no", 0, 0, "", CKPT, CHECKPOINTS, NONE,                                                \
      "verify reads every byte of the tensors too")                                                          \
    X(BOOL, dry_run, 0, "no", 0, 0, "", CKPT, CHECKPOINTS, NONE,                                             \
      "gc only says what would go")                                                                          \
    /* --- ranks --- */                                                                                      \
    X(CHOICE, comm, 0, "auto", 0, 0, "", TRAIN, RANKS,                                                       \
      ONE_OF("auto", "self", "mpi", "shm", "torus", "hosts", "nccl"),                                        \
      "what carries sums between ranks; auto: by what is there, and says what it took")                      \
    X(STRING, topology, 0, "", 0, 0, "text", TRAIN, RANKS, NONE,                                             \
      "how the ranks are wired: ring:8, torus:4x4x4, flat:64 or file:PATH; empty: flat")                     \
    X(CHOICE, reduce, 0, "fp32", 0, 0, "", TRAIN, RANKS, ONE_OF("fp32", "bf16", "exact"),                    \
      "how gradients are summed; bf16: half the bytes; exact: the same bits for any number of ranks")        \
    X(DOUBLE, comm_timeout, 0, "10", 0.1, 86400, "seconds", TRAIN, RANKS, NONE,                              \
      "seconds after which a rank that does not answer is given up, by name")                                \
    /* --- sampling --- */                                                                                   \
    X(STRING, prompt, 'q', "", 0, 0, "text", SAMPLE, SAMPLING, NONE,                                         \
      "text to go on from; -: read it from stdin; empty: the start of a document")                           \
    X(INT, tokens, 'n', "256", 1, 1000000000, "tokens", SAMPLE, SAMPLING, NONE,                              \
      "tokens to write")                                                                                     \
    X(INT, count, 'c', "1", 1, 1000000, "samples", SAMPLE, SAMPLING, NONE,                                   \
      "samples to write, each with its own random numbers")                                                  \
    X(DOUBLE, temperature, 'T', "0.8", 0, 100, "", SAMPLE, SAMPLING, NONE,                                   \
      "divides the logits: above 1 wilder, below safer; 0: always the likeliest token")                      \
    X(INT, top_k, 'k', "0", 0, 1000000, "tokens", SAMPLE, SAMPLING, NONE,                                    \
      "tokens to choose among, the likeliest; 0: all")                                                       \
    X(DOUBLE, top_p, 0, "1", 1e-6, 1, "", SAMPLE, SAMPLING, NONE,                                            \
      "choose among the likeliest tokens that together have this probability")                               \
    X(CHOICE, weights, 0, "fp32", 0, 0, "", SAMPLE, SAMPLING, ONE_OF("fp32", "bf16", "int8"),                \
      "how weights are held: fewer bits are faster and a little less exact")                                 \
    /* --- output --- */                                                                                     \
    X(STRING, output, 'o', "tokens", 0, 0, "file", TOKENIZE | PLOT, OUTPUT, NONE,                            \
      "what to write; tokenize takes it as a prefix: PREFIX_train_000000.bin and so on")                     \
    X(CHOICE, format, 'f', "auto", 0, 0, "", CONVERT | CKPT, OUTPUT, ONE_OF("auto", "llmc", "safetensors"),         \
      "format of the output; auto: by its name")                                                             \
    X(CHOICE, dtype, 0, "fp32", 0, 0, "", CONVERT | CKPT, OUTPUT, ONE_OF("fp32", "bf16"),                           \
      "type of the numbers in the output")                                                                   \
    X(CHOICE, x, 'x', "step", 0, 0, "", PLOT, OUTPUT, ONE_OF("step", "tokens", "seconds"),                   \
      "what the horizontal axis shows")                                                                      \
    X(BOOL, log_x, 0, "no", 0, 0, "", PLOT, OUTPUT, NONE,                                                    \
      "logarithmic horizontal axis")                                                                         \
    X(DOUBLE, smooth, 0, "0.02", 0, 1, "of the curve", PLOT, OUTPUT, NONE,                                   \
      "part over which the bold line averages; 0: no averaging")                                             \
    /* --- system --- */                                                                                     \
    X(CHOICE, precision, 0, "fp32", 0, 0, "", TRAIN | EVAL | DOCTOR, SYSTEM, ONE_OF("fp32", "bf16"),         \
      "inputs of matrix products; sums are fp32 either way")                                                 \
    X(INT, threads, 0, "0", 0, 4096, "threads", TRAIN | SAMPLE | EVAL | DOCTOR, SYSTEM, NONE,                \
      "threads to compute with; 0: one for each processor this process may use")                             \
    X(CHOICE, isa, 0, "auto", 0, 0, "", TRAIN | SAMPLE | EVAL | DOCTOR, SYSTEM,                              \
      ONE_OF("auto", "avx512bf16", "avx512", "avx2", "neon", "portable"),                                    \
      "instruction set of the kernels; auto: the best this processor has")                                   \
    X(INT, head_rows, 0, "0", 0, 1048576, "rows", TRAIN | EVAL, SYSTEM, NONE,                                \
      "rows of logits held at once: fewer take less memory; 0: 1024, on a GPU 16384")                        \
    X(CHOICE, recompute, 0, "auto", 0, 0, "", TRAIN, SYSTEM, ONE_OF("auto", "yes", "no"),                    \
      "LayerNorm and GELU outputs again in the backward: less memory; auto: not on a GPU, where it takes time") \
    /* --- general --- */                                                                                    \
    X(STRING, config, 0, "", 0, 0, "file", EVERY, GENERAL, NONE,                                             \
      "read options from this file, 'name = value' a line, such as a run's config.txt")                      \
    X(BOOL, quiet, 0, "no", 0, 0, "", EVERY, GENERAL, NONE,                                                  \
      "results and warnings only")                                                                           \
    X(CHOICE, color, 0, "auto", 0, 0, "", EVERY, GENERAL, ONE_OF("auto", "always", "never"),                 \
      "colours; auto: on a terminal, unless NO_COLOR is set")
// clang-format on
#endif
