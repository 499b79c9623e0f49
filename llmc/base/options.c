/* options.c: the table at run time, and what reads values into it: flags, environment, configuration files, presets.
 * Every value, wherever it comes from, passes through set_value: checked once, in one place, with one message. */
#define _POSIX_C_SOURCE 200809L
#include "base/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

enum {
#define X(NAME, ...) NAME = 1 << COMMAND_##NAME,
    OPTION_COMMANDS(X)
#undef X
        EVERY = (1 << NUM_COMMANDS) - 1
};

#define X(type, field, letter, value, min, max, unit, commands, group, choices, help)                        \
    {TYPE_##type, #field,   letter,        value,   min,  max,                                               \
     unit,        commands, GROUP_##group, choices, help, offsetof(Options, field)},
const OptionRow option_rows[NUM_OPTIONS] = {OPTION_TABLE(X)};
#undef X

#define X(NAME, name, arguments, min, max, summary) {#name, arguments, min, max, summary},
const CommandRow option_commands[NUM_COMMANDS] = {OPTION_COMMANDS(X)};
#undef X

static const struct {
    Command command;
    OptionId id;
    const char *value;
} command_defaults[] = {
#define X(NAME, field, value) {COMMAND_##NAME, OPTION_##field, value},
    OPTION_COMMAND_DEFAULTS(X)
#undef X
};

/* What people call some options elsewhere: only for hints, they are not accepted. */
static const char *const other_names[][2] = {{"lr", "learning-rate"},
                                             {"depth", "layers"},
                                             {"n-layer", "layers"},
                                             {"n-head", "heads"},
                                             {"n-embd", "channels"},
                                             {"width", "channels"},
                                             {"block-size", "context"},
                                             {"seq-len", "sequence"},
                                             {"max-steps", "steps"},
                                             {"max-iters", "steps"},
                                             {"iterations", "steps"},
                                             {"data", "train-data"},
                                             {"out-dir", "run"},
                                             {"output-dir", "run"},
                                             {"max-new-tokens", "tokens"},
                                             {"num-samples", "count"},
                                             {"start", "prompt"},
                                             {"dtype", "precision"},
                                             {"save-every", "checkpoint-every"},
                                             {"log-interval", "log-every"},
                                             {"eval-interval", "eval-every"},
                                             {"clip", "grad-clip"},
                                             {"min-lr", "final-fraction"},
                                             {"vocab-size", "train-bpe"}};

OptionFlag option_flag(OptionId id) {
    OptionFlag flag;
    size_t n = strlen(option_rows[id].name);
    CHECK_OP(n, <, sizeof flag.text);
    for (size_t i = 0; i <= n; i++)
        flag.text[i] = option_rows[id].name[i] == '_' ? '-' : option_rows[id].name[i];
    return flag;
}

static bool has_option(Command command, OptionId id) {
    return option_rows[id].commands >> command & 1;
}

const char *option_default(OptionId id, Command command) {
    for (size_t i = 0; i < sizeof command_defaults / sizeof *command_defaults; i++)
        if (command_defaults[i].command == command && command_defaults[i].id == id)
            return command_defaults[i].value;
    return option_rows[id].value;
}

/* ---- names, and what was meant ---- */

static char canonical(char c) {
    return c == '_' ? '-' : (char)tolower((unsigned char)c);
}

static bool same_name(const char *a, const char *b, size_t b_bytes) {
    for (size_t i = 0; i < b_bytes; i++)
        if (!a[i] || canonical(a[i]) != canonical(b[i])) return false;
    return !a[b_bytes];
}

/* The row of this name; NUM_OPTIONS if there is none. */
static OptionId find_name(const char *name, size_t bytes) {
    OptionId id = 0;
    while (id < NUM_OPTIONS && !same_name(option_rows[id].name, name, bytes)) id++;
    return id;
}

/* Edit distance with swaps of neighbours (optimal string alignment); large if either is long. */
static int distance(const char *a, const char *b) {
    enum { LENGTH_MAX = 40 };
    int row[3][LENGTH_MAX + 1], m = (int)strnlen(a, LENGTH_MAX + 1), n = (int)strnlen(b, LENGTH_MAX + 1);
    if (m > LENGTH_MAX || n > LENGTH_MAX) return 1000;
    for (int j = 0; j <= n; j++) row[0][j] = j;
    for (int i = 1; i <= m; i++) {
        int *now = row[i % 3], *above = row[(i + 2) % 3], *above2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= n; j++) {
            bool same = canonical(a[i - 1]) == canonical(b[j - 1]);
            int best = above[j - 1] + !same;
            if (above[j] + 1 < best) best = above[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && canonical(a[i - 1]) == canonical(b[j - 2]) &&
                canonical(a[i - 2]) == canonical(b[j - 1]) && above2[j - 2] + 1 < best)
                best = above2[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[m % 3][n];
}

typedef struct {
    const char *wrong;
    char best[64];
    int distance;
} Guess;

static Guess guess_start(const char *wrong) {
    Guess guess = {wrong, "", strlen(wrong) < 5 ? 2 : 3}; /* only what is closer than this */
    return guess;
}

static void guess_consider(Guess *guess, const char *candidate) {
    int d = distance(guess->wrong, candidate);
    if (d >= guess->distance) return;
    guess->distance = d;
    snprintf(guess->best, sizeof guess->best, "%s", candidate);
}

static void guess_flag(Guess *guess, Command command) {
    for (size_t i = 0; i < sizeof other_names / sizeof *other_names; i++) {
        OptionId id = find_name(other_names[i][1], strlen(other_names[i][1]));
        if (strcmp(guess->wrong, other_names[i][0]) || !has_option(command, id)) continue;
        snprintf(guess->best, sizeof guess->best, "%s", other_names[i][1]);
        return;
    }
    for (OptionId id = 0; id < NUM_OPTIONS; id++)
        if (has_option(command, id)) guess_consider(guess, option_flag(id).text);
    guess_consider(guess, "help");
}

/* ---- values ---- */

/* The row's own string that equals text, or NULL. */
static const char *choice_find(const OptionRow *row, const char *text) {
    if (!*text && !*row->value) return ""; /* unset, where that is the default */
    for (const char *const *c = row->choices; *c; c++)
        if (same_name(*c, text, strlen(text))) return *c;
    return NULL;
}

void option_allowed(const OptionRow *row, char *out, size_t size) {
    size_t used = 0;
    switch (row->type) {
    case TYPE_BOOL: snprintf(out, size, "yes or no"); break;
    case TYPE_INT:
    case TYPE_INT64:
        snprintf(out, size, "%.0f to %.0f%s%s", row->min, row->max, *row->unit ? " " : "", row->unit);
        break;
    case TYPE_DOUBLE:
        snprintf(out, size, "%.9g to %.9g%s%s", row->min, row->max, *row->unit ? " " : "", row->unit);
        break;
    case TYPE_STRING: snprintf(out, size, "at most %d bytes", OPTION_STRING_BYTES - 1); break;
    case TYPE_CHOICE:
        used = (size_t)snprintf(out, size, "one of ");
        for (const char *const *c = row->choices; *c && used < size; c++)
            used += (size_t)snprintf(out + used, size - used, "%s%s", c == row->choices ? "" : ", ", *c);
    }
}

/* Decimal, or in the form 1e6 if that is whole and exact. */
static bool parse_integer(const char *text, int64_t *value) {
    char *end;
    errno = 0;
    long long whole = strtoll(text, &end, 10);
    if (!isspace((unsigned char)*text) && end != text && !*end && errno == 0) {
        *value = whole;
        return true;
    }
    size_t n = strspn(text, "+-0123456789.eE");
    double real = strtod(text, &end);
    if (!n || text[n] || end == text || *end || fabs(real) > 9007199254740992.0 || real != floor(real))
        return false;
    *value = (int64_t)real;
    return true;
}

static bool parse_real(const char *text, double *value) {
    char *end;
    size_t n = strspn(text, "+-0123456789.eE");
    *value = strtod(text, &end);
    return n && !text[n] && end != text && !*end && isfinite(*value);
}

static bool parse_bool(const char *text, bool *value) {
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on", "0", "1"};
    for (size_t i = 0; i < 8; i++)
        if (same_name(words[i], text, strlen(text))) {
            *value = i & 1;
            return true;
        }
    return false;
}

/* Stores text into the field, which has the row's type; false if it is not a value of this row. */
static bool store(const OptionRow *row, void *field, const char *text) {
    const char *choice = NULL;
    int64_t integer = 0;
    double real = 0;
    bool yes = false;
    switch (row->type) {
    case TYPE_BOOL:
        if (!parse_bool(text, &yes)) return false;
        *(bool *)field = yes;
        return true;
    case TYPE_INT:
    case TYPE_INT64:
        if (!parse_integer(text, &integer) || integer < (int64_t)row->min || integer > (int64_t)row->max)
            return false;
        if (row->type == TYPE_INT)
            *(int *)field = (int)integer;
        else
            *(int64_t *)field = integer;
        return true;
    case TYPE_DOUBLE:
        if (!parse_real(text, &real) || real < row->min || real > row->max) return false;
        *(double *)field = real;
        return true;
    case TYPE_STRING:
        if (strlen(text) >= OPTION_STRING_BYTES) return false;
        memcpy(field, text, strlen(text) + 1);
        return true;
    case TYPE_CHOICE:
        if (!(choice = choice_find(row, text))) return false;
        *(const char **)field = choice;
        return true;
    }
    return false;
}

/* True if text is a value of this row. `label` is how the user wrote the option. */
static bool check_value(OptionId id, const char *label, const char *text, Error *err) {
    union {
        bool yes;
        int64_t integer;
        double real;
        const char *choice;
        char text[OPTION_STRING_BYTES];
    } unused;
    const OptionRow *row = &option_rows[id];
    if (store(row, &unused, text)) return true;
    char allowed[256], hint[96] = "";
    double real;
    bool is_number = row->type == TYPE_INT || row->type == TYPE_INT64 || row->type == TYPE_DOUBLE;
    const char *kind = !is_number                                        ? ""
                       : !parse_real(text, &real)                        ? "a number, "
                       : row->type != TYPE_DOUBLE && real != floor(real) ? "a whole number, "
                                                                         : "";
    Guess guess = guess_start(text);
    for (const char *const *c = row->choices; c && *c; c++) guess_consider(&guess, *c);
    if (*guess.best) snprintf(hint, sizeof hint, " (did you mean %s?)", guess.best);
    option_allowed(row, allowed, sizeof allowed);
    return error_set(err, "%s: '%.60s%s' must be %s%s%s", label, text, strlen(text) > 60 ? "..." : "", kind,
                     allowed, hint);
}

/* Checks text and stores it unless a stronger source has spoken. */
static bool set_value(Options *o, OptionId id, OptionSource source, const char *label, const char *text,
                      Error *err) {
    if (!check_value(id, label, text, err)) return false;
    if (source < o->source[id]) return true;
    o->source[id] = (unsigned char)source;
    return store(&option_rows[id], (char *)o + option_rows[id].offset, text);
}

void options_default(Options *o, Command command) {
    Error err = {""};
    memset(o, 0, sizeof *o);
    o->command = command;
    for (OptionId id = 0; id < NUM_OPTIONS; id++) {
        bool ok = set_value(o, id, SOURCE_DEFAULT, option_rows[id].name, option_default(id, command), &err);
        if (!ok) fprintf(stderr, "option_table.h: %s\n", err.text);
        CHECK(ok);
    }
}

void options_apply_preset(Options *o, const OptionPreset *assignments) {
    Error err = {""};
    for (; assignments->name; assignments++) {
        OptionId id = find_name(assignments->name, strlen(assignments->name));
        bool ok =
            id < NUM_OPTIONS && set_value(o, id, SOURCE_PRESET, assignments->name, assignments->value, &err);
        if (!ok) fprintf(stderr, "preset: %s = %s: %s\n", assignments->name, assignments->value, err.text);
        CHECK(ok);
    }
}

/* ---- configuration file ---- */

static const char *skip_blanks(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r')) p++;
    return p;
}

/* The value in [p, end) without blanks, quotes and comment into out; NULL, or what is wrong with it. */
static const char *unquote(const char *p, const char *end, char out[OPTION_STRING_BYTES]) {
    static const char escapes[] = "nrt\"\\", meanings[] = "\n\r\t\"\\";
    size_t used = 0;
    p = skip_blanks(p, end);
    bool quoted = p < end && *p == '"', closed = false;
    if (quoted) p++;
    for (; p < end; p++) {
        char c = *p;
        if (quoted && c == '"') {
            closed = true;
            p = skip_blanks(p + 1, end);
            if (p < end && *p != '#') return "something stands behind the closing quote";
            break;
        }
        if (!quoted && c == '#' && (used == 0 || out[used - 1] == ' ' || out[used - 1] == '\t')) break;
        if (quoted && c == '\\') {
            const char *escape = p + 1 < end && p[1] ? strchr(escapes, p[1]) : NULL;
            if (!escape) return "bad escape (\\\" \\\\ \\n \\r \\t are known)";
            c = meanings[escape - escapes];
            p++;
        }
        if (!c) return "a NUL byte (is this a text file?)";
        if (used == OPTION_STRING_BYTES - 1) return "the value is too long";
        out[used++] = c;
    }
    if (quoted && !closed) return "the closing quote is missing";
    while (!quoted && used && isspace((unsigned char)out[used - 1])) used--;
    out[used] = 0;
    return NULL;
}

static bool read_config_line(Options *o, const char *file, int line, const char *p, const char *end,
                             Error *err) {
    char value[OPTION_STRING_BYTES], label[320], name[64];
    p = skip_blanks(p, end);
    if (p == end || *p == '#') return true;
    const char *equals = memchr(p, '=', (size_t)(end - p)), *name_end = equals;
    if (!equals) return error_set(err, "%s:%d: expected 'name = value'", file, line);
    while (name_end > p && isspace((unsigned char)name_end[-1])) name_end--;
    size_t bytes = (size_t)(name_end - p);
    snprintf(name, sizeof name, "%.*s", (int)(bytes < sizeof name ? bytes : sizeof name - 1), p);
    snprintf(label, sizeof label, "%.200s:%d: %s", file, line, name);
    OptionId id = find_name(p, bytes);
    if (id == NUM_OPTIONS) {
        Guess guess = guess_start(name);
        for (int c = 0; c < NUM_COMMANDS && !*guess.best; c++) guess_flag(&guess, (Command)c);
        const char *ask = *guess.best ? " (did you mean " : "", *mark = *guess.best ? "?)" : "";
        return error_set(err, "%s: unknown option%s%s%s", label, ask, guess.best, mark);
    }
    if (id == OPTION_config) return error_set(err, "%s: a configuration file cannot name another", label);
    const char *wrong = unquote(equals + 1, end, value);
    if (wrong) return error_set(err, "%s: %s", label, wrong);
    if (!has_option(o->command, id)) return check_value(id, label, value, err);
    return set_value(o, id, SOURCE_FILE, label, value, err);
}

bool options_read_config(Options *o, const char *name, const char *text, size_t bytes, Error *err) {
    const char *end = text + bytes;
    int line = 0;
    if (bytes >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) text += 3; /* what some editors put first */
    while (text < end) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        if (!stop) stop = end;
        if (!read_config_line(o, name, ++line, text, stop, err)) return false;
        text = stop < end ? stop + 1 : end;
    }
    return true;
}

static bool read_config_file(Options *o, Error *err) {
    char *text = NULL;
    size_t bytes = 0;
    if (!*o->config) return true;
    if (!file_read(o->config, OPTION_CONFIG_BYTES_MAX, &text, &bytes, err)) return false;
    bool ok = options_read_config(o, o->config, text, bytes, err);
    free(text);
    return ok;
}

/* ---- environment ---- */

static bool read_environment(Options *o, Error *err) {
    static const char prefix[] = "TOROID_";
    for (char **e = environ; e && *e; e++) {
        const char *name = *e + sizeof prefix - 1, *equals = strchr(*e, '=');
        if (strncmp(*e, prefix, sizeof prefix - 1) || !equals || equals < name || !equals[1]) continue;
        char label[80];
        snprintf(label, sizeof label, "%.*s", (int)(equals - *e < 79 ? equals - *e : 79), *e);
        OptionId id = find_name(name, (size_t)(equals - name));
        if (id == NUM_OPTIONS) { /* it may be another program's, so never an error */
            Guess guess = guess_start(label + sizeof prefix - 1);
            guess_flag(&guess, o->command);
            if (*guess.best && guess.distance < 2) log_warn("%s is not an option; %s is", label, guess.best);
        } else if (has_option(o->command, id)) {
            if (!set_value(o, id, SOURCE_ENV, label, equals + 1, err)) return false;
        }
    }
    return true;
}

/* ---- command line ---- */

static bool unknown_flag(const Options *o, const char *dashes, const char *name, Error *err) {
    Guess guess = guess_start(name);
    guess_flag(&guess, o->command);
    OptionId id = find_name(name, strlen(name));
    if (id < NUM_OPTIONS) {
        char owners[128] = "";
        for (int c = 0; c < NUM_COMMANDS; c++)
            if (has_option((Command)c, id))
                snprintf(owners + strlen(owners), sizeof owners - strlen(owners), "%s%s", *owners ? ", " : "",
                         option_commands[c].name);
        return error_set(err, "--%s is an option of %s, not of %s", option_flag(id).text, owners,
                         option_commands[o->command].name);
    }
    if (*guess.best)
        return error_set(err, "unknown flag %s%.60s (did you mean --%s?)", dashes, name, guess.best);
    return error_set(err, "unknown flag %s%.60s (see 'train_gpt2 %s --help')", dashes, name,
                     option_commands[o->command].name);
}

/* Reads the flag argv[*i], and argv[*i + 1] where its value stands there. */
static bool parse_flag(Options *o, int argc, char **argv, int *i, Error *err) {
    const char *arg = argv[*i], *value = NULL;
    char label[48];
    OptionId id = NUM_OPTIONS;
    bool negated = false, is_long = arg[1] == '-';
    if (is_long) {
        const char *name = arg + 2;
        size_t bytes = strcspn(name, "=");
        if (name[bytes] == '=') value = name + bytes + 1;
        id = find_name(name, bytes);
        if (id == NUM_OPTIONS && !strncmp(name, "no-", 3) && !value) {
            id = find_name(name + 3, bytes - 3);
            negated = id < NUM_OPTIONS && option_rows[id].type == TYPE_BOOL;
            if (!negated) id = NUM_OPTIONS;
        }
        if (id == NUM_OPTIONS || !has_option(o->command, id)) {
            char shown[64];
            snprintf(shown, sizeof shown, "%.*s", (int)(bytes < 63 ? bytes : 63), negated ? name + 3 : name);
            return unknown_flag(o, "--", shown, err);
        }
    } else {
        for (id = 0; id < NUM_OPTIONS && (option_rows[id].letter != arg[1] || !has_option(o->command, id));)
            id++;
        if (id == NUM_OPTIONS) return unknown_flag(o, "-", arg + 1, err);
        if (arg[2]) value = arg + 2 + (arg[2] == '=');
    }
    snprintf(label, sizeof label, "--%s", option_flag(id).text);
    if (option_rows[id].type == TYPE_BOOL && !value) value = negated ? "no" : "yes";
    if (!value) {
        char allowed[256];
        option_allowed(&option_rows[id], allowed, sizeof allowed);
        const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
        bool is_flag = next && next[0] == '-' && (next[1] == '-' || isalpha((unsigned char)next[1]));
        if (!next || is_flag) return error_set(err, "%s: needs a value, %s", label, allowed);
        value = argv[++*i];
    }
    return set_value(o, id, SOURCE_FLAG, label, value, err);
}

static bool find_command(Options *o, const char *word, Error *err) {
    Guess guess = guess_start(word);
    for (int c = 0; c < NUM_COMMANDS; c++) {
        if (!strcmp(word, option_commands[c].name)) {
            o->command = (Command)c;
            return true;
        }
        guess_consider(&guess, option_commands[c].name);
    }
    if (*guess.best) return error_set(err, "unknown command '%.60s' (did you mean '%s'?)", word, guess.best);
    return error_set(err, "unknown command '%.60s' (see 'train_gpt2 --help')", word);
}

/* Looks for --help among the flags; false with err if its form is unknown. */
static bool find_help(Options *o, int argc, char **argv, Error *err) {
    static const char *const forms[] = {"text", "man", "bash", "zsh"};
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help")) o->help = HELP_TEXT;
        if (strncmp(argv[i], "--help=", 7)) continue;
        for (int f = 0; f < 4; f++)
            if (!strcmp(argv[i] + 7, forms[f])) o->help = (OptionHelp)(HELP_TEXT + f);
        if (!o->help)
            return error_set(err, "--help: '%.60s' must be one of text, man, bash, zsh", argv[i] + 7);
    }
    return true;
}

static bool check_arguments(Options *o, Error *err) {
    const CommandRow *c = &option_commands[o->command];
    if (o->num_arguments > c->arguments_max) {
        bool takes_glob = has_option(o->command, OPTION_val_data);
        return error_set(err, "%s: unexpected argument '%.60s' (usage: train_gpt2 %s [options]%s%s%s)",
                         c->name, o->arguments[c->arguments_max], c->name, *c->arguments ? " " : "",
                         c->arguments, takes_glob ? "; patterns such as 'tokens_*.bin' stand in quotes" : "");
    }
    if (o->num_arguments < c->arguments_min)
        return error_set(err, "%s: an argument is missing (usage: train_gpt2 %s [options] %s)", c->name,
                         c->name, c->arguments);
    bool model_argument = has_option(o->command, OPTION_model) && o->num_arguments;
    if (model_argument && o->source[OPTION_model] == SOURCE_FLAG)
        return error_set(err, "%s: the model stands twice, as '%.60s' and as --model", c->name,
                         o->arguments[0]);
    return !model_argument || set_value(o, OPTION_model, SOURCE_FLAG, "--model", o->arguments[0], err);
}

bool options_parse(Options *o, int argc, char **argv, Error *err) {
    bool named = argc > 1 && argv[1][0] != '-', flags = true;
    options_default(o, 0);
    if (named && !find_command(o, argv[1], err)) return false;
    options_default(o, o->command);
    o->help_command = named;
    if (!find_help(o, argc, argv, err)) return false;
    if (o->help) return true;
    o->arguments = argv + (argc > 0);
    for (int i = named ? 2 : 1; i < argc; i++) {
        bool is_flag = flags && argv[i][0] == '-' && argv[i][1];
        if (is_flag && !strcmp(argv[i], "--"))
            flags = false;
        else if (!is_flag)
            o->arguments[o->num_arguments++] = argv[i];
        else if (!parse_flag(o, argc, argv, &i, err))
            return false;
    }
    return read_environment(o, err) && read_config_file(o, err) && check_arguments(o, err);
}
