/* trainer.c: see trainer.h. trainer_open is a list of steps, each of which may refuse; their order is from cheap and
 * likely to fail (data, sizes) to expensive (memory, weights). */
#include "run/trainer.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "base/machine.h"
#include "run/agree.h"
#include "run/evaluate.h"
#include "run/model_file.h"
#include "run/presets.h"
#include "run/progress.h"
#include "run/sampling.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- data and tokenizer --- */

static bool open_train_data(Trainer *t, int T, Error *err) {
    const Options *o = t->options;
    if (!*o->train_data)
        return error_set(
            err, "no training data (make token files with './train_gpt2 tokenize -o data/text FILE...' "
                 "and give --train-data 'data/text_train_*.bin'; or run scripts/quickstart.sh)");
    t->train_loader = loader_open(o->train_data, T, (uint64_t)o->seed, true, 0, err);
    return t->train_loader && agree_on_data(t->train_loader, o->train_data, t->comm, err);
}

/* The tokenizer named by --tokenizer, or found beside the token files; it must be the one that made them. */
static bool open_tokenizer(Trainer *t, Error *err) {
    const Options *o = t->options;
    char found[FILE_PATH_BYTES];
    const char *spec = o->tokenizer;
    if (!*spec) {
        if (!tokenizer_find_beside(o->train_data, found, sizeof found)) return true;
        spec = found;
    }
    t->tokenizer = tokenizer_open(spec, err);
    if (!t->tokenizer) return false;
    uint32_t made_by = loader_fingerprint(t->train_loader);
    if (made_by && made_by != tokenizer_fingerprint(t->tokenizer))
        return error_set(err, "%s: is not the tokenizer that made %s (give --tokenizer the one that did)",
                         spec, o->train_data);
    return true;
}

static int vocabulary(const Trainer *t) {
    int vocab = loader_vocab_size(t->train_loader);
    if (!vocab && t->tokenizer) vocab = tokenizer_vocab_size(t->tokenizer);
    return vocab ? vocab : 50257; /* files of llm.c do not say: GPT-2's */
}

static bool open_validation_data(Trainer *t, Error *err) {
    const Options *o = t->options;
    if (!*o->val_data) return true;
    t->val_loader = loader_open(o->val_data, (int)t->T, 0, false, t->model.config.vocab, err);
    if (!t->val_loader || !agree_on_data(t->val_loader, o->val_data, t->comm, err)) return false;
    uint32_t train = loader_fingerprint(t->train_loader), val = loader_fingerprint(t->val_loader);
    if (train && val && train != val)
        return error_set(err, "%s and %s were made by different tokenizers (tokenize them together)",
                         o->train_data, o->val_data);
    return true;
}

/* --- sizes --- */

uint64_t trainer_step_tokens(const Trainer *t) {
    return t->B * t->T * (uint64_t)t->micro_batches * (uint64_t)t->size;
}

/* A size given beside --init has to be the model's own. */
static bool check_init_sizes(const Options *o, const GPT2Config *model, Error *err) {
    const struct {
        const char *name;
        int wanted, has;
    } sizes[] = {{"layers", o->layers, model->layers},
                 {"heads", o->heads, model->heads},
                 {"channels", o->channels, model->channels},
                 {"context", o->context, model->context}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].wanted && sizes[i].wanted != sizes[i].has)
            return error_set(err, "--%s %d: the model %s has %d (leave sizes and --preset out with --init%s)",
                             sizes[i].name, sizes[i].wanted, o->init, sizes[i].has,
                             strcmp(sizes[i].name, "context") ? "" : "; --sequence makes sequences shorter");
    return true;
}

static Reduce reduce_of(const Options *o) {
    return !strcmp(o->reduce, "exact") ? REDUCE_EXACT : strcmp(o->reduce, "bf16") ? REDUCE_FP32 : REDUCE_BF16;
}

/* Bytes of AdamW's state, of which each rank has its share, and of sums among ranks. */
static double optimizer_bytes(const Trainer *t, const GPT2Config *config) {
    size_t n = gpt2_param_count(config);
    return (double)adamw_bytes(n) / t->size + (double)data_parallel_bytes(n, reduce_of(t->options));
}

static size_t model_bytes(const Trainer *t, const GPT2Config *config, size_t B) {
    return gpt2_bytes(config, B, t->T, presets_head_rows(t->options), presets_mode(t->options));
}

static double training_bytes(const Trainer *t, const GPT2Config *config, size_t B) {
    return (double)model_bytes(t, config, B) + optimizer_bytes(t, config);
}

