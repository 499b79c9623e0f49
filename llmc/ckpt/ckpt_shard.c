/* ckpt_shard.c: see ckpt_shard.h: what is written, and where it goes. ckpt_shard_write.c writes it. */
#include "ckpt/ckpt_shard.h"
#include "base/check.h"
#include <stdlib.h>
#include <string.h>

enum { PACKED_BELOW = 64 << 10, PACKED_ALIGN = 64 };

static uint64_t chunks_of(uint64_t bytes) {
    return (bytes + CKPT_CHUNK - 1) / CKPT_CHUNK;
}

bool ckpt_shard_open(CkptShardWriter *w, size_t views_max, uint64_t payload_max, Error *err) {
    *w = (CkptShardWriter){.views_max = views_max, .payload_max = payload_max};
    w->table_bytes_max =
        ckpt_blocks(ckpt_table_bytes(1, views_max, views_max, payload_max / CKPT_CHUNK + views_max + 1));
    if (w->table_bytes_max > CKPT_TABLE_BYTES_MAX)
        return error_set(err, "a checkpoint of %zu views and %llu bytes has too large an index", views_max,
                         (unsigned long long)payload_max);
    /* every extent may begin and end inside a block */
    w->segment_bytes = CKPT_BLOCK + ckpt_blocks(payload_max) + 2 * (uint64_t)CKPT_BLOCK * (views_max + 1) +
                       w->table_bytes_max + CKPT_BLOCK;
    w->planned = calloc(views_max, sizeof *w->planned);
    w->by_address = calloc(views_max, sizeof *w->by_address);
    w->image = aligned_alloc(CKPT_BLOCK, (size_t)w->table_bytes_max + CKPT_BLOCK);
    w->header = aligned_alloc(CKPT_BLOCK, CKPT_BLOCK);
    w->bounces = aligned_alloc(CKPT_BLOCK, CKPT_BOUNCES * CKPT_BOUNCE_BYTES);
    if (w->planned && w->by_address && w->image && w->header && w->bounces) {
        memset(w->image, 0, (size_t)w->table_bytes_max + CKPT_BLOCK); /* touched now, not in a step */
        memset(w->bounces, 0, CKPT_BOUNCES * CKPT_BOUNCE_BYTES);
        return true;
    }
    ckpt_shard_close(w);
    return error_set(err, "no memory for checkpoints of %zu views", views_max);
}

void ckpt_shard_close(CkptShardWriter *w) {
    free(w->planned);
    free(w->by_address);
    free(w->image);
    free(w->header);
    free(w->bounces);
    *w = (CkptShardWriter){0};
}

static int by_name(const void *a, const void *b) {
    const CkptPlanned *x = a, *y = b;
    int order = strcmp(x->view.name, y->view.name);
    if (order) return order;
    return x->view.begin < y->view.begin ? -1 : x->view.begin > y->view.begin;
}

static int by_address(const void *a, const void *b) {
    const CkptPlanned *x = *(CkptPlanned *const *)a, *y = *(CkptPlanned *const *)b;
    uintptr_t m = (uintptr_t)x->view.data, n = (uintptr_t)y->view.data;
    return m < n ? -1 : m > n;
}

static bool view_is_sound(const TensorView *v, Error *err) {
    uint64_t elements = 1;
    const char *end = memchr(v->name, 0, CKPT_NAME_BYTES);
    if (!end || end == v->name) return error_set(err, "a tensor's name must have 1 to 63 bytes");
    for (const char *c = v->name; c < end; c++)
        if (*c < ' ' || *c > '~') return error_set(err, "tensor %s: its name must be ASCII", v->name);
    if (v->dims < 1 || v->dims > CKPT_DIMS_MAX || v->type < 0 || v->type > CKPT_UINT8)
        return error_set(err, "tensor %s: %d dimensions, type %d", v->name, v->dims, (int)v->type);
    for (int d = 0; d < v->dims; d++) {
        if (v->shape[d] > ((uint64_t)1 << 56) / (elements ? elements : 1))
            return error_set(err, "tensor %s is too large", v->name);
        elements *= v->shape[d];
    }
    if (v->begin > v->end || v->end > elements)
        return error_set(err, "tensor %s: elements %llu to %llu of %llu", v->name,
                         (unsigned long long)v->begin, (unsigned long long)v->end,
                         (unsigned long long)elements);
    return true;
}

static bool neighbours_agree(const CkptPlanned *a, const CkptPlanned *b, Error *err) {
    if (strcmp(a->view.name, b->view.name) != 0) return true;
    bool same = a->view.type == b->view.type && a->view.dims == b->view.dims;
    for (int d = 0; same && d < a->view.dims; d++) same = a->view.shape[d] == b->view.shape[d];
    if (!same) return error_set(err, "tensor %s: two views have different types or shapes", a->view.name);
    if (a->view.end > b->view.begin)
        return error_set(err, "tensor %s: element %llu is in two views", a->view.name,
                         (unsigned long long)b->view.begin);
    return true;
}

