/* ckpt_command.c: see ckpt_command.h: a table of actions, each on one place. */
#define _POSIX_C_SOURCE 200809L
#include "run/ckpt_command.h"
#include "base/log.h"
#include "base/machine.h"
#include "ckpt/ckpt_gc.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/drain.h"
#include "run/checkpoint.h"
#include "run/convert.h"
#include "run/model_file.h"
#include "run/progress.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* --- places --- */

typedef struct {
    char given[FILE_PATH_BYTES]; /* without @STEP */
    char path[FILE_PATH_BYTES];  /* for ckpt_reader_open */
    bool has_step;
    uint64_t step;
    CkptReader *reader;
    const CkptInfo *list; /* newest first */
    size_t count;
} Place;

static bool place_parse(Place *p, const char *text, Error *err) {
    *p = (Place){0};
    if (snprintf(p->given, sizeof p->given, "%s", text) >= (int)sizeof p->given)
        return error_set(err, "the name of a place is too long");
    char *at = strrchr(p->given, '@'), *end;
    if (at && isdigit((unsigned char)at[1])) {
        uint64_t step = strtoull(at + 1, &end, 10);
        if (!*end) {
            p->has_step = true;
            p->step = step;
            *at = 0;
        }
    }
    if (!model_source_checkpoints(p->given, p->path)) snprintf(p->path, sizeof p->path, "%s", p->given);
    return true;
}

static bool place_open(Place *p, const char *text, Error *err) {
    if (!place_parse(p, text, err) || !ckpt_reader_open(&p->reader, p->path, err)) return false;
    p->count = ckpt_reader_list(p->reader, &p->list);
    return true;
}

static void place_close(Place *p) {
    ckpt_reader_close(p->reader);
    p->reader = NULL;
}

/* The checkpoint that the place names: that of its step, else the newest restorable one, else the newest. NULL with err
 * and *exit_code: there is none. */
static const CkptInfo *place_checkpoint(const Place *p, int *exit_code, Error *err) {
    const CkptInfo *newest = p->has_step || !p->count ? NULL : &p->list[0];
    for (size_t i = 0; i < p->count; i++)
        if (p->has_step ? p->list[i].id.step == p->step : p->list[i].state == CKPT_RESTORABLE)
            return &p->list[i];
    if (newest) return newest;
    *exit_code = EXIT_ABSENT;
    if (p->has_step)
        error_set(err, "%s: holds no checkpoint of step %llu ('ckpt ls %s' shows what it holds)", p->given,
                  (unsigned long long)p->step, p->given);
    else
        error_set(err, "%s: holds no checkpoints (name a run folder, a staging folder or s3://bucket/prefix)",
                  p->given);
    return NULL;
}

static const char *state_name(CkptState state) {
    return state == CKPT_RESTORABLE ? "restorable" : state == CKPT_INCOMPLETE ? "incomplete" : "corrupt";
}

static bool check_restorable(const Place *p, const CkptInfo *info, int *exit_code, Error *err) {
    if (info->state == CKPT_RESTORABLE) return true;
    *exit_code = info->state == CKPT_CORRUPT ? EXIT_CORRUPT : EXIT_INCOMPLETE;
    return error_set(err, "%s, step %llu: %s: %s", p->given, (unsigned long long)info->id.step,
                     state_name(info->state), info->why);
}

static void show_progress(double done) {
    static bool shown;
    if (!isatty(STDERR_FILENO)) return;
    int width = 40, full = (int)(done * width);
    if (done >= 1 && !shown) return;
    shown = done < 1;
    fprintf(stderr, "\r  %.*s%.*s %3.0f%%%s", full, "########################################", width - full,
            "........................................", 100 * done, done < 1 ? "" : "\n");
}

/* --- ls --- */

static void print_info(const CkptInfo *i) {
    char bytes[PROGRESS_NUMBER_BYTES], when[32] = "", marks[64];
    time_t seconds = (time_t)i->unix_seconds;
    struct tm tm;
    if (i->unix_seconds && localtime_r(&seconds, &tm)) strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(marks, sizeof marks, "%s%s%s", i->committed ? " committed" : "", i->uploaded ? " uploaded" : "",
             i->pinned ? " pinned" : "");
    printf("%10llu %8u  %-10s %4d/%-4d %8llu %10s  %-19s %s%s%s\n", (unsigned long long)i->id.step,
           i->id.attempt, state_name(i->state), i->writers_present, i->writers,
           (unsigned long long)i->tensors, progress_bytes(i->bytes, bytes), when, *marks ? marks + 1 : "",
           *i->why ? "; " : "", i->why);
}