/* The most sequences that the device gains from, that fit, and that divide the step, if its size was given. */
static size_t batch_that_suits(const Trainer *t, const GPT2Config *config) {
    DeviceHabits habits = device_habits();
    size_t all = t->T * (size_t)t->size, step = (size_t)t->options->total_batch / all;
    size_t B = habits.batch_tokens / t->T;
    B = B < habits.batch_sequences ? B : habits.batch_sequences;
    while (B > 1 && ((step && step % B) ||
                     (habits.training_bytes > 0 && training_bytes(t, config, B) > habits.training_bytes)))
        B = step ? B - 1 : B / 2;
    return B ? B : 1;
}

static bool choose_batch(Trainer *t, const GPT2Config *config, Error *err) {
    const Options *o = t->options;
    t->T = (size_t)(o->sequence ? o->sequence : config->context);
    t->B = o->batch_size ? (size_t)o->batch_size : batch_that_suits(t, config);
    if (t->T > (size_t)config->context)
        return error_set(err, "--sequence %zu is longer than the model's context of %d tokens", t->T,
                         config->context);
    int64_t batch = (int64_t)(t->B * t->T) * t->size, total = o->total_batch ? o->total_batch : batch;
    if (total % batch)
        return error_set(
            err,
            "--total-batch %lld is not a multiple of batch size %zu x sequence %zu x ranks %d = %lld tokens",
            (long long)total, t->B, t->T, t->size, (long long)batch);
    if (total / batch > 1 << 20)
        return error_set(err, "--total-batch %lld is %lld batches a step (raise --batch-size)",
                         (long long)total, (long long)(total / batch));
    t->micro_batches = (int)(total / batch);
    return true;
}

static bool check_memory(const Trainer *t, const GPT2Config *config, Error *err) {
    size_t params = gpt2_param_count(config) * sizeof(floatX);
    size_t model = model_bytes(t, config, t->B);
    double optimizer = optimizer_bytes(t, config), needed = (double)model + optimizer;
    double available = device_available_bytes();
    char text[5][PROGRESS_NUMBER_BYTES];
    log_info("memory      %s: parameters and gradients %s each, optimizer %s, activations %s; %s free",
             progress_bytes((uint64_t)needed, text[0]), progress_bytes(params, text[1]),
             progress_bytes((uint64_t)optimizer, text[2]), progress_bytes(model - 2 * params, text[3]),
             progress_bytes((uint64_t)available, text[4]));
    if (available == 0 || needed < available) return true;
    return error_set(
        err,
        "training needs %.2f GB of memory, %.2f GB is free (lower --batch-size=%zu, --sequence=%zu or "
        "--head-rows=%zu, give --recompute=yes, or take a smaller model)",
        1e-9 * needed, 1e-9 * available, t->B, t->T, presets_head_rows(t->options));
}

/* --- saving and resuming --- */

bool trainer_start_saving(Trainer *t, Error *err) {
    const Options *o = t->options;
    if (!*o->run) return true;
    return checkpoint_start(&t->checkpoint, err) && (t->rank > 0 || checkpoint_link(o->run, o->staging, err));
}

/* What is saved beside the tensors; true: this state is the best so far. */
static bool note_progress(Trainer *t, bool has_val) {
    TrainerProgress *p = &t->progress;
    bool best = has_val && p->val_loss < p->best_val_loss;
    p->adamw_step = t->optimizer.step;
    p->seed = (uint64_t)t->options->seed;
    p->step_tokens = trainer_step_tokens(t);
    if (best) p->best_val_loss = p->val_loss;
    return best;
}

bool trainer_checkpoint(Trainer *t, bool asked, bool has_val, const CheckpointVote *votes, Error *err) {
    double before = t->progress.best_val_loss;
    bool best = note_progress(t, has_val);
    if (!checkpoint_step(&t->checkpoint, t->progress.step, asked, best, votes, err)) return false;
    if (t->checkpoint.pending != t->progress.step) t->progress.best_val_loss = before;
    return true;
}

bool trainer_save(Trainer *t, bool has_val, Error *err) {
    bool best = note_progress(t, has_val);
    return checkpoint_finish(&t->checkpoint, t->progress.step, best, err);
}

