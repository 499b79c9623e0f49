/* test_options.c: parsing, bounds, sources, hints, the round trip of the configuration, help; fuzz_config.c.
 * `test_options --help=FORM` prints what test_options.py gives to bash, zsh and groff. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "base/options.h"
#include "fuzz_config.c"
#include "test.h"
#include <unistd.h>

static Options options;
static Error err;

/* Parses a command line given as one string, split at blanks ('~' stands for a blank inside a word). */
static bool parse(const char *line) {
    static char copy[2048];
    static char *argv[64];
    int argc = 1;
    argv[0] = "train_gpt2";
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word && argc < 63; word = strtok(NULL, " ")) {
        for (char *c = word; *c; c++)
            if (*c == '~') *c = ' ';
        argv[argc++] = word;
    }
    argv[argc] = NULL;
    err.text[0] = 0;
    return options_parse(&options, argc, argv, &err);
}

static void test_forms(void) {
    TEST_CHECK(parse("") && options.command == COMMAND_TRAIN && options.batch_size == 0, "%s", err.text);
    TEST_CHECK(options.learning_rate == 6e-4 && !strcmp(options.schedule, "cosine") && !options.quiet,
               "defaults");
    TEST_CHECK(!strcmp(options.preset, "") && options.seed == 1337 && options.total_batch == 0, "defaults");
    TEST_CHECK(parse("train --batch-size 8 --sequence=64 -n 10 -s7 -r=1e-3 --quiet"), "%s", err.text);
    TEST_CHECK(options.batch_size == 8 && options.sequence == 64 && options.steps == 10 && options.seed == 7,
               "%d %d %d", options.batch_size, options.sequence, options.steps);
    TEST_CHECK(options.learning_rate == 1e-3 && options.quiet, "%g", options.learning_rate);
    TEST_CHECK(options.source[OPTION_steps] == SOURCE_FLAG && !options.source[OPTION_warmup], "sources");
    TEST_CHECK(parse("--quiet --no-quiet --batch_size 2 --total-batch 1e6") && !options.quiet, "%s",
               err.text);
    TEST_CHECK(options.batch_size == 2 && options.total_batch == 1000000, "%d", options.batch_size);
    TEST_CHECK(parse("--quiet=no --steps 5 --steps 6") && options.steps == 6, "the last one counts: %s",
               err.text);
    TEST_CHECK(parse("tokenize a.txt --decode b.txt -- --c.txt -") && options.num_arguments == 4, "%s",
               err.text);
    TEST_CHECK(!strcmp(options.arguments[0], "a.txt") && !strcmp(options.arguments[2], "--c.txt"), "order");
    TEST_CHECK(options.decode && !strcmp(options.tokenizer, "byte") && !strcmp(options.output, "tokens"),
               "tokenize");
    TEST_CHECK(parse("plot run") && !strcmp(options.output, "loss.svg") && !strcmp(options.x, "step"),
               "plot");
    TEST_CHECK(parse("sample m.bin --prompt - -T 0 -k 40 -n 5") && !strcmp(options.model, "m.bin"), "%s",
               err.text);
    TEST_CHECK(!strcmp(options.prompt, "-") && options.temperature == 0 && options.tokens == 5, "sample");
    TEST_CHECK(parse("sample --prompt=--x~y") && !strcmp(options.prompt, "--x y"), "'%s'", options.prompt);
    TEST_CHECK(parse("sample --prompt=") && !options.prompt[0], "empty string");
    TEST_CHECK(parse("convert in out --dtype bf16") && options.num_arguments == 2, "%s", err.text);
    TEST_CHECK(parse("--seed 9007199254740992") && options.seed == 9007199254740992, "2^53");
}