static bool list_action(const Options *o, int *exit_code, Error *err) {
    Place p;
    if (!place_open(&p, o->arguments[1], err)) return false;
    if (p.count)
        printf("%10s %8s  %-10s %9s %8s %10s  %-19s %s\n", "step", "attempt", "state", "writers", "tensors",
               "bytes", "saved", "marks");
    else
        *exit_code = EXIT_ABSENT;
    for (size_t i = 0; i < p.count; i++)
        if (!p.has_step || p.list[i].id.step == p.step) print_info(&p.list[i]);
    if (!p.count) log_info("%s: no checkpoints", p.given);
    place_close(&p);
    return true;
}

/* --- verify --- */

static bool verify_one(const Place *p, const CkptInfo *info, bool deep, int *exit_code, Error *err) {
    uint64_t bad = 0;
    if (!check_restorable(p, info, exit_code, err)) return false;
    if (deep && !ckpt_reader_verify(p->reader, info->id, &bad, show_progress, err)) {
        *exit_code = EXIT_CORRUPT;
        return bad > 1 ? error_set(err, "%s (and %llu more)", err->text, (unsigned long long)bad - 1) : false;
    }
    printf("step %llu: %s\n", (unsigned long long)info->id.step,
           deep ? "every byte is as it was written"
                : "all records and tables are whole (--deep reads the tensors too)");
    return true;
}

/* Of all that are there, unless a step is named. The exit code is that of the worst. */
static bool verify_action(const Options *o, int *exit_code, Error *err) {
    Place p;
    if (!place_open(&p, o->arguments[1], err)) return false;
    bool ok = true;
    const CkptInfo *named = place_checkpoint(&p, exit_code, err);
    if (!named) ok = false;
    for (size_t i = 0; named && i < p.count; i++) {
        Error why;
        int code = EXIT_DONE;
        if ((p.has_step && &p.list[i] != named) || verify_one(&p, &p.list[i], o->deep, &code, &why)) continue;
        if (!ok) log_warn("%s", err->text);
        ok = false;
        *err = why;
        if (*exit_code == EXIT_DONE || code == EXIT_CORRUPT) *exit_code = code;
    }
    place_close(&p);
    return ok;
}

/* --- restore: one checkpoint into the staging folder of a run, as one writer's --- */

enum { WAIT_SECONDS = 86400 };

static bool copy_checkpoint(Place *from, const CkptInfo *info, const char *staging, Error *err) {
    const CkptTensor *tensors;
    size_t count, bytes = 0, at = 0;
    CkptConfig config = {.directory = staging,
                         .node = "restored",
                         .io = "auto",
                         .size = 1,
                         .node_first = true,
                         .attempt = info->id.attempt,
                         .keep = 1,
                         .policy = CKPT_POLICY_LAZY};
    if (!ckpt_reader_run(from->reader, config.run) ||
        !ckpt_reader_tensors(from->reader, info->id, &tensors, &count, err))
        return false;
    for (size_t i = 0; i < count; i++)
        bytes += (tensors[i].present * ckpt_type_bytes(tensors[i].type) + 63) & ~(size_t)63;
    if (!machine_check_memory((double)bytes, machine_available_bytes(), "this checkpoint",
                              "restore it on a larger machine", err))
        return false;
    char *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    TensorView *views = calloc(count, sizeof *views);
    Ckpt *ckpt = NULL;
    bool ok = (memory && views) || error_set(err, "no memory for the checkpoint");
    for (size_t i = 0; ok && i < count; i++) {
        const CkptTensor *t = &tensors[i];
        TensorView *v = &views[i];
        *v = (TensorView){.type = t->type, .dims = t->dims, .end = t->present, .data = memory + at};
        memcpy(v->name, t->name, sizeof v->name);
        memcpy(v->shape, t->shape, sizeof v->shape);
        ok = ckpt_reader_read(from->reader, info->id, t->name, t->type, 0, t->present, memory + at, err);
        at += (t->present * ckpt_type_bytes(t->type) + 63) & ~(size_t)63;
        show_progress((double)(i + 1) / (double)count);
    }
    config.payload_bytes = bytes;
    config.views_max = (int)count;
    ok = ok && file_make_directory(staging, err) && ckpt_open(&ckpt, &config, err) &&
         ckpt_begin(ckpt, info->id.step, views, count, err);
    if (ok) {
        ckpt_wait(ckpt, WAIT_SECONDS);
        CkptStatus s = ckpt_status(ckpt);
        if (s.failed) ok = error_set(err, "%s", s.error.text);
    }
    if (ok) {
        ckpt_commit(ckpt, info->id.step, false);
        ckpt_wait(ckpt, WAIT_SECONDS);
    }
    ckpt_close(ckpt);
    free(views);
    free(memory);
    return ok;
}

