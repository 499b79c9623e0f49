/* options.h: what the user asked for: the command, its arguments, and one typed field per option.
 *
 * Everything comes from option_table.h. A value's sources, weakest first: default, preset, configuration file
 * (--config), environment (TOROID_BATCH_SIZE for --batch-size), flag. Each value remembers its source. */
#ifndef LLMC_OPTIONS_H
#define LLMC_OPTIONS_H
#include "base/error.h"
#include "base/option_table.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { OPTION_STRING_BYTES = 4096, OPTION_CONFIG_BYTES_MAX = 1 << 20 };

#define X(NAME, ...) COMMAND_##NAME,
typedef enum { OPTION_COMMANDS(X) NUM_COMMANDS } Command;
#undef X

/* OPTION_batch_size: the row of batch_size. */
#define X(type, field, ...) OPTION_##field,
typedef enum { OPTION_TABLE(X) NUM_OPTIONS } OptionId;
#undef X

typedef enum { SOURCE_DEFAULT, SOURCE_PRESET, SOURCE_FILE, SOURCE_ENV, SOURCE_FLAG } OptionSource;

/* What --help asked for. */
typedef enum { HELP_NONE, HELP_TEXT, HELP_MAN, HELP_BASH, HELP_ZSH } OptionHelp;

/* BOOL, INT, INT64, DOUBLE: that type. STRING: an array. CHOICE: one of the row's choices, or "" where that is the
 * default. An option that the command does not have keeps its default. */
#define OPTION_FIELD_BOOL(field)   bool field;
#define OPTION_FIELD_INT(field)    int field;
#define OPTION_FIELD_INT64(field)  int64_t field;
#define OPTION_FIELD_DOUBLE(field) double field;
#define OPTION_FIELD_STRING(field) char field[OPTION_STRING_BYTES];
#define OPTION_FIELD_CHOICE(field) const char *field;

typedef struct {
    Command command;
    OptionHelp help;   /* not HELP_NONE: show options_help and be done */
    bool help_command; /* --help was asked of `command`, not of the whole program */
    char **arguments;  /* what is not a flag, in order; inside argv */
    int num_arguments;
    unsigned char source[NUM_OPTIONS]; /* OptionSource */
#define X(type, field, ...) OPTION_FIELD_##type(field)
    OPTION_TABLE(X)
#undef X
} Options;

/* Reads the command line, the environment and the configuration file into *options. Takes argv apart: its elements
 * are reordered and must live as long as *options. Errors are one line that names the flag, the value and what is
 * allowed; main answers them with EXIT_USAGE. */
bool options_parse(Options *options, int argc, char **argv, Error *err);

/* All defaults of a command, for tests and tools. */
void options_default(Options *options, Command command);

/* One assignment of a preset; a list of them ends with {NULL, NULL}. */
typedef struct {
    const char *name; /* as a flag without its dashes, or as the field */
    const char *value;
} OptionPreset;

/* Gives the values of a preset to all options whose source is not stronger. A bad value is a bug. */
void options_apply_preset(Options *options, const OptionPreset *assignments);

/* Help as asked for in options->help. */
void options_help(const Options *options, FILE *out);

/* The resolved values of the command's options, a line `name = value  # source` for each; only those that are not
 * defaults unless `all`. What it prints can be read back by --config. */
void options_print(const Options *options, bool all, FILE *out);

/* The value of one option as options_print writes it; the characters written. */
int options_print_value(const Options *options, OptionId id, FILE *out);

/* Writes all of them to a file, such as a run's config.txt. */
bool options_save(const Options *options, const char *path, Error *err);

/* Sets options from the text of a configuration file; `name` stands in messages. Lines are `name = value`, blank, or
 * comments (#); a value with blanks at its ends, '#' or line breaks stands in double quotes with \" \\ \n \r \t.
 * Options of other commands are checked and then ignored. */
bool options_read_config(Options *options, const char *name, const char *text, size_t bytes, Error *err);

/* ---- the table at run time, for the help ---- */

typedef enum { TYPE_BOOL, TYPE_INT, TYPE_INT64, TYPE_DOUBLE, TYPE_STRING, TYPE_CHOICE } OptionType;

#define X(NAME, title) GROUP_##NAME,
typedef enum { OPTION_GROUPS(X) NUM_GROUPS } OptionGroup;
#undef X

typedef struct {
    OptionType type;
    const char *name; /* of the field; as a flag it has '-' for '_' */
    char letter;      /* 0: none */
    const char *value;
    double min, max;
    const char *unit;
    unsigned commands; /* bit 1 << COMMAND_... */
    OptionGroup group;
    const char *const *choices; /* ends with NULL; NULL: not a CHOICE */
    const char *help;
    size_t offset; /* of the field in Options */
} OptionRow;

typedef struct {
    const char *name, *arguments;
    int arguments_min, arguments_max;
    const char *summary;
} CommandRow;

extern const OptionRow option_rows[NUM_OPTIONS];
extern const CommandRow option_commands[NUM_COMMANDS];

/* The name with '-' for '_'; by value, so that option_flag(id).text may stand in an argument list. */
typedef struct {
    char text[32];
} OptionFlag;
OptionFlag option_flag(OptionId id);

/* The default of a row for a command, as text. */
const char *option_default(OptionId id, Command command);

/* "1 to 65536 sequences", "one of a, b, c": what a value of this row may be. */
void option_allowed(const OptionRow *row, char *out, size_t size);
#endif