static void test_errors(void) {
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"--bath-size 3", "unknown flag --bath-size (did you mean --batch-size?)"},
        {"--batch-size=-1", "--batch-size: '-1' must be 0 to 65536 sequences"},
        {"-b 70000", "--batch-size: '70000' must be 0 to 65536 sequences"},
        {"-b 2.5", "--batch-size: '2.5' must be a whole number, 0 to 65536 sequences"},
        {"-b four", "--batch-size: 'four' must be a number, 0 to 65536 sequences"},
        {"-b 0x10", "--batch-size: '0x10' must be a number, 0 to 65536 sequences"},
        {"--batch-size=", "--batch-size: '' must be a number, 0 to 65536 sequences"},
        {"-b 99999999999999999999", "--batch-size: '99999999999999999999' must be 0 to 65536 sequences"},
        {"--batch-size", "--batch-size: needs a value, 0 to 65536 sequences"},
        {"--batch-size --steps 3", "--batch-size: needs a value, 0 to 65536 sequences"},
        {"--learning-rate nan", "--learning-rate: 'nan' must be a number, 0 to 1000"},
        {"--beta1 1", "--beta1: '1' must be 0 to 0.999999999"},
        {"--lr 3", "unknown flag --lr (did you mean --learning-rate?)"},
        {"--schedule cosin",
         "--schedule: 'cosin' must be one of cosine, linear, constant, wsd (did you mean cosine?)"},
        {"--quiet=maybe", "--quiet: 'maybe' must be yes or no"},
        {"--no-steps", "unknown flag --no-steps (see 'train_gpt2 train --help')"},
        {"--temperature 1", "--temperature is an option of sample, not of train"},
        {"plot r --steps 3", "--steps is an option of train, not of plot"},
        {"-Z", "unknown flag -Z (see 'train_gpt2 train --help')"},
        {"trian", "unknown command 'trian' (did you mean 'train'?)"},
        {"frobnicate", "unknown command 'frobnicate' (see 'train_gpt2 --help')"},
        {"train x", "train: unexpected argument 'x' (usage: train_gpt2 train [options]; patterns such as "
                    "'tokens_*.bin' stand in quotes)"},
        {"convert x", "convert: an argument is missing (usage: train_gpt2 convert [options] IN OUT)"},
        {"sample a --model b", "sample: the model stands twice, as 'a' and as --model"},
        {"--help=foo", "--help: 'foo' must be one of text, man, bash, zsh"},
        {"--config /nonexistent/x",
         "/nonexistent/x: cannot open: No such file or directory (check the spelling)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TEST_CHECK(!parse(cases[i].line), "accepted: %s", cases[i].line);
        TEST_CHECK(!strcmp(err.text, cases[i].message), "%s: %s", cases[i].line, err.text);
    }
}

static void test_every_wrong_value(void) {
    char line[512], flag[80];
    for (int c = 0; c < NUM_COMMANDS; c++)
        for (OptionId id = 0; id < NUM_OPTIONS; id++) {
            const OptionRow *row = &option_rows[id];
            if (!(row->commands >> c & 1) || row->type == TYPE_STRING) continue;
            snprintf(flag, sizeof flag, "--%s", option_flag(id).text);
            const char *const wrong[] = {"wrong", "1e999", "-1", "1x", "--", "=", "~"};
            for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
                snprintf(line, sizeof line, "%s %s=%s a b", option_commands[c].name, flag, wrong[i]);
                TEST_CHECK(!parse(line) && !strncmp(err.text, flag, strlen(flag)), "%s: %s", line, err.text);
            }
            for (int d = 0; d < row->letter; d++) /* a letter means one thing in a command */
                if (d < (int)id && option_rows[d].letter == row->letter)
                    TEST_CHECK(!(option_rows[d].commands >> c & 1), "-%c twice in %s", row->letter,
                               option_commands[c].name);
        }
}

static void test_sources(const char *folder) {
    static const OptionPreset preset[] = {{"layers", "6"},          {"batch-size", "16"}, {"steps", "50"},
                                          {"learning_rate", "0.5"}, {"warmup", "3"},      {NULL, NULL}};
    char path[512], line[700];
    const char *text = "# a comment\n\n batch-size = 32   # why not\nsteps=60\nLEARNING_RATE = 0.25\r\n"
                       "temperature = 0.5\nrun = \"a # \\\"b\\\"\\n\"  # quoted\ntokenizer = a b#c\n";
    snprintf(path, sizeof path, "%s/my.txt", folder);
    TEST_CHECK(file_write(path, text, strlen(text), &err), "%s", err.text);
    setenv("TOROID_STEPS", "70", 1);
    setenv("TOROID_LEARNING_RATE", "0.125", 1);
    setenv("TOROID_TEMPERATURE", "nonsense of another command", 1);
    setenv("TOROID_EVAL_EVERY", "", 1);
    snprintf(line, sizeof line, "--config %s --learning-rate 0.0625", path);
    TEST_CHECK(parse(line), "%s", err.text);
    options_apply_preset(&options, preset);
    TEST_CHECK(options.warmup == 3 && options.source[OPTION_warmup] == SOURCE_PRESET, "%d", options.warmup);
    TEST_CHECK(options.layers == 6 && options.grad_clip == 1, "preset over default: %d", options.layers);
    TEST_CHECK(options.batch_size == 32 && options.source[OPTION_batch_size] == SOURCE_FILE,
               "file over preset");
    TEST_CHECK(options.steps == 70 && options.source[OPTION_steps] == SOURCE_ENV, "environment over file");
    TEST_CHECK(options.learning_rate == 0.0625 && options.source[OPTION_learning_rate] == SOURCE_FLAG,
               "flag");
    TEST_CHECK(!strcmp(options.run, "a # \"b\"\n") && !strcmp(options.tokenizer, "a b#c"), "'%s'",
               options.tokenizer);
    TEST_CHECK(options.temperature == 0.8, "another command's option stays at its default");
    char *shown = NULL;
    size_t bytes;
    FILE *out = open_memstream(&shown, &bytes);
    options_print(&options, false, out);
    fclose(out);
    TEST_CHECK(strstr(shown, "steps          = 70                   # environment\n"), "%s", shown);
    TEST_CHECK(strstr(shown, "warmup         = 3                    # preset\n"), "%s", shown);
    TEST_CHECK(!strstr(shown, "grad-clip") && strstr(shown, "# flag"), "%s", shown);
    free(shown);

    static Options before;
    before = options;
    TEST_CHECK(options_save(&options, path, &err), "%s", err.text);
    unsetenv("TOROID_STEPS");
    unsetenv("TOROID_LEARNING_RATE");
    unsetenv("TOROID_TEMPERATURE");
    snprintf(line, sizeof line, "--config %s", path);
    TEST_CHECK(parse(line), "%s", err.text);
    options_apply_preset(&options, preset);
    memcpy(before.config, options.config, sizeof before.config);
    TEST_CHECK(same_values(&before, &options), "the saved configuration reads back");
    setenv("TOROID_STEPS", "-1", 1);
    TEST_CHECK(!parse("") && !strcmp(err.text, "TOROID_STEPS: '-1' must be 0 to 2000000000 steps"), "%s",
               err.text);
    unsetenv("TOROID_STEPS");
}

