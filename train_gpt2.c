/* train_gpt2.c: GPT-2 training: main, the subcommands, and the training loop.
 *
 * This is the only place that decides when something happens. What a step computes is in llmc/model/gpt2.c, what a
 * run holds in llmc/run/trainer.c, every option in llmc/base/option_table.h. */
#include "base/file.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/options.h"
#include "comm/control.h"
#include "model/kernels.h"
#include "run/ckpt_command.h"
#include "run/convert.h"
#include "run/device_comm.h"
#include "run/doctor.h"
#include "run/evaluate.h"
#include "run/metrics.h"
#include "run/plot.h"
#include "run/presets.h"
#include "run/progress.h"
#include "run/run_lock.h"
#include "run/sampling.h"
#include "run/signals.h"
#include "run/tokenize.h"
#include "run/trainer.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* After a failure of another rank, a rank that does not come out of its computation ends without it. */
static const double FAILURE_GRACE_SECONDS = 0.3;
/* By then that one, too, has said so. */
static const double LINGER_SECONDS = 0.4;

/* --- one step --- */

/* What the ranks sum at the end of a step: losses, squared norm, whether any was asked to save or stop, and the votes on
 * checkpoints. */
enum { SUM_LOSS, SUM_NORM, SUM_SAVE, SUM_STOP, SUM_WRITING, SUM_FAILED, SUM_DUE, NUM_SUMS };

/* The gradients of one total batch, summed over its micro-batches; again, alike on all ranks: data_parallel_finish. The
 * losses of each are read when the next has been launched, so that the device never waits for the host. */
static bool compute_batches(Trainer *t, ExactSum *loss, bool *again, Error *err) {
    float weight = 1.0f / (float)trainer_step_tokens(t);
    *loss = (ExactSum){{0}};
    for (int i = 0; i < t->micro_batches; i++) {
        if (!trainer_load_batch(t, i, err)) return false;
        gpt2_forward(&t->model, t->tokens);
        gpt2_loss(&t->model, t->targets, weight);
        trainer_keep_losses(t, i);
        if (i + 1 == t->micro_batches) data_parallel_reduce_next(&t->parallel);
        gpt2_backward(&t->model, t->tokens);
        if (i) exact_sum_add(loss, trainer_loss_sum(t, i - 1));
    }
    exact_sum_add(loss, trainer_loss_sum(t, t->micro_batches - 1));
    return data_parallel_finish(&t->parallel, again, err);
}

/* The same, over all ranks; leaves the sums of all ranks in sums. */
static bool compute_gradients(Trainer *t, double sums[NUM_SUMS], Error *err) {
    ExactSum exact[NUM_SUMS] = {{{0}}};
    bool again = true;
    while (again)
        if (!compute_batches(t, &exact[SUM_LOSS], &again, err)) return false;
    data_parallel_norm_squared(&t->parallel, &exact[SUM_NORM]);
    exact_sum_add(&exact[SUM_SAVE], signals_save());
    exact_sum_add(&exact[SUM_STOP], signals_stop() != NULL);
    CheckpointVote vote = checkpoint_vote(&t->checkpoint);
    exact_sum_add(&exact[SUM_WRITING], vote.writing);
    exact_sum_add(&exact[SUM_FAILED], vote.failed);
    exact_sum_add(&exact[SUM_DUE], vote.due);
    return data_parallel_sum(&t->parallel, exact, sums, NUM_SUMS, err);
}

/* Is this step so unusual that it would do harm? A loss or norm that is not finite always is. */
static bool is_outlier(Trainer *t, StepResult *r) {
    const Options *o = t->options;
    r->loss_z = outlier_score(&t->progress.loss, r->loss);
    r->norm_z = outlier_score(&t->progress.norm, r->norm);
    return !isfinite(r->loss) || !isfinite(r->norm) || (o->skip_loss_z > 0 && r->loss_z > o->skip_loss_z) ||
           (o->skip_grad_z > 0 && r->norm_z > o->skip_grad_z);
}

