/* hellaswag.c: see hellaswag.h. One question is one batch of four rows; rows are filled up with end-of-text, which
 * a causal model's earlier tokens do not see, and whose targets are not counted. */
#define _POSIX_C_SOURCE 200809L
#include "run/hellaswag.h"
#include "base/check.h"
#include "base/json.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENDINGS = 4, LINE_BYTES_MAX = 1 << 20 };

typedef struct {
    GPT2 *model;
    const Tokenizer *tokenizer;
    JsonDocument line;
    Tokens context, endings[ENDINGS];
    int32_t *host, *device; /* inputs and targets, (2,ENDINGS,T) */
    float *losses;          /* (ENDINGS,T) */
    size_t T_max;
} Question;

static bool encode_part(Question *q, const char *lead, const JsonNode *text, Tokens *out, Error *err) {
    out->count = 0;
    TokenEncoder *encoder = token_encoder_open(q->tokenizer, err);
    if (!encoder) return false;
    bool ok = token_encoder_feed(encoder, lead, strlen(lead), out, err) &&
              token_encoder_feed(encoder, text->text, text->bytes, out, err) &&
              token_encoder_finish(encoder, out, err);
    token_encoder_close(encoder);
    return ok;
}

/* Row r: context and ending, cut at the front to T + 1 tokens; only the ending's tokens are targets. Returns how
 * many those are. */
static size_t fill_row(Question *q, size_t r, size_t T) {
    const Tokens *tail = &q->endings[r];
    size_t ending = tail->count < T ? tail->count : T;
    size_t context = q->context.count < T + 1 - ending ? q->context.count : T + 1 - ending;
    int32_t *inputs = q->host + r * T, *targets = q->host + (ENDINGS + r) * T;
    for (size_t i = 0; i < T; i++) inputs[i] = tokenizer_end_of_text(q->tokenizer), targets[i] = -1;
    for (size_t i = 0; i < context + ending; i++) {
        int32_t id = i < context ? q->context.ids[q->context.count - context + i] : tail->ids[i - context];
        if (i < T) inputs[i] = id;
        if (i >= context && i > 0) targets[i - 1] = id;
    }
    return ending;
}

/* Rows as long as the longest needs, at most T_max. */
static size_t row_length(const Question *q) {
    size_t longest = 2;
    for (int r = 0; r < ENDINGS; r++)
        if (q->context.count + q->endings[r].count > longest)
            longest = q->context.count + q->endings[r].count;
    return longest - 1 < q->T_max ? longest - 1 : q->T_max;
}

/* The label, or -1 with err. */
static int ask(Question *q, const char *text, size_t bytes, double sums[ENDINGS], size_t lengths[ENDINGS],
               Error *err) {
    if (!json_parse(&q->line, text, bytes, err)) return -1;
    const JsonNode *root = q->line.nodes, *context = json_get(&q->line, root, "ctx");
    const JsonNode *label = json_get(&q->line, root, "label"), *endings = json_get(&q->line, root, "endings");
    bool good = context && context->type == JSON_STRING && label && label->is_int && label->integer >= 0 &&
                label->integer < ENDINGS && endings && endings->type == JSON_ARRAY &&
                endings->count == ENDINGS;
    if (!good) {
        error_set(err, "not a HellaSwag question (\"ctx\", \"label\" 0 to 3, four \"endings\")");
        return -1;
    }
    if (!encode_part(q, "", context, &q->context, err)) return -1;
    size_t r = 0;
    for (const JsonNode *e = json_first(&q->line, endings); e; e = json_next(&q->line, endings, e), r++) {
        if (e->type != JSON_STRING) {
            error_set(err, "ending %zu is not a string", r);
            return -1;
        }
        if (!encode_part(q, " ", e, &q->endings[r], err)) return -1;
    }
    size_t T = q->model->T = row_length(q);
    for (r = 0; r < ENDINGS; r++) lengths[r] = fill_row(q, r, T);
    device_write(q->device, q->host, 2 * ENDINGS * T * sizeof *q->host);
    gpt2_forward(q->model, q->device);
    gpt2_loss(q->model, q->device + ENDINGS * T, 0);
    device_read(q->losses, gpt2_acts(q->model, 0).losses, ENDINGS * T * sizeof *q->losses);
    for (r = 0; r < ENDINGS; r++) {
        sums[r] = 0;
        for (size_t i = 0; i < T; i++) sums[r] += (double)q->losses[r * T + i];
    }
    return (int)label->integer;
}

static int lowest(const double values[ENDINGS]) {
    int best = 0;
    for (int r = 1; r < ENDINGS; r++)
        if (values[r] < values[best]) best = r;
    return best;
}

static bool ask_all(Question *q, FILE *file, char *line, const char *path, int most, HellaswagResult *result,
                    Error *err) {
    for (int number = 1; (!most || result->questions < most) && fgets(line, LINE_BYTES_MAX, file); number++) {
        size_t bytes = strlen(line), lengths[ENDINGS];
        double sums[ENDINGS], means[ENDINGS];
        Error why;
        if (bytes <= 1) continue;
        int label = ask(q, line, bytes, sums, lengths, &why);
        if (label < 0) return error_set(err, "%s: line %d: %s", path, number, why.text);
        for (int r = 0; r < ENDINGS; r++) means[r] = sums[r] / (double)(lengths[r] ? lengths[r] : 1);
        result->questions++;
        result->right_by_sum += lowest(sums) == label;
        result->right_by_mean += lowest(means) == label;
        if (result->questions % 100 == 0)
            log_info("hellaswag   %d questions, %.2f%% right", result->questions,
                     100.0 * result->right_by_mean / result->questions);
    }
    if (ferror(file)) return error_set_errno(err, "%s: cannot be read", path);
    return result->questions || error_set(err, "%s: holds no questions", path);
}

bool hellaswag_run(GPT2 *m, const Tokenizer *tokenizer, const char *path, int questions_max,
                   HellaswagResult *result, Error *err) {
    CHECK_OP(m->B, ==, ENDINGS);
    Question q = {.model = m, .tokenizer = tokenizer, .T_max = m->T};
    size_t n = 2 * ENDINGS * q.T_max;
    bool ok = false;
    *result = (HellaswagResult){0};
    char *line = malloc(LINE_BYTES_MAX);
    FILE *file = fopen(path, "r");
    q.host = malloc(n * sizeof *q.host);
    q.losses = malloc(n / 2 * sizeof *q.losses);
    q.device = device_alloc(n * sizeof *q.device);
    if (!file)
        error_set_errno(err, "%s: cannot be opened", path);
    else if (!line || !q.host || !q.losses || !q.device)
        error_set(err, "hellaswag: no memory");
    else
        ok = ask_all(&q, file, line, path, questions_max, result, err);
    if (file) fclose(file);
    free(line);
    free(q.host);
    free(q.losses);
    free(q.context.ids);
    for (int r = 0; r < ENDINGS; r++) free(q.endings[r].ids);
    device_free(q.device, n * sizeof *q.device);
    json_free(&q.line);
    m->T = q.T_max;
    return ok;
}
