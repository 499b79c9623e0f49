/* options_show.c: the option table as people and shells read it: help, man page, completions, and the resolved
 * configuration. What stands here is layout only; every word about an option comes from option_table.h. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/file.h"
#include "base/options.h"
#include <stdlib.h>
#include <string.h>

enum { HELP_COLUMNS = 80, HELP_INDENT = 27 };
#define PROGRAM "train_gpt2"

#define X(NAME, title) title,
static const char *const group_titles[NUM_GROUPS] = {OPTION_GROUPS(X)};
#undef X

static bool shown(OptionId id, Command command, int group) {
    const OptionRow *row = &option_rows[id];
    return (group < 0 || row->group == (OptionGroup)group) && (row->commands >> command & 1);
}

/* What stands for the value in a usage line: N, X, FILE, NAME; "" for a BOOL. */
static void placeholder(const OptionRow *row, char *out, size_t size) {
    static const char *const names[] = {"", "N", "N", "X", "TEXT", "NAME"};
    snprintf(out, size, "%s", row->type == TYPE_STRING && *row->unit ? row->unit : names[row->type]);
    for (char *c = out; *c; c++)
        if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
}

/* The help sentence: help, then choices or bounds, and the default with its unit unless help begins with it. */
static void describe(OptionId id, Command command, bool bounds, char *out, size_t size) {
    const OptionRow *row = &option_rows[id];
    const char *value = option_default(id, command), *unit = row->unit;
    bool number = row->type == TYPE_INT || row->type == TYPE_INT64 || row->type == TYPE_DOUBLE;
    char allowed[256];
    option_allowed(row, allowed, sizeof allowed);
    if (!number || !strncmp(row->help, unit, strlen(unit))) unit = "";
    size_t used = (size_t)snprintf(out, size, "%s", row->help);
    bool lists = row->type == TYPE_CHOICE || (number && bounds), defaults = *value && row->type != TYPE_BOOL;
    if (lists || defaults)
        used += (size_t)snprintf(out + used, size - used, " (%s%s%s%s%s%s)",
                                 lists ? allowed + (number ? 0 : strlen("one of ")) : "",
                                 lists && defaults ? "; " : "", defaults ? "default " : "",
                                 defaults ? value : "", *unit && !lists ? " " : "", lists ? "" : unit);
    CHECK_OP(used, <, size);
}

/* ---- --help ---- */