static bool train_step(Trainer *t, StepResult *r, Error *err) {
    const Options *o = t->options;
    GPT2 *m = &t->model;
    double start = log_seconds(), sums[NUM_SUMS] = {0};
    *r = (StepResult){.learning_rate = schedule_learning_rate(&t->schedule, (int)t->progress.step)};
    if (!compute_gradients(t, sums, err)) return false;
    r->loss = sums[SUM_LOSS] / (double)trainer_step_tokens(t);
    r->norm = sqrt(sums[SUM_NORM]);
    r->save = sums[SUM_SAVE] > 0;
    r->stop = sums[SUM_STOP] > 0;
    r->votes = (CheckpointVote){sums[SUM_WRITING], sums[SUM_FAILED], sums[SUM_DUE]};
    r->skipped = is_outlier(t, r);
    if (r->skipped) {
        device_zero(m->grads, m->param_count * sizeof(floatX));
        t->progress.skipped++;
    } else {
        double clip = o->grad_clip > 0 && r->norm > o->grad_clip ? o->grad_clip / r->norm : 1;
        checkpoint_fence(&t->checkpoint);
        adamw_update(&t->optimizer, m, r->learning_rate, clip);
        data_parallel_gather(&t->parallel);
    }
    r->seconds = log_seconds() - start;
    t->progress.step++;
    t->progress.samples += trainer_step_tokens(t) / t->T;
    t->progress.tokens += trainer_step_tokens(t);
    t->progress.seconds += r->seconds;
    comm_set_step(t->comm, t->progress.step);
    return true;
}

/* A run whose steps are all unusable will not recover. */
static bool check_usable(Trainer *t, const StepResult *r, Error *err) {
    enum { UNUSABLE_MAX = 100 };
    t->progress.unusable = isfinite(r->loss) && isfinite(r->norm) ? 0 : t->progress.unusable + 1;
    if (t->progress.unusable < UNUSABLE_MAX) return true;
    return error_set(
        err,
        "step %lld: loss %g, gradient norm %g: not finite for %d steps in a row (lower --learning-rate, "
        "raise --warmup, or go back to an earlier model)",
        (long long)t->progress.step, r->loss, r->norm, UNUSABLE_MAX);
}

/* --- the loop --- */

/* What the loop reports to: the terminal, and the files of the run folder. */
typedef struct {
    Progress progress;
    Metrics metrics;
    RunLock lock;
    bool has_files;
} Report;

static bool report_open(Report *report, const Trainer *t, Error *err) {
    const Options *o = t->options;
    char path[FILE_PATH_BYTES];
    report->has_files = *o->run && t->rank == 0;
    progress_open(&report->progress, stdout, o->color);
    if (!report->has_files) return true;
    if (!file_make_directory(o->run, err) || !run_lock_take(&report->lock, o->run, err)) return false;
    if (!file_join(path, o->run, "config.txt", err) || !options_save(o, path, err)) return false;
    if (!file_join(path, o->run, "tokenizer", err)) return false;
    if (t->tokenizer && !tokenizer_save(t->tokenizer, path, err)) return false;
    return metrics_open(&report->metrics, o->run, t->progress.step, err);
}

static bool report_step(Report *report, const Trainer *t, const StepResult *r, bool has_val, Error *err) {
    const Options *o = t->options;
    double tokens = (double)trainer_step_tokens(t);
    double flops = gpt2_flops_per_token(&t->model.config, t->T) * tokens;
    const ProgressStep line = {.step = t->progress.step,
                               .steps = o->steps,
                               .tokens = (int64_t)t->progress.tokens,
                               .has_loss = true,
                               .has_val = has_val,
                               .skipped = r->skipped,
                               .loss = r->loss,
                               .val_loss = t->progress.val_loss,
                               .norm = r->norm,
                               .learning_rate = r->learning_rate,
                               .step_seconds = r->seconds,
                               .seconds = t->progress.seconds,
                               .tokens_per_second = tokens / r->seconds,
                               .mfu = flops / r->seconds / (t->peak_flops * t->size),
                               .memory_bytes = (uint64_t)device_peak_bytes()};
    bool print = has_val || t->progress.step % o->log_every == 0 || t->progress.step == o->steps;
    progress_step(&report->progress, &line, print && !o->quiet && t->rank == 0);
    return !report->has_files || metrics_step(&report->metrics, &line, err);
}

/* The last save of a run. The metrics are made durable first, so that the step has its line. */
static bool save(Trainer *t, Report *report, bool has_val, Error *err) {
    comm_hold(t->comm, true);
    bool ok = (!report->has_files || metrics_sync(&report->metrics, err)) && trainer_save(t, has_val, err);
    comm_hold(t->comm, false);
    return ok;
}