/* Compared before the weights are read, whose sizes it decides. */
static bool check_same_model(const Trainer *t, GPT2Config held, Error *err) {
    held.window = t->model.config.window; /* may change in the middle of a run */
    if (!memcmp(&held, &t->model.config, sizeof held)) return true;
    return error_set(err,
                     "%s: holds another model: %d layers, %d heads, %d channels, context %d, vocabulary %d "
                     "(give the same options, another --run, or --resume=never)",
                     t->options->run, held.layers, held.heads, held.channels, held.context, held.vocab);
}

/* *found false: the run has no checkpoint. */
static bool resume(Trainer *t, bool *found, Error *err) {
    GPT2Config held = {0}, config = t->model.config;
    if (!checkpoint_peek(&t->checkpoint, "config", &held, sizeof held, found, err)) return false;
    if (*found && !check_same_model(t, held, err)) return false;
    if (!checkpoint_restore(&t->checkpoint, found, err)) return false;
    if (!*found) return true;
    t->model.config = config;
    t->optimizer.step = (int)t->progress.adamw_step;
    t->optimizer.master_is_set = t->optimizer.step > 0;
    if (t->progress.seed != (uint64_t)t->options->seed || t->progress.step_tokens != trainer_step_tokens(t))
        log_warn("%s was trained with seed %llu and %llu tokens a step, and goes on with %lld and %llu",
                 t->options->run, (unsigned long long)t->progress.seed,
                 (unsigned long long)t->progress.step_tokens, (long long)t->options->seed,
                 (unsigned long long)trainer_step_tokens(t));
    log_info("resumed     %s at step %lld, %llu tokens", t->options->run, (long long)t->progress.step,
             (unsigned long long)t->progress.tokens);
    return true;
}

static bool start_or_resume(Trainer *t, ModelSource *source, Error *err) {
    const Options *o = t->options;
    bool found = false;
    if (*o->run && strcmp(o->resume, "never") && !resume(t, &found, err)) return false;
    if (found) return true;
    if (!strcmp(o->resume, "must"))
        return error_set(err, "--resume=must: there is nothing to resume from in '%s'", o->run);
    if (source) return model_source_load(source, &t->model, err);
    gpt2_init_weights(&t->model, (uint64_t)o->seed);
    return true;
}

/* --- opening --- */

static bool open_checkpoint(Trainer *t, Error *err) {
    const Options *o = t->options;
    bool anew = !strcmp(o->resume, "never");
    if (t->rank == 0 && !anew && !checkpoint_check_place(o->run, o->staging, err)) return false;
    if (*o->staging)
        snprintf(t->staging, sizeof t->staging, "%s", o->staging);
    else if (!file_join(t->staging, o->run, CHECKPOINT_FOLDER, err))
        return false;
    CheckpointConfig config = {.staging = t->staging,
                               .remote = o->remote,
                               .io = o->checkpoint_io,
                               .policy = o->checkpoint_policy,
                               .keep = o->keep,
                               .keep_remote = o->keep_remote,
                               .drain_seconds = o->drain_seconds,
                               .upload_bytes_per_second = (uint64_t)(o->upload_rate * 1e6),
                               .failure_seconds = o->mtbf * 3600,
                               .tb_per_day = o->wear,
                               .anew = anew};
    size_t levels = t->parallel.reduce == REDUCE_EXACT ? t->parallel.blocks : 0;
    const CheckpointParts parts = {.model = &t->model,
                                   .parallel = &t->parallel,
                                   .optimizer = &t->optimizer,
                                   .states = {{"config", &t->model.config, sizeof t->model.config, false},
                                              {"progress", &t->progress, sizeof t->progress, false},
                                              {"exact_levels", t->parallel.levels, levels, true}},
                                   .num_states = 3};
    return checkpoint_every_parse(o->checkpoint_every, &config.every, err) &&
           checkpoint_open(&t->checkpoint, &config, &parts, err);
}

/* Inputs and targets of a batch. */
static size_t slot_tokens(const Trainer *t) {
    return 2 * t->B * t->T;
}