static bool restore_action(const Options *o, int *exit_code, Error *err) {
    Place from;
    char staging[FILE_PATH_BYTES], there[FILE_PATH_BYTES];
    if (model_source_checkpoints(o->arguments[2], there))
        return error_set(err, "%s: holds checkpoints already (restore into a new run folder)",
                         o->arguments[2]);
    if (!file_join(staging, o->arguments[2], CHECKPOINT_FOLDER, err) ||
        !place_open(&from, o->arguments[1], err))
        return false;
    const CkptInfo *info = place_checkpoint(&from, exit_code, err);
    bool ok =
        info && check_restorable(&from, info, exit_code, err) && copy_checkpoint(&from, info, staging, err);
    if (ok)
        log_info("%s, step %llu -> %s ('train_gpt2 --run %s ...' goes on from it)", from.given,
                 (unsigned long long)info->id.step, o->arguments[2], o->arguments[2]);
    place_close(&from);
    return ok;
}

/* --- diff --- */

typedef struct {
    uint64_t elements, different;
    double largest;
} Difference;

static double element(const void *data, CkptType type, size_t i) {
    switch (type) {
    case CKPT_FP32: return (double)((const float *)data)[i];
    case CKPT_BF16: return (double)tensor_float_from_bf16(((const uint16_t *)data)[i]);
    case CKPT_INT32: return ((const int32_t *)data)[i];
    case CKPT_UINT8: return ((const uint8_t *)data)[i];
    }
    return 0;
}

static bool diff_tensor(Place p[2], const CkptInfo *const info[2], const CkptTensor *t, void *blocks[2],
                        Difference *d, Error *err) {
    enum { BLOCK = 4 << 20 };
    size_t size = ckpt_type_bytes(t->type);
    for (uint64_t at = 0; at < t->present; at += BLOCK) {
        size_t n = t->present - at < BLOCK ? (size_t)(t->present - at) : BLOCK;
        for (int k = 0; k < 2; k++)
            if (!ckpt_reader_read(p[k].reader, info[k]->id, t->name, t->type, at, at + n, blocks[k], err))
                return false;
        d->elements += n;
        if (!memcmp(blocks[0], blocks[1], n * size)) continue;
        for (size_t i = 0; i < n; i++) {
            if (!memcmp((char *)blocks[0] + i * size, (char *)blocks[1] + i * size, size)) continue;
            double by = fabs(element(blocks[0], t->type, i) - element(blocks[1], t->type, i));
            d->different++;
            if (!(by <= d->largest)) d->largest = by;
        }
    }
    return true;
}

static bool same_tensor(const CkptTensor *a, const CkptTensor *b) {
    return !strcmp(a->name, b->name) && a->type == b->type && a->dims == b->dims &&
           !memcmp(a->shape, b->shape, sizeof a->shape);
}

/* Both lists are sorted by name. Prints what differs; *differ counts tensors. */
static bool diff_tensors(Place p[2], const CkptInfo *const info[2], void *blocks[2], size_t *differ,
                         Error *err) {
    const CkptTensor *t[2];
    size_t count[2], i[2] = {0, 0};
    for (int k = 0; k < 2; k++)
        if (!ckpt_reader_tensors(p[k].reader, info[k]->id, &t[k], &count[k], err)) return false;
    while (i[0] < count[0] || i[1] < count[1]) {
        int order = i[0] == count[0] ? 1 : i[1] == count[1] ? -1 : strcmp(t[0][i[0]].name, t[1][i[1]].name);
        if (order != 0) {
            int k = order > 0;
            printf("%-32s only in %s\n", t[k][i[k]].name, p[k].given);
            i[k]++;
            ++*differ;
            continue;
        }
        Difference d = {0};
        const CkptTensor *a = &t[0][i[0]++], *b = &t[1][i[1]++];
        if (!same_tensor(a, b)) {
            printf("%-32s another type or shape\n", a->name);
            ++*differ;
            continue;
        }
        if (!diff_tensor(p, info, a, blocks, &d, err)) return false;
        if (d.different)
            printf("%-32s %llu of %llu elements differ, by %.3g at most\n", a->name,
                   (unsigned long long)d.different, (unsigned long long)d.elements, d.largest);
        *differ += d.different > 0;
    }
    return true;
}