/* Prints text in the columns from HELP_INDENT on; the cursor stands in `column`. */
static void print_wrapped(FILE *out, const char *text, size_t column) {
    bool at_start = true;
    if (column + 2 > HELP_INDENT) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", (int)(HELP_INDENT - column), "");
    column = HELP_INDENT;
    while (*text) {
        size_t word = strcspn(text, " ");
        if (!at_start && column + 1 + word > HELP_COLUMNS) {
            fprintf(out, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
            at_start = true;
        }
        fprintf(out, "%s%.*s", at_start ? "" : " ", (int)word, text);
        column += word + !at_start;
        at_start = false;
        text += word + strspn(text + word, " ");
    }
    fputc('\n', out);
}

static void print_option(OptionId id, Command command, FILE *out) {
    const OptionRow *row = &option_rows[id];
    char name[16], left[64], text[640], letter[8] = "    ";
    if (row->letter) snprintf(letter, sizeof letter, "-%c, ", row->letter);
    placeholder(row, name, sizeof name);
    int n = snprintf(left, sizeof left, "  %s--%s%s%s", letter, option_flag(id).text, *name ? " " : "", name);
    describe(id, command, false, text, sizeof text);
    fputs(left, out);
    print_wrapped(out, text, (size_t)n);
}

static void help_text(const Options *o, FILE *out) {
    const CommandRow *c = &option_commands[o->command];
    const char *gap = *c->arguments ? " " : "";
    if (o->help_command) {
        fprintf(out, "Usage: " PROGRAM " %s [options]%s%s\n%c%s.\n", c->name, gap, c->arguments,
                c->summary[0] - 'a' + 'A', c->summary + 1);
    } else {
        fprintf(out, "Usage: " PROGRAM " [command] [options] [arguments]\n\nCommands\n");
        for (int i = 0; i < NUM_COMMANDS; i++) {
            int n = fprintf(out, "  %s %s", option_commands[i].name, option_commands[i].arguments);
            print_wrapped(out, option_commands[i].summary, (size_t)n);
        }
        fprintf(out, "\nThe options of a command: " PROGRAM " COMMAND --help. Those of %s, the default:\n",
                c->name);
    }
    for (int group = 0; group < NUM_GROUPS; group++) {
        bool titled = false;
        for (OptionId id = 0; id < NUM_OPTIONS; id++) {
            if (!shown(id, o->command, group)) continue;
            if (!titled) fprintf(out, "\n%s\n", group_titles[group]);
            titled = true;
            print_option(id, o->command, out);
        }
    }
    fputs("  -h, --help[=FORM]", out);
    print_wrapped(out, "this text, or as a man page (man) or shell completion (bash, zsh)", 19);
    fputs("\n--name value and --name=value are the same; --no-name turns a switch off.\n"
          "Each option can also be set in the environment (TOROID_BATCH_SIZE=8) or in the\n"
          "file of --config (batch-size = 8). Flags win over the environment, which wins\n"
          "over the file, which wins over the preset.\n",
          out);
}

/* ---- --help=man ---- */

static void roff(FILE *out, const char *text) {
    if (*text == '.' || *text == '\'') fputs("\\&", out);
    for (; *text; text++) {
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
    }
}

static void man_command(Command command, FILE *out) {
    char name[16], text[640];
    for (OptionId id = 0; id < NUM_OPTIONS; id++) {
        const OptionRow *row = &option_rows[id];
        if (!shown(id, command, -1)) continue;
        fputs(".TP\n", out);
        if (row->letter) fprintf(out, "\\fB\\-%c\\fR, ", row->letter);
        fputs("\\fB", out);
        roff(out, "--");
        roff(out, option_flag(id).text);
        placeholder(row, name, sizeof name);
        fprintf(out, "\\fR%s\\fI%s\\fR\n", *name ? " " : "", name);
        describe(id, command, true, text, sizeof text);
        roff(out, text);
        fputs(".\n", out);
    }
}

static void help_man(FILE *out) {
    fputs(
        ".TH TRAIN_GPT2 1 \"\" toroid \"User commands\"\n.SH NAME\ntrain_gpt2 \\- train GPT\\-2 models in "
        "plain C\n"
        ".SH SYNOPSIS\n.B train_gpt2\n.RI [ command ] \" \" [ options ] \" \" [ arguments ]\n.SH COMMANDS\n",
        out);
    for (int c = 0; c < NUM_COMMANDS; c++) {
        fprintf(out, ".TP\n\\fB%s\\fR \\fI%s\\fR\n", option_commands[c].name, option_commands[c].arguments);
        roff(out, option_commands[c].summary);
        fputs(c ? ".\n" : " (the default command).\n", out);
    }
    for (int c = 0; c < NUM_COMMANDS; c++) {
        fputs(".SH OPTIONS OF ", out);
        for (const char *p = option_commands[c].name; *p; p++) fputc(*p - 'a' + 'A', out);
        fputc('\n', out);
        man_command((Command)c, out);
    }
    fputs(".SH CONFIGURATION\nA value comes from the strongest of these sources: flag, environment "
          "(\\fBTOROID_BATCH_SIZE\\fR for \\fB\\-\\-batch\\-size\\fR), the file of \\fB\\-\\-config\\fR, "
          "preset, "
          "default.\nA configuration file has lines \\fIname\\fR = \\fIvalue\\fR; # begins a comment.\n"
          "A run saves its own as config.txt in its folder, which \\fB\\-\\-config\\fR reads back.\n"
          ".SH EXIT STATUS\n0: done. 1: failed. 2: wrong usage. 75: stopped by a signal, and saved.\n",
          out);
}

/* ---- completions ---- */

static void print_flags(Command command, FILE *out) {
    for (OptionId id = 0; id < NUM_OPTIONS; id++)
        if (shown(id, command, -1)) fprintf(out, "--%s ", option_flag(id).text);
    fputs("--help", out);
}

static void help_bash(FILE *out) {
    fputs("# bash completion: source <(" PROGRAM " --help=bash)\n_train_gpt2() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=train\n"
          "    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; "
          "fi\n"
          "    COMPREPLY=()\n    case ${COMP_WORDS[1]} in ",
          out);
    for (int c = 0; c < NUM_COMMANDS; c++) fprintf(out, "%s%s", c ? "|" : "", option_commands[c].name);
    fputs(") command=${COMP_WORDS[1]};; esac\n    case $prev in\n", out);
    for (OptionId id = 0; id < NUM_OPTIONS; id++) {
        const OptionRow *row = &option_rows[id];
        if (row->type == TYPE_BOOL) continue;
        fprintf(out, "    --%s) ", option_flag(id).text);
        if (row->type == TYPE_CHOICE) {
            fputs("COMPREPLY=($(compgen -W '", out);
            for (const char *const *c = row->choices; *c; c++)
                fprintf(out, "%s%s", c == row->choices ? "" : " ", *c);
            fputs("' -- \"$cur\")); ", out);
        } else if (row->type == TYPE_STRING && strcmp(row->unit, "text")) {
            fputs("COMPREPLY=($(compgen -f -- \"$cur\")); ", out);
        }
        fputs("return;;\n", out);
    }
    fputs("    esac\n    if [[ $cur == -* ]]; then\n        case $command in\n", out);
    for (int c = 0; c < NUM_COMMANDS; c++) {
        fprintf(out, "        %s) COMPREPLY=($(compgen -W '", option_commands[c].name);
        print_flags((Command)c, out);
        fputs("' -- \"$cur\"));;\n", out);
    }
    fputs("        esac\n    elif [[ $COMP_CWORD == 1 ]]; then\n        COMPREPLY=($(compgen -W '", out);
    for (int c = 0; c < NUM_COMMANDS; c++) fprintf(out, "%s%s", c ? " " : "", option_commands[c].name);
    fputs("' -- \"$cur\"))\n    else\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n    fi\n}\n"
          "complete -o filenames -F _train_gpt2 " PROGRAM " ./" PROGRAM "\n",
          out);
}

/* Text inside '...[text]...' of zsh's _arguments. */
static void zsh_text(FILE *out, const char *text) {
    for (; *text; text++) {
        if (strchr("[]:\\", *text)) fputc('\\', out);
        fputs(*text == '\'' ? "'\\''" : (char[]){*text, 0}, out);
    }
}

static void zsh_option(OptionId id, Command command, FILE *out) {
    const OptionRow *row = &option_rows[id];
    char text[640];
    fprintf(out, "            '--%s%s[", option_flag(id).text, row->type == TYPE_BOOL ? "" : "=");
    describe(id, command, false, text, sizeof text);
    zsh_text(out, text);
    fputc(']', out);
    if (row->type != TYPE_BOOL) fprintf(out, ":%s:", *row->unit ? row->unit : option_flag(id).text);
    if (row->type == TYPE_STRING && strcmp(row->unit, "text")) fputs("_files", out);
    if (row->type == TYPE_CHOICE) {
        for (const char *const *c = row->choices; *c; c++)
            fprintf(out, "%s%s", c == row->choices ? "(" : " ", *c);
        fputc(')', out);
    }
    fputs("' \\\n", out);
}

static void help_zsh(FILE *out) {
    fputs("#compdef " PROGRAM "\n# zsh completion: source <(" PROGRAM " --help=zsh)\n_train_gpt2() {\n"
          "    local command=train\n    local -a commands=(\n",
          out);
    for (int c = 0; c < NUM_COMMANDS; c++) {
        fprintf(out, "        '%s:", option_commands[c].name);
        zsh_text(out, option_commands[c].summary);
        fputs("'\n", out);
    }
    fputs("    )\n    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n        _describe command "
          "commands\n"
          "        return\n    fi\n    case $words[2] in\n    ",
          out);
    for (int c = 0; c < NUM_COMMANDS; c++) fprintf(out, "%s%s", c ? "|" : "", option_commands[c].name);
    fputs(") command=$words[2];;\n    esac\n    case $command in\n", out);
    for (int c = 0; c < NUM_COMMANDS; c++) {
        fprintf(out, "    %s)\n        _arguments \\\n", option_commands[c].name);
        for (OptionId id = 0; id < NUM_OPTIONS; id++)
            if (shown(id, (Command)c, -1)) zsh_option(id, (Command)c, out);
        fputs("            '--help[show help]' '*:file:_files';;\n", out);
    }
    fputs("    esac\n}\ncompdef _train_gpt2 " PROGRAM "\n", out);
}

void options_help(const Options *o, FILE *out) {
    switch (o->help) {
    case HELP_NONE: break;
    case HELP_TEXT: help_text(o, out); break;
    case HELP_MAN: help_man(out); break;
    case HELP_BASH: help_bash(out); break;
    case HELP_ZSH: help_zsh(out); break;
    }
}

/* ---- the resolved configuration ---- */

/* The shortest decimal form that reads back as the same double. */
static int print_double(FILE *out, double value) {
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return fprintf(out, "%s", text);
}

static int print_string(FILE *out, const char *text) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:+*?[]{},@%~";
    if (*text && !text[strspn(text, plain)]) return fprintf(out, "%s", text);
    static const char specials[] = "\"\\\n\r\t", letters[] = "\"\\nrt";
    int n = 2;
    fputc('"', out);
    for (; *text; text++, n++) {
        const char *special = strchr(specials, *text);
        if (special) fputc('\\', out), n++;
        fputc(special ? letters[special - specials] : *text, out);
    }
    fputc('"', out);
    return n;
}