static bool allocate(Trainer *t, const GPT2Config *config, Error *err) {
    const Options *o = t->options;
    const AdamWConfig adamw = {(float)o->beta1, (float)o->beta2, (float)o->epsilon, (float)o->weight_decay,
                               (uint64_t)o->seed};
    size_t bytes = slot_tokens(t) * sizeof(int32_t);
    if (!gpt2_init(&t->model, config, t->B, t->T, presets_head_rows(o), presets_mode(o), err)) return false;
    int64_t micro_batches = (int64_t)t->micro_batches * t->size;
    if (!data_parallel_open(&t->parallel, t->comm, &t->model, reduce_of(o), micro_batches, err)) return false;
    if (!adamw_init(&t->optimizer, &adamw, t->parallel.shares, t->parallel.buckets, err)) return false;
    t->host_tokens = device_host_alloc(TRAINER_SLOTS * bytes);
    t->host_losses = device_host_alloc(TRAINER_SLOTS * t->B * t->T * sizeof(float));
    t->tokens = device_alloc(bytes);
    if (!t->host_tokens || !t->host_losses || !t->tokens)
        return error_set(err, "no memory for the batch of %zu bytes", bytes);
    t->targets = t->tokens + t->B * t->T;
    return true;
}

static Schedule schedule_of(const Options *o) {
    static const struct {
        const char *name;
        ScheduleKind kind;
    } kinds[] = {{"cosine", SCHEDULE_COSINE},
                 {"linear", SCHEDULE_LINEAR},
                 {"constant", SCHEDULE_CONSTANT},
                 {"wsd", SCHEDULE_WSD}};
    Schedule s = {SCHEDULE_COSINE,   o->learning_rate, o->final_fraction,
                  o->decay_fraction, o->warmup,        o->steps};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(o->schedule, kinds[i].name)) s.kind = kinds[i].kind;
    return s;
}

/* The best so far: other processes can only make it look worse than it is. */
static void measure_peak(Trainer *t, double seconds) {
    Precision precision = strcmp(t->options->precision, "bf16") ? PRECISION_FP32 : PRECISION_BF16;
    double flops = device_peak_flops(precision, seconds);
    if (flops > t->peak_flops) t->peak_flops = flops;
}

static bool open_all(Trainer *t, ModelSource *source, Error *err) {
    const Options *o = t->options;
    if (source && !check_init_sizes(o, &source->config, err)) return false;
    GPT2Config config = presets_config(o, 1, source ? &source->config : NULL);
    if (!gpt2_config_check(&config, err) || !choose_batch(t, &config, err) ||
        !open_train_data(t, (int)t->T, err) || !open_tokenizer(t, err))
        return false;
    int vocab = vocabulary(t);
    if (!source) config = presets_config(o, vocab, NULL);
    if (vocab > config.vocab)
        return error_set(
            err, "%s: has a vocabulary of %d, the model %s only %d (tokenize with the model's tokenizer)",
            o->train_data, vocab, o->init, config.vocab);
    if (!gpt2_config_check(&config, err)) return false;
    loader_set_vocab_size(t->train_loader, config.vocab);
    log_info("data        %llu tokens in %d file%s, %llu sequences of %zu an epoch",
             (unsigned long long)loader_tokens(t->train_loader), loader_shards(t->train_loader),
             loader_shards(t->train_loader) == 1 ? "" : "s",
             (unsigned long long)loader_samples(t->train_loader), t->T);
    log_info("model       %d layers, %d heads, %d channels, context %d, vocabulary %d: %.2f M parameters",
             config.layers, config.heads, config.channels, config.context, config.vocab,
             1e-6 * (double)gpt2_param_count(&config));
    log_info("batch       %zu x %zu tokens on each of %d rank%s, %d a step: %llu tokens; %zu rows of logits "
             "at once",
             t->B, t->T, t->size, t->size == 1 ? "" : "s", t->micro_batches,
             (unsigned long long)trainer_step_tokens(t), presets_head_rows(o));
    if (!check_memory(t, &config, err) || !allocate(t, &config, err) || !open_validation_data(t, err))
        return false;
    t->progress.val_loss = NAN;
    t->progress.best_val_loss = INFINITY;
    if (*o->run && !open_checkpoint(t, err)) return false;
    if (!start_or_resume(t, source, err)) return false;
    if (o->sample_every && t->tokenizer && t->rank == 0) {
        if (!generator_init(&t->generator, &t->model, WEIGHT_FP32, err)) return false;
        t->has_generator = true;
    }
    t->schedule = schedule_of(o);
    measure_peak(t, 0.1);
    return true;
}

/* Who asks for checkpoints on the command line and for no folder to save in would find nothing at the end. */
static bool check_run_given(const Options *o, Error *err) {
    const struct {
        OptionId id;
        const char *value;
    } needs_run[] = {{OPTION_checkpoint_every, o->checkpoint_every},
                     {OPTION_staging, o->staging},
                     {OPTION_remote, o->remote}};
    for (size_t i = 0; !*o->run && i < sizeof needs_run / sizeof *needs_run; i++) {
        bool asked = strcmp(needs_run[i].value, option_default(needs_run[i].id, COMMAND_TRAIN)) != 0;
        if (asked && o->source[needs_run[i].id] == SOURCE_FLAG)
            return error_set(err, "--%s: nothing is saved without --run (give --run FOLDER too)",
                             option_flag(needs_run[i].id).text);
    }
    return true;
}

