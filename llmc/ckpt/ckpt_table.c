/* ckpt_table.c: see ckpt_table.h. */
#include "ckpt/ckpt_table.h"
#include "base/check.h"
#include "base/crc32c.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(CkptTableHead) == 128 && sizeof(CkptTableSource) == 128 &&
                   sizeof(CkptTableTensor) == 112 && sizeof(CkptTablePiece) == 32,
               "the table's layout");

static const char magic[8] = {'t', 'o', 'r', 'o', 'i', 'd', 't', 'b'};
enum { VERSION = 1 };
#define ELEMENTS_MAX ((uint64_t)1 << 56)

uint64_t ckpt_table_bytes(uint64_t sources, uint64_t tensors, uint64_t pieces, uint64_t chunks) {
    return sizeof(CkptTableHead) + sources * sizeof(CkptTableSource) + tensors * sizeof(CkptTableTensor) +
           pieces * sizeof(CkptTablePiece) + chunks * sizeof(uint32_t);
}

static void point(CkptTable *t, void *image) {
    t->head = image;
    t->sources = (CkptTableSource *)(t->head + 1);
    t->tensors = (CkptTableTensor *)(t->sources + t->head->sources);
    t->pieces = (CkptTablePiece *)(t->tensors + t->head->tensors);
    t->crcs = (uint32_t *)(t->pieces + t->head->pieces);
}

void ckpt_table_layout(CkptTable *t, void *image, uint32_t sources, uint32_t tensors, uint32_t pieces,
                       uint32_t chunks) {
    CHECK_OP((uintptr_t)image % 8, ==, 0);
    uint64_t bytes = ckpt_table_bytes(sources, tensors, pieces, chunks);
    memset(image, 0, (size_t)bytes);
    CkptTableHead *head = image;
    memcpy(head->magic, magic, sizeof magic);
    head->version = VERSION;
    head->sources = sources;
    head->tensors = tensors;
    head->pieces = pieces;
    head->chunks = chunks;
    head->chunk_bytes = CKPT_CHUNK;
    head->bytes = bytes;
    point(t, image);
}

static uint32_t seed(const CkptTableHead *head, uint32_t number) {
    return ckpt_seed(head->run, (CkptId){head->attempt, head->step}, head->rank, number);
}

static uint32_t body_crc(const CkptTableHead *head) {
    return crc32c(seed(head, CKPT_SEED_TABLE_BODY), head + 1, (size_t)(head->bytes - sizeof *head));
}

static uint32_t head_crc(const CkptTableHead *head) {
    return crc32c(seed(head, CKPT_SEED_TABLE_HEAD), head, offsetof(CkptTableHead, head_crc));
}

void ckpt_table_seal(CkptTable *t) {
    t->head->body_crc = body_crc(t->head);
    t->head->head_crc = head_crc(t->head);
}

/* ---- what may be believed ---- */

static bool head_is_valid(const CkptTableHead *h, size_t bytes, Error *err) {
    if (memcmp(h->magic, magic, sizeof magic) != 0)
        return error_set(err, "no index table (it does not begin as one)");
    if (h->version != VERSION) return error_set(err, "an index table of version %u", (unsigned)h->version);
    if (head_crc(h) != h->head_crc) return error_set(err, "the index table's header fails its checksum");
    if (h->bytes > bytes || h->bytes > CKPT_TABLE_BYTES_MAX || h->chunk_bytes != CKPT_CHUNK ||
        h->bytes != ckpt_table_bytes(h->sources, h->tensors, h->pieces, h->chunks) || !h->attempt ||
        h->writers > CKPT_WRITERS_MAX)
        return error_set(err, "the index table's counts do not fit its %zu bytes", bytes);
    if (body_crc(h) != h->body_crc) return error_set(err, "the index table fails its checksum");
    return true;
}

static bool sources_are_valid(const CkptTable *t, Error *err) {
    for (uint32_t s = 0; s < t->head->sources; s++) {
        const CkptTableSource *source = &t->sources[s];
        char node[CKPT_NODE_BYTES];
        ckpt_node_name(node, source->node[CKPT_NODE_BYTES - 1] ? "" : source->node);
        bool ordered = s == 0 || source[-1].rank < source->rank;
        if (memcmp(node, source->node, sizeof node) != 0 || source->rank >= t->head->writers || !ordered ||
            source->first_chunk > t->head->chunks || source->chunks > t->head->chunks - source->first_chunk ||
            source->table_offset > ELEMENTS_MAX)
            return error_set(err, "source %u of the index table is not valid", (unsigned)s);
    }
    return true;
}