static bool due(int64_t step, int every) {
    return every > 0 && step % every == 0;
}

/* A rank alone that cannot go on, for its data or its record, still has what it learned until now. Of several ranks the
 * others are in the middle of the next step. */
static bool save_and_fail(Trainer *t, int64_t first_step) {
    Error also;
    if (t->size > 1 || !*t->options->run || t->progress.step == first_step) return false;
    if (trainer_save(t, false, &also))
        log_warn("cannot go on after step %lld, which is saved", (long long)t->progress.step);
    return false;
}

static bool train_loop(Trainer *t, Report *report, int *exit_code, Error *err) {
    const Options *o = t->options;
    int64_t first = t->progress.step;
    while (t->progress.step < o->steps) {
        StepResult r;
        if (!train_step(t, &r, err)) return save_and_fail(t, first);
        int64_t step = t->progress.step;
        bool last = step == o->steps || r.stop;

        bool has_val = t->val_loader && (due(step, o->eval_every) || step == o->steps);
        if (has_val && !trainer_evaluate(t, &t->progress.val_loss, err)) return save_and_fail(t, first);
        if (!report_step(report, t, &r, has_val, err)) return save_and_fail(t, first);
        if (!check_usable(t, &r, err)) return false;
        if (due(step, o->sample_every)) trainer_show_sample(t);
        if (last ? !save(t, report, has_val, err) : !trainer_checkpoint(t, r.save, has_val, &r.votes, err))
            return false;
        if (r.stop) {
            const char *signal = signals_stop();
            log_info("%s: stopped after step %lld%s", signal ? signal : "signal to another rank",
                     (long long)step,
                     *o->run ? "; saved, and the same command goes on from here"
                             : "; nothing was saved (no --run)");
            *exit_code = *o->run ? EXIT_STOPPED_AND_SAVED : EXIT_FAILED;
            return true;
        }
    }
    return true;
}

static bool train_ranks(const Options *o, Comm *comm, const ControlPlace *place, int *exit_code, Error *err) {
    Trainer t;
    Report report = {.lock = {-1}};
    if (*o->run && comm_rank(comm) == 0 && !run_lock_take(&report.lock, o->run, err)) return false;
    if (!trainer_open(&t, o, comm, err)) {
        run_lock_release(&report.lock);
        return false;
    }
    signals_install(!strcmp(place->launcher, "mpirun"));
    bool ok = true, done = t.progress.step && t.progress.step >= o->steps;
    if (done) /* and the files of the run stay as they are */
        log_info("nothing to do: %s has done %lld of %d steps", o->run, (long long)t.progress.step, o->steps);
    else
        ok = trainer_start_saving(&t, err) && report_open(&report, &t, err) &&
             train_loop(&t, &report, exit_code, err);
    if (t.rank == 0) progress_sparkline(&report.progress);
    if (t.parallel.repeats)
        log_info("exact sums  %lld steps were computed twice: the grids had not suited the gradients",
                 (long long)t.parallel.repeats);
    checkpoint_report(&t.checkpoint);
    metrics_close(&report.metrics);
    trainer_close(&t);
    run_lock_release(&report.lock);
    return ok;
}

/* Another rank has failed while this one computes for long. */
static void end_process(const char *line) {
    fprintf(stderr, "error: %s\n", line);
    control_linger(LINGER_SECONDS);
    _exit(EXIT_FAILED);
}

/* The ranks that were launched together train one model; if one fails, all do. */
static bool train(const Options *o, const ControlPlace *place, int *exit_code, Error *err) {
    const CommConfig config = {.backend = o->comm,
                               .topology = o->topology,
                               .timeout_seconds = o->comm_timeout,
                               .memory = device_comm_memory()};
    Comm *comm;
    if (!comm_open(&comm, &config, err)) return false;
    comm_watch(comm, FAILURE_GRACE_SECONDS, end_process);
    bool ok = train_ranks(o, comm, place, exit_code, err);
    if (!ok) comm_abort(comm, err->text);
    comm_close(comm);
    return ok;
}

/* --- the program --- */