static void test_config_errors(void) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"\n\nsteps 3\n", "c:3: expected 'name = value'"},
        {"stepz = 3", "c:1: stepz: unknown option (did you mean steps?)"},
        {"steps = x", "c:1: steps: 'x' must be a number, 0 to 2000000000 steps"},
        {"temperature = -1", "c:1: temperature: '-1' must be 0 to 100"},
        {"run = \"a", "c:1: run: the closing quote is missing"},
        {"run = \"a\" b", "c:1: run: something stands behind the closing quote"},
        {"run = \"\\x\"", "c:1: run: bad escape (\\\" \\\\ \\n \\r \\t are known)"},
        {"config = x", "c:1: config: a configuration file cannot name another"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        options_default(&options, COMMAND_TRAIN);
        TEST_CHECK(!options_read_config(&options, "c", cases[i].text, strlen(cases[i].text), &err),
                   "%s accepted", cases[i].text);
        TEST_CHECK(!strcmp(err.text, cases[i].message), "%s", err.text);
    }
    options_default(&options, COMMAND_TRAIN);
    TEST_CHECK(!options_read_config(&options, "c", "run = a\0b", 9, &err), "NUL");
    TEST_CHECK(options_read_config(&options, "c", "\xEF\xBB\xBFsteps = 3", 12, &err) && options.steps == 3,
               "BOM");
}

static void test_help(void) {
    static const char *const forms[] = {"--help", "--help=man", "--help=bash", "--help=zsh", "-h"};
    char line[64];
    for (int c = 0; c < NUM_COMMANDS; c++)
        for (int f = 0; f < 5; f++) {
            snprintf(line, sizeof line, "%s --nonsense %s", option_commands[c].name, forms[f]);
            TEST_CHECK(parse(line) && options.help, "%s: %s", line, err.text);
            char *text = NULL;
            size_t bytes;
            FILE *out = open_memstream(&text, &bytes);
            options_help(&options, out);
            fclose(out);
            size_t width = 0;
            for (const char *p = text; *p && options.help == HELP_TEXT; p += strcspn(p, "\n") + 1)
                if (strcspn(p, "\n") > width) width = strcspn(p, "\n");
            TEST_CHECK(width <= 80, "%s: a line of %zu columns", line, width);
            for (OptionId id = 0; id < NUM_OPTIONS; id++) {
                if (!(option_rows[id].commands >> c & 1) || options.help == HELP_MAN) continue;
                char flag[40];
                snprintf(flag, sizeof flag, "--%s", option_flag(id).text);
                TEST_CHECK(strstr(text, flag), "%s: %s is missing", line, flag);
            }
            free(text);
        }
    TEST_CHECK(parse("tokenize -- --help") && !options.help, "behind -- it is an argument");
}

int main(int argc, char **argv) {
    if (argc == 2) { /* for test_options.py: one form of help, such as --help=man */
        if (!parse(argv[1])) return 1;
        options_help(&options, stdout);
        return 0;
    }
    const char *tmp = getenv("TMPDIR");
    char folder[256];
    snprintf(folder, sizeof folder, "%s/test_options.XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return 1;
    test_forms();
    test_errors();
    test_every_wrong_value();
    test_sources(folder);
    test_config_errors();
    test_help();
    static const char *const seeds[] = {
        "# toroid\nsteps = 100 # flag\nrun = \"a \\\"b\\\" \\n\\t\"\nlearning-rate = 6e-4\nquiet = yes\n",
        "batch_size=8\npreset = gpt2-medium\nseed = 9007199254740992\nschedule = wsd\ntrain-data = a b #c\n",
        "temperature = 0.7\ntop-k = 40\nprompt = \"\xC3\xA9\xFF\"\nval-fraction = 0.1\n\n\r\n   # x"};
    test_checks += fuzz_run(LLVMFuzzerTestOneInput, seeds, 3, 20000);
    char path[300];
    snprintf(path, sizeof path, "%s/my.txt", folder);
    unlink(path);
    rmdir(folder);
    return test_end("options");
}