uint64_t ckpt_table_elements(const CkptTableTensor *tensor) {
    uint64_t n = 1;
    for (int d = 0; d < CKPT_DIMS_MAX; d++) n *= tensor->shape[d];
    return n;
}

static bool tensor_is_valid(const CkptTableTensor *tensor) {
    uint64_t n = 1;
    size_t length = 0;
    while (length < CKPT_NAME_BYTES && tensor->name[length]) length++;
    if (!length || length == CKPT_NAME_BYTES || tensor->type > CKPT_UINT8 || tensor->dims < 1 ||
        tensor->dims > CKPT_DIMS_MAX)
        return false;
    for (size_t i = 0; i < CKPT_NAME_BYTES; i++)
        if (i < length ? tensor->name[i] < ' ' || tensor->name[i] > '~' : tensor->name[i] != 0) return false;
    for (uint32_t d = 0; d < CKPT_DIMS_MAX; d++) {
        if (d >= tensor->dims && tensor->shape[d] != 1) return false;
        if (tensor->shape[d] > ELEMENTS_MAX || (n && tensor->shape[d] > ELEMENTS_MAX / n)) return false;
        n *= tensor->shape[d];
    }
    return true;
}

static uint64_t chunks_of(uint64_t bytes) {
    return (bytes + CKPT_CHUNK - 1) / CKPT_CHUNK;
}

static bool pieces_are_valid(const CkptTable *t, const CkptTableTensor *tensor) {
    uint64_t elements = ckpt_table_elements(tensor), element = ckpt_type_bytes((CkptType)tensor->type);
    for (uint32_t i = 0; i < tensor->pieces; i++) {
        const CkptTablePiece *p = &t->pieces[tensor->first_piece + i];
        if (p->begin >= p->end || p->end > elements || p->source >= t->head->sources) return false;
        if (i && (p[-1].begin >= p->begin || p[-1].end >= p->end)) return false;
        const CkptTableSource *s = &t->sources[p->source];
        uint64_t bytes = (p->end - p->begin) * element, chunks = chunks_of(bytes);
        if (p->offset < CKPT_BLOCK || p->offset > s->table_offset || bytes > s->table_offset - p->offset)
            return false;
        if (p->first_chunk < s->first_chunk || chunks > s->chunks ||
            p->first_chunk - s->first_chunk > s->chunks - chunks)
            return false;
    }
    return true;
}

bool ckpt_table_view(CkptTable *t, void *image, size_t bytes, Error *err) {
    CHECK_OP((uintptr_t)image % 8, ==, 0);
    if (bytes < sizeof(CkptTableHead)) return error_set(err, "an index table of only %zu bytes", bytes);
    if (!head_is_valid(image, bytes, err)) return false;
    point(t, image);
    if (!sources_are_valid(t, err)) return false;
    uint32_t piece = 0;
    for (uint32_t i = 0; i < t->head->tensors; i++) {
        const CkptTableTensor *tensor = &t->tensors[i];
        bool ok = tensor_is_valid(tensor) && tensor->first_piece == piece &&
                  tensor->pieces <= t->head->pieces - piece;
        if (!ok || (i && strcmp(tensor[-1].name, tensor->name) >= 0) || !pieces_are_valid(t, tensor))
            return error_set(err, "tensor %u of the index table is not valid", (unsigned)i);
        piece += tensor->pieces;
    }
    if (piece != t->head->pieces)
        return error_set(err, "the index table has pieces that belong to no tensor");
    return true;
}

/* ---- look-up ---- */