static bool diff_action(const Options *o, int *exit_code, Error *err) {
    enum { BLOCK_BYTES = 16 << 20 };
    Place p[2] = {{.reader = NULL}, {.reader = NULL}};
    const CkptInfo *info[2];
    void *blocks[2] = {malloc(BLOCK_BYTES), malloc(BLOCK_BYTES)};
    size_t differ = 0;
    bool ok = (blocks[0] && blocks[1]) || error_set(err, "no memory to compare checkpoints");
    for (int k = 0; ok && k < 2; k++)
        ok = place_open(&p[k], o->arguments[1 + k], err) &&
             (info[k] = place_checkpoint(&p[k], exit_code, err)) &&
             check_restorable(&p[k], info[k], exit_code, err);
    ok = ok && diff_tensors(p, info, blocks, &differ, err);
    if (ok) {
        printf(differ ? "%zu tensors differ\n" : "the same\n", differ);
        *exit_code = differ ? EXIT_FAILED : EXIT_DONE;
    }
    for (int k = 0; k < 2; k++) {
        place_close(&p[k]);
        free(blocks[k]);
    }
    return ok;
}

/* --- export, marks --- */

static bool export_action(const Options *o, int *exit_code, Error *err) {
    Place p;
    if (!place_open(&p, o->arguments[1], err)) return false;
    const CkptInfo *info = place_checkpoint(&p, exit_code, err);
    bool ok = info && check_restorable(&p, info, exit_code, err);
    CkptId id = ok ? info->id : (CkptId){0};
    place_close(&p);
    return ok && convert_run(o, p.given, &id, o->arguments[2], err);
}

static bool mark_action(const Options *o, int *exit_code, Error *err) {
    Place p;
    if (!place_open(&p, o->arguments[1], err)) return false;
    const CkptInfo *info = place_checkpoint(&p, exit_code, err);
    bool pin = !strcmp(o->arguments[0], "pin");
    bool ok = info && (!pin || check_restorable(&p, info, exit_code, err)) &&
              ckpt_mark(p.path, info->id, pin ? CKPT_MARK_PIN : CKPT_MARK_UNPIN, err);
    if (ok)
        log_info("step %llu is %s%s", (unsigned long long)info->id.step,
                 pin ? "pinned: it is kept" : "not pinned in ", pin ? "" : p.given);
    place_close(&p);
    return ok;
}

/* --- drain --- */

static bool drain_action(const Options *o, int *exit_code, Error *err) {
    Place p;
    if (!*o->remote) {
        *exit_code = EXIT_USAGE;
        return error_set(err, "ckpt drain: where to? (give --remote s3://bucket/prefix or a folder)");
    }
    if (!place_open(&p, o->arguments[1], err)) return false;
    bool any = place_checkpoint(&p, exit_code, err) != NULL;
    place_close(&p);
    if (!any) return false;
    const DrainConfig config = {.directory = p.path,
                                .place = o->remote,
                                .store = {.bytes_per_second_max = (uint64_t)(o->upload_rate * 1e6)},
                                .all = true,
                                .keep_remote = o->keep_remote};
    Drain *drain;
    if (!drain_open(&drain, &config, err)) return false;
    DrainStatus s = {0};
    uint64_t all = 0;
    while (!drain_wait(drain, 0.2) && !s.failing && !s.corrupt) {
        s = drain_status(drain);
        if (s.behind_bytes > all) all = s.behind_bytes;
        if (all) show_progress(1 - (double)s.behind_bytes / (double)all);
    }
    s = drain_status(drain);
    if (!drain_close(drain, 0) && s.failing) return error_set(err, "%s", s.error.text);
    if (s.corrupt) *exit_code = EXIT_CORRUPT;
    log_info("%s: %llu checkpoints uploaded, %.1f MB", o->remote, (unsigned long long)s.uploaded_checkpoints,
             1e-6 * (double)s.uploaded_bytes);
    return s.corrupt ? error_set(err, "%s: %llu checkpoints here are corrupt, and were not uploaded", p.given,
                                 (unsigned long long)s.corrupt)
                     : true;
}