static bool tokenize(const Options *o, Error *err) {
    const char *const *inputs = (const char *const *)o->arguments;
    size_t count = (size_t)o->num_arguments;
    if (o->decode) {
        bool given = o->source[OPTION_tokenizer] != SOURCE_DEFAULT;
        return tokenize_decode(inputs, count, given ? o->tokenizer : NULL, err);
    }
    const TokenizeOptions options = {.inputs = inputs,
                                     .num_inputs = count,
                                     .output = o->output,
                                     .tokenizer = o->tokenizer,
                                     .train_bpe = o->train_bpe,
                                     .blank_line_documents = !strcmp(o->documents, "blank-line"),
                                     .val_fraction = o->val_fraction,
                                     .val_tokens = (uint64_t)o->val_tokens,
                                     .shard_tokens = (uint64_t)o->shard_tokens};
    return tokenize_run(&options, err);
}

static bool needs_device(const Options *o) {
    bool looks = o->command == COMMAND_CKPT && (!o->num_arguments || strcmp(o->arguments[0], "export") != 0);
    return o->command != COMMAND_TOKENIZE && o->command != COMMAND_PLOT && !looks;
}

static bool run_command(const Options *o, const ControlPlace *place, int *exit_code, Error *err) {
    DeviceConfig device = {o->threads ? o->threads : machine_threads(place->local_size),
                           strcmp(o->precision, "bf16") ? PRECISION_FP32 : PRECISION_BF16, o->isa};
    if (needs_device(o)) {
        if (!device_open(&device, err)) return false;
        if (o->command != COMMAND_DOCTOR) log_info("device      %s", device_describe());
        if (o->threads > machine_threads(1))
            log_warn("--threads %d: more than the %d processors there are for this process, which is slower",
                     o->threads, machine_threads(1));
    }
    switch (o->command) {
    case COMMAND_TRAIN: return train(o, place, exit_code, err);
    case COMMAND_SAMPLE: return sampling_run(o, err);
    case COMMAND_TOKENIZE: return tokenize(o, err);
    case COMMAND_EVAL: return evaluate_run(o, err);
    case COMMAND_CONVERT: return convert_run(o, o->arguments[0], NULL, o->arguments[1], err);
    case COMMAND_PLOT: return plot_run(o, err);
    case COMMAND_CKPT: return ckpt_command_run(o, exit_code, err);
    case COMMAND_DOCTOR: return doctor_run(o, err);
    default: return error_set(err, "no such command");
    }
}

/* What could not be written to stdout is an error, except while training, whose results are in the run folder. */
static int finish(const Options *o, int exit_code) {
    bool training = o->command == COMMAND_TRAIN && o->help == HELP_NONE && strcmp(o->preset, "list") != 0;
    if (!fflush(stdout) && !ferror(stdout)) return exit_code;
    if (training) {
        log_warn("stdout: could not be written; %s",
                 *o->run ? "all is in metrics.jsonl" : "lines are missing");
        return exit_code;
    }
    fprintf(stderr, "error: stdout: cannot be written (is the disk full?)\n");
    return exit_code == EXIT_DONE ? EXIT_FAILED : exit_code;
}

int main(int argc, char **argv) {
    static Options options; /* large: every string option is an array */
    Error err;
    ControlPlace place = {.size = 1, .local_size = 1};
    int exit_code = EXIT_DONE;
    machine_open_standard_files();
    machine_spin_briefly(argv);
    if (!options_parse(&options, argc, argv, &err)) {
        fprintf(stderr, "error: %s\n", err.text);
        return EXIT_USAGE;
    }
    if (options.help != HELP_NONE) {
        options_help(&options, stdout);
        return finish(&options, EXIT_DONE);
    }
    CheckpointEvery every;
    if (options.command == COMMAND_TRAIN &&
        (!control_place(&place, &err) || !checkpoint_every_parse(options.checkpoint_every, &every, &err))) {
        fprintf(stderr, "error: %s\n", err.text);
        return EXIT_USAGE;
    }
    log_open(place.rank, options.quiet);
    if (options.command == COMMAND_TRAIN) {
        if (!strcmp(options.preset, "list")) {
            presets_print(&options, stdout);
            return finish(&options, EXIT_DONE);
        }
        presets_apply(&options);
        if (!options.quiet && place.rank == 0) options_print(&options, false, stderr);
    }
    if (!run_command(&options, &place, &exit_code, &err)) {
        fflush(stdout);
        fprintf(stderr, "error: %s\n", err.text);
        if (options.command == COMMAND_TRAIN) control_linger(LINGER_SECONDS);
        return exit_code == EXIT_DONE ? EXIT_FAILED : exit_code;
    }
    return finish(&options, exit_code);
}