bool ckpt_shard_views(CkptShardWriter *w, const TensorView *views, size_t count, Error *err) {
    w->count = 0;
    w->payload_bytes = 0;
    for (size_t i = 0; i < count; i++) {
        if (!view_is_sound(&views[i], err)) return false;
        if (views[i].begin == views[i].end) continue;
        if (w->count == w->views_max)
            return error_set(err, "a checkpoint of more than %zu views, as was said when it was opened",
                             w->views_max);
        uint64_t bytes = (views[i].end - views[i].begin) * ckpt_type_bytes(views[i].type);
        w->planned[w->count++] = (CkptPlanned){.view = views[i], .from = views[i].data, .bytes = bytes};
        w->payload_bytes += bytes;
    }
    if (w->payload_bytes > w->payload_max)
        return error_set(err, "a checkpoint of %llu bytes; when it was opened at most %llu were announced",
                         (unsigned long long)w->payload_bytes, (unsigned long long)w->payload_max);
    if (w->count) qsort(w->planned, w->count, sizeof *w->planned, by_name);
    for (size_t i = 1; i < w->count; i++)
        if (!neighbours_agree(&w->planned[i - 1], &w->planned[i], err)) return false;
    return true;
}

size_t ckpt_shard_extent(const CkptShardWriter *w, size_t first, uint64_t *bytes) {
    const char *end = w->by_address[first]->view.data;
    size_t i = first;
    *bytes = 0;
    for (; i < w->count && (const char *)w->by_address[i]->view.data == end + *bytes; i++) {
        if (w->by_address[i]->view.copied != w->by_address[first]->view.copied) break; /* other memory */
        *bytes += w->by_address[i]->bytes;
    }
    return i;
}

/* Offsets of the large extents, from page to page; views of small ones get 0. */
static uint64_t place_extents(CkptShardWriter *w) {
    uint64_t at = CKPT_BLOCK, bytes;
    size_t small = 0;
    for (size_t i = 0, end; i < w->count; i = end) {
        end = ckpt_shard_extent(w, i, &bytes);
        for (size_t k = i; k < end; k++) w->by_address[k]->offset = bytes < PACKED_BELOW ? 0 : 1;
        if (bytes < PACKED_BELOW) continue;
        at = ckpt_blocks(at) + (uintptr_t)w->by_address[i]->view.data % CKPT_BLOCK;
        for (size_t k = i; k < end; k++) {
            w->by_address[k]->offset = at;
            at += w->by_address[k]->bytes;
        }
    }
    for (size_t i = 0; i < w->count; i++) small += w->by_address[i]->offset == 0;
    w->packed_from = w->count - small;
    return ckpt_blocks(at);
}

/* The large ones first, each kind in the order of addresses. */
static int by_offset_and_address(const void *a, const void *b) {
    const CkptPlanned *x = *(CkptPlanned *const *)a, *y = *(CkptPlanned *const *)b;
    if (!x->offset != !y->offset) return x->offset ? -1 : 1;
    return by_address(a, b);
}

static void place_packed(CkptShardWriter *w, uint64_t at) {
    for (size_t i = w->packed_from; i < w->count; i++) {
        w->by_address[i]->offset = at;
        at += (w->by_address[i]->bytes + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN;
    }
    w->record.table_offset = ckpt_blocks(at);
}

/* Tensors and pieces, in the order of names. */
static void index_views(CkptShardWriter *w) {
    uint32_t tensors = 0, chunks = 0;
    for (size_t i = 0; i < w->count; i++) {
        tensors += !i || strcmp(w->planned[i - 1].view.name, w->planned[i].view.name) != 0;
        w->planned[i].first_chunk = chunks;
        chunks += (uint32_t)chunks_of(w->planned[i].bytes);
    }
    w->record.tensors = tensors;
    ckpt_table_layout(&w->table, w->image, 1, tensors, (uint32_t)w->count, chunks);
    CkptTableTensor *tensor = w->table.tensors - 1;
    for (size_t i = 0; i < w->count; i++) {
        const CkptPlanned *p = &w->planned[i];
        if (!i || strcmp(p[-1].view.name, p->view.name) != 0) {
            tensor++;
            *tensor = (CkptTableTensor){.type = p->view.type,
                                        .dims = (uint32_t)p->view.dims,
                                        .shape = {1, 1, 1, 1},
                                        .first_piece = (uint32_t)i};
            snprintf(tensor->name, sizeof tensor->name, "%s", p->view.name);
            memcpy(tensor->shape, p->view.shape, (size_t)p->view.dims * sizeof *tensor->shape);
        }
        tensor->pieces++;
        w->table.pieces[i] = (CkptTablePiece){p->view.begin, p->view.end, p->offset, 0, p->first_chunk};
    }
}

void ckpt_shard_plan(CkptShardWriter *w, const CkptRecord *record) {
    w->record = *record;
    w->record.kind = CKPT_RECORD_SHARD;
    w->record.payload_bytes = w->payload_bytes;
    for (size_t i = 0; i < w->count; i++) w->by_address[i] = &w->planned[i];
    if (w->count) qsort(w->by_address, w->count, sizeof *w->by_address, by_address);
    uint64_t at = place_extents(w);
    if (w->count) qsort(w->by_address, w->count, sizeof *w->by_address, by_offset_and_address);
    place_packed(w, at);
    index_views(w);
    w->record.table_bytes = w->table.head->bytes;
    w->record.used_bytes = w->record.table_offset + ckpt_blocks(w->record.table_bytes) + CKPT_BLOCK;
    CHECK_OP(w->record.used_bytes, <=, w->segment_bytes);
    CHECK_OP(w->record.table_bytes, <=, w->table_bytes_max);
}