int options_print_value(const Options *o, OptionId id, FILE *out) {
    const OptionRow *row = &option_rows[id];
    const void *field = (const char *)o + row->offset;
    switch (row->type) {
    case TYPE_BOOL: return fprintf(out, "%s", *(const bool *)field ? "yes" : "no");
    case TYPE_INT: return fprintf(out, "%d", *(const int *)field);
    case TYPE_INT64: return fprintf(out, "%lld", (long long)*(const int64_t *)field);
    case TYPE_DOUBLE: return print_double(out, *(const double *)field);
    case TYPE_STRING: return print_string(out, field);
    case TYPE_CHOICE: return print_string(out, *(const char *const *)field);
    }
    return 0;
}

void options_print(const Options *o, bool all, FILE *out) {
    static const char *const sources[] = {"default", "preset", "file", "environment", "flag"};
    for (OptionId id = 0; id < NUM_OPTIONS; id++) {
        OptionSource source = (OptionSource)o->source[id];
        if (id == OPTION_config || !shown(id, o->command, -1) || (!all && source == SOURCE_DEFAULT)) continue;
        fprintf(out, "%-14s = ", option_flag(id).text);
        int n = options_print_value(o, id, out);
        if (source != SOURCE_DEFAULT) fprintf(out, "%*s # %s", n < 20 ? 20 - n : 0, "", sources[source]);
        fputc('\n', out);
    }
}

bool options_save(const Options *o, const char *path, Error *err) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) return error_set_errno(err, "%s: no memory", path);
    fprintf(out,
            "# " PROGRAM " %s: every option as resolved, and where it came from if it is not the default.\n"
            "# Use it again: " PROGRAM " %s --config THIS_FILE\n",
            option_commands[o->command].name, option_commands[o->command].name);
    options_print(o, true, out);
    bool ok =
        fclose(out) == 0 ? file_write(path, text, bytes, err) : error_set_errno(err, "%s: no memory", path);
    free(text);
    return ok;
}