/* --- gc --- */

static void say_gone(void *ctx, CkptId id, const char *why) {
    const bool *dry_run = ctx;
    printf("step %llu (attempt %u): %s: %s\n", (unsigned long long)id.step, id.attempt, why,
           *dry_run ? "would go" : "gone");
}

/* What a run that is under way would keep is kept by the same rule; only for folders that nobody writes to. */
static bool gc_action(const Options *o, int *exit_code, Error *err) {
    enum { ORPHAN_SECONDS = 86400 }; /* an upload that is still under way is younger */
    Place p;
    CkptGcResult r;
    bool dry_run = o->dry_run;
    char bytes[PROGRESS_NUMBER_BYTES];
    if (!place_open(&p, o->arguments[1], err)) return false;
    bool any = place_checkpoint(&p, exit_code, err) != NULL;
    place_close(&p);
    if (!any) return false;
    if (p.has_step) {
        *exit_code = EXIT_USAGE;
        return error_set(err, "ckpt gc: takes a place without @STEP (--keep says how many stay)");
    }
    const CkptGcConfig config = {.place = p.path,
                                 .keep = o->keep,
                                 .dry_run = dry_run,
                                 .has_store = *o->remote != 0,
                                 .orphan_seconds = ORPHAN_SECONDS,
                                 .each = say_gone,
                                 .ctx = &dry_run};
    bool ok = ckpt_gc(&config, &r, err);
    printf("%llu checkpoints, %llu files, %s %s\n", (unsigned long long)r.checkpoints,
           (unsigned long long)r.files, progress_bytes(r.bytes, bytes), dry_run ? "would go" : "are gone");
    if (r.orphans) printf("%d unfinished uploads were ended\n", r.orphans);
    if (r.held) printf("%llu files stay while somebody reads them\n", (unsigned long long)r.held);
    return ok;
}

/* --- the table --- */

static const struct {
    const char *name;
    int arguments; /* with the action */
    const char *usage, *what;
    bool (*run)(const Options *o, int *exit_code, Error *err);
} actions[] = {
    {"ls", 2, "ls PLACE", "what is there, newest first, and whether it can be restored", list_action},
    {"verify", 2, "verify PLACE[@STEP] [--deep]", "check records and tables, or every byte", verify_action},
    {"restore", 3, "restore PLACE[@STEP] RUN", "copy a checkpoint into a new run folder", restore_action},
    {"export", 3, "export PLACE[@STEP] OUT [--format llmc|safetensors] [--dtype fp32|bf16]",
     "write its weights as a model", export_action},
    {"diff", 3, "diff PLACE[@STEP] PLACE[@STEP]", "which tensors differ, and by how much (exit code 1)",
     diff_action},
    {"pin", 2, "pin PLACE[@STEP]", "keep it whatever --keep says", mark_action},
    {"unpin", 2, "unpin PLACE[@STEP]", "let it go when its time comes", mark_action},
    {"drain", 2, "drain PLACE --remote s3://bucket/prefix", "copy to a store what it lacks", drain_action},
    {"gc", 2, "gc PLACE [--keep N] [--dry-run]",
     "let go of all but the newest N, pinned and best ones, and of leftovers; no run may write there",
     gc_action},
};

bool ckpt_command_run(const Options *o, int *exit_code, Error *err) {
    const char *name = o->num_arguments ? o->arguments[0] : "help";
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        if (strcmp(name, actions[i].name) != 0) continue;
        if (o->num_arguments == actions[i].arguments) return actions[i].run(o, exit_code, err);
        *exit_code = EXIT_USAGE;
        return error_set(err, "usage: train_gpt2 ckpt %s", actions[i].usage);
    }
    if (!strcmp(name, "help")) {
        for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
            printf("  train_gpt2 ckpt %s\n      %s\n", actions[i].usage, actions[i].what);
        printf("PLACE: a run folder, a staging folder, a store's folder, or s3://bucket/prefix\n"
               "exit codes: 0 done, 1 failed or different, 2 usage, 3 corrupt, 4 incomplete, 5 absent\n");
        return true;
    }
    *exit_code = EXIT_USAGE;
    return error_set(err, "ckpt %s: no such action ('train_gpt2 ckpt help' lists them)", name);
}