const CkptTableTensor *ckpt_table_tensor(const CkptTable *t, const char *name) {
    uint32_t low = 0, high = t->head->tensors;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(t->tensors[middle].name, name);
        if (order == 0) return &t->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const CkptTablePiece *ckpt_table_piece(const CkptTable *t, const CkptTableTensor *tensor, uint64_t element) {
    uint32_t low = tensor->first_piece, high = tensor->first_piece + tensor->pieces;
    while (low < high) { /* the first that begins behind it */
        uint32_t middle = low + (high - low) / 2;
        if (t->pieces[middle].begin <= element)
            low = middle + 1;
        else
            high = middle;
    }
    return low == tensor->first_piece ? NULL : &t->pieces[low - 1];
}

bool ckpt_table_covers_range(const CkptTable *t, const CkptTableTensor *tensor, uint64_t begin,
                             uint64_t end) {
    while (begin < end) {
        const CkptTablePiece *p = ckpt_table_piece(t, tensor, begin);
        if (!p || p->end <= begin) return false;
        begin = p->end;
    }
    return true;
}

uint64_t ckpt_table_present(const CkptTable *t, const CkptTableTensor *tensor) {
    uint64_t present = 0, reached = 0;
    for (uint32_t i = 0; i < tensor->pieces; i++) {
        const CkptTablePiece *p = &t->pieces[tensor->first_piece + i];
        present += p->end - (p->begin > reached ? p->begin : reached);
        reached = p->end;
    }
    return present;
}

bool ckpt_table_covers(const CkptTable *t, Error *err) {
    for (uint32_t i = 0; i < t->head->tensors; i++) {
        const CkptTableTensor *tensor = &t->tensors[i];
        uint64_t elements = ckpt_table_elements(tensor), present = ckpt_table_present(t, tensor);
        if (present != elements)
            return error_set(err, "tensor %s: %" PRIu64 " of %" PRIu64 " elements were written", tensor->name,
                             present, elements);
    }
    return true;
}

/* ---- merging ---- */

/* A piece on its way into the merged table. */
typedef struct {
    const CkptTableTensor *tensor;
    CkptTablePiece piece;
} Run;

static int by_tensor_and_place(const void *a, const void *b) {
    const Run *x = a, *y = b;
    int order = x->tensor == y->tensor ? 0 : strcmp(x->tensor->name, y->tensor->name);
    if (order) return order;
    if (x->piece.begin != y->piece.begin) return x->piece.begin < y->piece.begin ? -1 : 1;
    if (x->piece.end != y->piece.end) return x->piece.end > y->piece.end ? -1 : 1; /* the longest first */
    return x->piece.source < y->piece.source ? -1 : x->piece.source > y->piece.source;
}

static int by_rank(const void *a, const void *b) {
    const CkptTable *x = *(const CkptTable *const *)a, *y = *(const CkptTable *const *)b;
    uint32_t m = x->head->sources ? x->sources[0].rank : 0, n = y->head->sources ? y->sources[0].rank : 0;
    return m < n ? -1 : m > n;
}

static bool same_kind(const CkptTableTensor *a, const CkptTableTensor *b) {
    return a->type == b->type && a->dims == b->dims && !memcmp(a->shape, b->shape, sizeof a->shape);
}

/* Puts the sorted runs into the table's tensors and pieces; returns false where two writers disagree. Counts first
 * when table is NULL. */
static bool fill(CkptTable *table, const Run *runs, size_t count, uint32_t *tensors, uint32_t *pieces,
                 Error *err) {
    const CkptTableTensor *now = NULL;
    uint64_t reached = 0;
    *tensors = *pieces = 0;
    for (size_t i = 0; i < count; i++) {
        const CkptTableTensor *tensor = runs[i].tensor;
        if (!now || (now != tensor && strcmp(now->name, tensor->name) != 0)) {
            now = tensor;
            reached = 0;
            if (table) {
                CkptTableTensor *to = &table->tensors[*tensors];
                *to = *tensor;
                to->first_piece = *pieces;
                to->pieces = 0;
            }
            ++*tensors;
        } else if (!same_kind(now, tensor)) {
            return error_set(err, "tensor %s has another type or shape with another writer", tensor->name);
        }
        if (runs[i].piece.end <= reached) continue; /* written by someone else too */
        reached = runs[i].piece.end;
        if (table) {
            table->pieces[*pieces] = runs[i].piece;
            table->tensors[*tensors - 1].pieces++;
        }
        ++*pieces;
    }
    return true;
}

/* The pieces of all parts, their sources and chunks numbered as in the merged table, sorted. */
static void gather(Run *runs, const CkptTable *const *parts, size_t count) {
    uint32_t source = 0, chunk = 0;
    for (size_t i = 0; i < count; i++) {
        const CkptTable *part = parts[i];
        for (uint32_t k = 0; k < part->head->tensors; k++)
            for (uint32_t p = 0; p < part->tensors[k].pieces; p++, runs++) {
                runs->tensor = &part->tensors[k];
                runs->piece = part->pieces[part->tensors[k].first_piece + p];
                runs->piece.source += source;
                runs->piece.first_chunk += chunk;
            }
        source += part->head->sources;
        chunk += part->head->chunks;
    }
}

static void copy_sources(CkptTable *table, const CkptTable *const *parts, size_t count) {
    uint32_t source = 0, chunk = 0;
    for (size_t i = 0; i < count; i++) {
        const CkptTableHead *head = parts[i]->head;
        for (uint32_t s = 0; s < head->sources; s++) {
            table->sources[source] = parts[i]->sources[s];
            table->sources[source++].first_chunk += chunk;
        }
        memcpy(table->crcs + chunk, parts[i]->crcs, head->chunks * sizeof *table->crcs);
        chunk += head->chunks;
        if (!i || head->unix_seconds < table->head->unix_seconds)
            table->head->unix_seconds = head->unix_seconds;
    }
}

bool ckpt_table_merge(CkptTable *table, const CkptTable *parts, size_t count, Error *err) {
    uint64_t sources = 0, chunks = 0, pieces = 0;
    bool ok = false;
    CHECK_OP(count, >, 0);
    for (size_t i = 0; i < count; i++) {
        const CkptTableHead *a = parts[i].head, *b = parts[0].head;
        CHECK(!memcmp(a->run, b->run, sizeof a->run) && a->attempt == b->attempt && a->step == b->step);
        if (a->writers != b->writers)
            return error_set(err, "its writers do not agree on how many they are: %u, %u",
                             (unsigned)a->writers, (unsigned)b->writers);
        sources += a->sources;
        chunks += a->chunks;
        pieces += a->pieces;
    }
    if (ckpt_table_bytes(sources, pieces, pieces, chunks) > CKPT_TABLE_BYTES_MAX)
        return error_set(err, "its index would be larger than %d bytes", CKPT_TABLE_BYTES_MAX);
    const CkptTable **order = malloc(count * sizeof(CkptTable *));
    Run *runs = malloc((size_t)pieces * sizeof *runs + 1);
    void *image = NULL;
    uint32_t tensors_there, pieces_there;
    if (!order || !runs) {
        error_set(err, "no memory to merge %zu index tables", count);
        goto out;
    }
    for (size_t i = 0; i < count; i++) order[i] = &parts[i];
    qsort(order, count, sizeof(CkptTable *), by_rank);
    gather(runs, order, count);
    qsort(runs, (size_t)pieces, sizeof *runs, by_tensor_and_place);
    if (!fill(NULL, runs, (size_t)pieces, &tensors_there, &pieces_there, err)) goto out;
    image = malloc((size_t)ckpt_table_bytes(sources, tensors_there, pieces_there, chunks));
    if (!image) {
        error_set(err, "no memory to merge %zu index tables", count);
        goto out;
    }
    ckpt_table_layout(table, image, (uint32_t)sources, tensors_there, pieces_there, (uint32_t)chunks);
    memcpy(table->head->run, parts[0].head->run, sizeof table->head->run);
    table->head->attempt = parts[0].head->attempt;
    table->head->step = parts[0].head->step;
    table->head->rank = CKPT_RANK_NONE;
    table->head->writers = parts[0].head->writers;
    copy_sources(table, order, count);
    ok = fill(table, runs, (size_t)pieces, &tensors_there, &pieces_there, err);
    for (uint32_t s = 1; ok && s < table->head->sources; s++)
        if (table->sources[s - 1].rank >= table->sources[s].rank)
            ok = error_set(err, "two shards say that they are of rank %u", (unsigned)table->sources[s].rank);
    if (ok) ckpt_table_seal(table);
out:
    if (!ok) free(image);
    free(order);
    free(runs);
    return ok;
}