bool trainer_open(Trainer *t, const Options *options, Comm *comm, Error *err) {
    *t = (Trainer){.options = options, .comm = comm, .rank = comm_rank(comm), .size = comm_size(comm)};
    if (!check_run_given(options, err) || !agree_on_options(options, comm, err)) return false;
    ModelSource source;
    bool given = *options->init;
    if (given && !model_source_open(&source, options->init, err)) return false;
    bool ok = open_all(t, given ? &source : NULL, err);
    if (given) model_source_close(&source);
    if (!ok) trainer_close(t);
    return ok;
}

void trainer_close(Trainer *t) {
    if (t->has_generator) generator_free(&t->generator);
    device_free(t->tokens, slot_tokens(t) * sizeof(int32_t));
    device_host_free(t->host_tokens, TRAINER_SLOTS * slot_tokens(t) * sizeof(int32_t));
    device_host_free(t->host_losses, TRAINER_SLOTS * t->B * t->T * sizeof(float));
    checkpoint_close(&t->checkpoint);
    adamw_free(&t->optimizer);
    data_parallel_close(&t->parallel);
    gpt2_free(&t->model);
    tokenizer_close(t->tokenizer);
    loader_close(t->val_loader);
    loader_close(t->train_loader);
    *t = (Trainer){0};
}

/* --- between steps --- */

bool trainer_load_batch(Trainer *t, int number, Error *err) {
    size_t n = t->B * t->T;
    int32_t *host = t->host_tokens + (size_t)(number % TRAINER_SLOTS) * slot_tokens(t);
    device_wait(t->marks[number % TRAINER_SLOTS]);
    uint64_t first = t->progress.samples + ((uint64_t)number * (uint64_t)t->size + (uint64_t)t->rank) * t->B;
    if (!loader_batch(t->train_loader, first, (int)t->B, host, host + n, err)) return false;
    device_write_later(t->tokens, host, slot_tokens(t) * sizeof(int32_t));
    return true;
}

void trainer_keep_losses(Trainer *t, int number) {
    int slot = number % TRAINER_SLOTS;
    size_t n = t->B * t->T;
    device_read_later(t->host_losses + (size_t)slot * n, gpt2_acts(&t->model, 0).losses, n * sizeof(float));
    t->marks[slot] = device_mark();
}

double trainer_loss_sum(Trainer *t, int number) {
    int slot = number % TRAINER_SLOTS;
    size_t n = t->B * t->T;
    const float *losses = t->host_losses + (size_t)slot * n;
    double sum = 0;
    device_wait(t->marks[slot]);
    for (size_t i = 0; i < n; i++) sum += (double)losses[i];
    return sum;
}

bool trainer_evaluate(Trainer *t, double *loss, Error *err) {
    *loss = NAN;
    measure_peak(t, 0.02);
    if (!t->val_loader) return true;
    uint64_t batches = evaluate_batches(t->val_loader, t->B, t->options->eval_batches);
    ExactSum sum = {{0}};
    double total;
    for (uint64_t i = (uint64_t)t->rank; i < batches; i += (uint64_t)t->size) {
        double one = 0;
        if (!evaluate_batch(&t->model, t->val_loader, t->host_tokens, t->tokens, i, &one, err)) return false;
        exact_sum_add(&sum, one);
    }
    if (!data_parallel_sum(&t->parallel, &sum, &total, 1, err)) return false;
    *loss = total / ((double)batches * (double)(t->B * t->T));
    return true;
}

void trainer_show_sample(Trainer *t) {
    Error ignored; /* a failed wait is said by the next step */
    if (!t->has_generator || !data_parallel_wait(&t->parallel, &ignored)) return;
    const SampleConfig config = {.temperature = 0.8, .top_p = 1, .seed = (uint64_t)t->options->seed};
    generator_repack(&t->generator);
    printf("--- sample at step %lld ---\n", (long long)t->progress.step);
    sampling_write(&t->generator, t->tokenizer, NULL, 0, t->options->sample_tokens, &config,
                   (uint64_t)t->progress.step << 32);
    printf("\n---\n");
    fflush(stdout);
}
