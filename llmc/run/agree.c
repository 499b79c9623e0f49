/* agree.c: see agree.h. Rank 0's side is broadcast, and compared by the others. */
#define _POSIX_C_SOURCE 200809L
#include "run/agree.h"
#include <stdlib.h>
#include <string.h>

static bool is_of_host(OptionId id) {
    static const OptionId of_host[] = {OPTION_threads, OPTION_isa,           OPTION_quiet, OPTION_color,
                                       OPTION_staging, OPTION_checkpoint_io, OPTION_config};
    for (size_t i = 0; i < sizeof of_host / sizeof *of_host; i++)
        if (of_host[i] == id) return true;
    return false;
}

/* A line "name value" for each option of training that all ranks must share; NULL: no memory. */
static char *options_text(const Options *o, size_t *bytes) {
    char *text = NULL;
    FILE *out = open_memstream(&text, bytes);
    if (!out) return NULL;
    for (OptionId id = 0; id < NUM_OPTIONS; id++) {
        if (!(option_rows[id].commands >> COMMAND_TRAIN & 1) || is_of_host(id)) continue;
        fprintf(out, "%s ", option_flag(id).text);
        options_print_value(o, id, out);
        fputc('\n', out);
    }
    if (fclose(out) == 0) return text;
    free(text);
    return NULL;
}

/* Names the first line in which the texts differ. */
static bool compare(const char *mine, const char *root, Comm *comm, Error *err) {
    while (*mine && *root) {
        int n = (int)strcspn(mine, "\n"), m = (int)strcspn(root, "\n"), name = (int)strcspn(mine, " ");
        if (n != m || memcmp(mine, root, (size_t)n) != 0) {
            int value = n - name - 1, other = m > name ? m - name - 1 : 0;
            return error_set(err,
                             "--%.*s is %.*s here, but %.*s on rank 0 (%s): give all ranks the same options",
                             name, mine, value < 100 ? value : 100, mine + name + 1,
                             other < 100 ? other : 100, root + name + 1, comm_host(comm, 0));
        }
        mine += n + 1;
        root += m + 1;
    }
    return true;
}

static bool share(void *data, size_t bytes, Comm *comm, Error *err) {
    return comm_wait(comm, comm_broadcast(comm, data, bytes, 0), err);
}

bool agree_on_options(const Options *o, Comm *comm, Error *err) {
    if (comm_size(comm) == 1) return true;
    size_t bytes = 0;
    char *root = NULL, *mine = options_text(o, &bytes);
    uint64_t root_bytes = bytes;
    bool ok = false;
    if (!mine) {
        error_set(err, "no memory for the options");
        goto out;
    }
    if (!share(&root_bytes, sizeof root_bytes, comm, err)) goto out;
    root = calloc(root_bytes + 1, 1);
    if (!root) {
        error_set(err, "no memory for the options");
        goto out;
    }
    if (comm_rank(comm) == 0) memcpy(root, mine, bytes);
    ok = share(root, root_bytes, comm, err) && compare(mine, root, comm, err);
out:
    free(mine);
    free(root);
    return ok;
}

bool agree_on_data(const Loader *l, const char *pattern, Comm *comm, Error *err) {
    if (comm_size(comm) == 1) return true;
    const uint64_t mine[] = {loader_tokens(l), (uint64_t)loader_shards(l), loader_fingerprint(l)};
    uint64_t root[] = {mine[0], mine[1], mine[2]};
    if (!share(root, sizeof root, comm, err)) return false;
    if (!memcmp(mine, root, sizeof mine)) return true;
    return error_set(
        err,
        "%s: %llu tokens in %llu files here, but %llu in %llu%s on rank 0 (%s): give all ranks the "
        "same files",
        pattern, (unsigned long long)mine[0], (unsigned long long)mine[1], (unsigned long long)root[0],
        (unsigned long long)root[1], mine[2] == root[2] ? "" : ", of another tokenizer,", comm_host(comm, 0));
}
