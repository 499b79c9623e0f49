/* topology_file.c: topology.h's file format, read and written.
 *
 * A line is cut into words; the first word says what it is. What a line sets is remembered per link (Given), so that
 * the order of lines does not matter and nothing is set twice. What is written reads back with equal bits. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/file.h"
#include "comm/topology_internal.h"
#include <arpa/inet.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 6, NUMBER_BYTES = 32 };
/* What lines have said of a link. */
enum { GIVEN_RATE = 1, GIVEN_LATENCY = 2, GIVEN_ADDRESS = 4 };

typedef struct {
    const char *text;
    size_t bytes;
} Word;

typedef struct {
    Topology *t;
    const char *name;
    int line;
    Word words[WORDS_MAX];
    int count;
    unsigned char *given; /* (places, axes, 2) GIVEN_ bits */
    bool *placed;         /* (ranks) by a line */
    bool *taken;          /* (places) by a line */
    bool axis_given[TOPOLOGY_AXES_MAX];
    Error *err;
} Reader;

static bool fail(const Reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool fail(const Reader *r, const char *format, ...) {
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return error_set(r->err, "%.200s:%d: %s", r->name, r->line, what);
}

static bool is(Word w, const char *text) {
    return w.bytes == strlen(text) && !memcmp(w.text, text, w.bytes);
}

/* For messages: the word, cut short and without control characters. */
static const char *show(Word w, char out[NUMBER_BYTES]) {
    size_t n = w.bytes < NUMBER_BYTES - 1 ? w.bytes : NUMBER_BYTES - 1;
    for (size_t i = 0; i < n; i++) out[i] = w.text[i] > ' ' && w.text[i] < 127 ? w.text[i] : '?';
    out[n] = 0;
    return out;
}

/* ---- numbers and units ---- */

typedef struct {
    const char *name;
    double factor, divisor; /* one of them is 1: both are exact */
} Unit;

/* The largest first: what is written takes the first that leaves 1 or more. */
static const Unit rate_units[] = {{"Gbit/s", 125e6, 1}, {"Mbit/s", 125e3, 1}, {"kbit/s", 125, 1},
                                  {"GB/s", 1e9, 1},     {"MB/s", 1e6, 1},     {"KB/s", 1e3, 1},
                                  {"B/s", 1, 1},        {NULL, 0, 0}};
static const Unit latency_units[] = {
    {"s", 1, 1}, {"ms", 1, 1e3}, {"us", 1, 1e6}, {"ns", 1, 1e9}, {NULL, 0, 0}};

static const Unit size_units[] = {{"MB", 1e6, 1}, {"KB", 1e3, 1}, {"B", 1, 1}, {NULL, 0, 0}};

static size_t digits(const char *text, size_t bytes, size_t at) {
    while (at < bytes && text[at] >= '0' && text[at] <= '9') at++;
    return at;
}

/* "12.5MB/s": digits, perhaps a fraction and an exponent, then a unit. */
static bool quantity(Word w, const Unit *units, double *value) {
    char number[NUMBER_BYTES];
    size_t end = digits(w.text, w.bytes, 0);
    if (end == 0) return false;
    if (end < w.bytes && w.text[end] == '.') {
        size_t fraction = end + 1;
        end = digits(w.text, w.bytes, fraction);
        if (end == fraction) return false;
    }
    if (end < w.bytes && w.text[end] == 'e') {
        size_t sign = end + 1 + (end + 1 < w.bytes && (w.text[end + 1] == '-' || w.text[end + 1] == '+'));
        size_t exponent = digits(w.text, w.bytes, sign);
        if (exponent == sign) return false;
        end = exponent;
    }
    if (end >= sizeof number) return false;
    memcpy(number, w.text, end);
    number[end] = 0;
    Word rest = {w.text + end, w.bytes - end};
    for (const Unit *u = units; u->name; u++)
        if (is(rest, u->name)) {
            *value = strtod(number, NULL) * u->factor / u->divisor;
            return isfinite(*value);
        }
    return false;
}

/* A short number that reads back as the same value, in the largest unit that allows it. */
static void format_quantity(char out[TOPOLOGY_TEXT_BYTES], const Unit *units, double value) {
    static const int precisions[] = {3, 6, 15, 17};
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++)
        for (const Unit *u = units; u->name; u++) {
            double scaled = value / u->factor * u->divisor, back;
            if (scaled < 1 && u[1].name) continue;
            int n = snprintf(out, TOPOLOGY_TEXT_BYTES, "%.*g%s", precisions[i], scaled, u->name);
            CHECK(n > 0 && n < TOPOLOGY_TEXT_BYTES);
            if (strchr(out, 'e') && precisions[i] < 17) continue;
            if (quantity((Word){out, (size_t)n}, units, &back) && back == value) return;
            if (precisions[i] == 15) break; /* the other units do no better */
        }
    snprintf(out, TOPOLOGY_TEXT_BYTES, "%.17g%s", value,
             units == rate_units   ? "B/s"
             : units == size_units ? "B"
                                   : "s");
}

void topology_format_rate(char out[TOPOLOGY_TEXT_BYTES], double bytes_per_second) {
    format_quantity(out, rate_units, bytes_per_second);
}

void topology_format_latency(char out[TOPOLOGY_TEXT_BYTES], double seconds) {
    format_quantity(out, latency_units, seconds);
}

static bool read_rate(const Reader *r, Word w, double *rate) {
    char shown[NUMBER_BYTES];
    if (quantity(w, rate_units, rate) && *rate >= 1 && *rate <= 1e18) return true;
    return fail(r, "'%s' is no bandwidth (such as 128GB/s, 100Mbit/s)", show(w, shown));
}

static bool read_latency(const Reader *r, Word w, double *latency) {
    char shown[NUMBER_BYTES];
    if (quantity(w, latency_units, latency) && *latency <= 60) return true;
    return fail(r, "'%s' is no latency (such as 1us, 0.5ms; at most 60s)", show(w, shown));
}

static bool read_int(Word w, int max, int *value) {
    *value = 0;
    for (size_t i = 0; i < w.bytes; i++) {
        if (w.text[i] < '0' || w.text[i] > '9' || i > 6) return false;
        *value = 10 * *value + (w.text[i] - '0');
    }
    return w.bytes && *value <= max;
}

/* ---- places and links ---- */

static bool read_place(const Reader *r, Word w, int *place) {
    int c[TOPOLOGY_AXES_MAX] = {0};
    char shown[NUMBER_BYTES];
    size_t at = 0;
    for (int a = 0; a < r->t->axes; a++) {
        size_t end = digits(w.text, w.bytes, at);
        bool last = a == r->t->axes - 1;
        if (!read_int((Word){w.text + at, end - at}, r->t->dim[a] - 1, &c[a]) ||
            (last ? end != w.bytes : end == w.bytes || w.text[end] != ','))
            return fail(r, "'%s' is no place of this torus (%d coordinates from 0, below its dims)",
                        show(w, shown), r->t->axes);
        at = end + 1;
    }
    *place = topology_place_at(r->t, c);
    return true;
}

static bool read_axis(const Reader *r, Word w, int *axis) {
    char shown[NUMBER_BYTES];
    for (*axis = 0; *axis < r->t->axes; ++*axis)
        if (w.bytes == 1 && w.text[0] == topology_axis_names[*axis]) return true;
    return fail(r, "'%s' is no axis of this torus (%.*s)", show(w, shown), r->t->axes, topology_axis_names);
}

/* Words 1 and 2: a place and the link that leaves it. */
static bool read_link(const Reader *r, int *place, int *axis, int *direction) {
    char shown[NUMBER_BYTES];
    Word way = r->words[2];
    if (!read_place(r, r->words[1], place)) return false;
    if (way.bytes != 2 || (way.text[0] != '+' && way.text[0] != '-'))
        return fail(r, "'%s' is no direction (such as +x or -y)", show(way, shown));
    if (!read_axis(r, (Word){way.text + 1, 1}, axis)) return false;
    *direction = way.text[0] == '+' ? 1 : -1;
    if (topology_place_neighbour(r->t, *place, *axis, *direction) < 0)
        return fail(r, "there is no link %.2s at this place (%s)", way.text,
                    r->t->dim[*axis] == 1 ? "the axis has one place only" : "it is the end of a line");
    return true;
}

/* The one or two entries of a link: a wrapped axis of 2 has the same wire under both directions. */
static int same_links(const Topology *t, int place, int axis, int direction, size_t index[2]) {
    index[0] = topology_link_index(t, place, axis, direction);
    index[1] = topology_link_index(t, place, axis, -direction);
    return topology_one_wire(t, axis) ? 2 : 1;
}

static void set_link(Reader *r, int place, int axis, int direction, double rate, const double *latency) {
    size_t index[2];
    for (int i = 0, n = same_links(r->t, place, axis, direction, index); i < n; i++) {
        TopologyLink *link = &r->t->links[index[i]];
        link->bytes_per_second = rate;
        r->given[index[i]] |= GIVEN_RATE;
        if (!latency) continue;
        link->latency_seconds = *latency;
        r->given[index[i]] |= GIVEN_LATENCY;
    }
}

/* ---- lines ---- */

static bool line_torus(Reader *r) {
    char shown[NUMBER_BYTES];
    int dim[TOPOLOGY_AXES_MAX], axes;
    bool wrap[TOPOLOGY_AXES_MAX] = {true, true, true, true};
    if (r->t->places) return fail(r, "a second torus line");
    if (r->count != 2 && (r->count != 4 || !is(r->words[2], "wrap")))
        return fail(r, "a torus line is 'torus 4x4x4 wrap 111'");
    if (!topology_dims(r->words[1].text, r->words[1].bytes, dim, &axes))
        return fail(r, "'%s' is no shape (up to %d dims, such as 4x4x4)", show(r->words[1], shown),
                    TOPOLOGY_AXES_MAX);
    if (r->count == 4) {
        Word w = r->words[3];
        for (size_t i = 0; i < w.bytes && i < (size_t)axes; i++)
            if (w.text[i] != '0' && w.text[i] != '1') w.bytes = 0;
        if (w.bytes != (size_t)axes)
            return fail(r, "after wrap stand %d digits, one per axis: 1 wrapped, 0 a line", axes);
        for (int a = 0; a < axes; a++) wrap[a] = w.text[a] == '1';
    }
    Error why;
    if (!topology_shape(r->t, axes, dim, wrap, &why)) return fail(r, "%s", why.text);
    size_t places = (size_t)r->t->places;
    r->given = calloc(places * (size_t)axes * 2, sizeof *r->given);
    r->placed = calloc(places, sizeof *r->placed);
    r->taken = calloc(places, sizeof *r->taken);
    if (!r->given || !r->placed || !r->taken) return fail(r, "no memory for %zu places", places);
    return true;
}

static bool line_axis(Reader *r) {
    int axis;
    double rate, latency = 0;
    if (r->count != 3 && r->count != 4) return fail(r, "an axis line is 'axis x 128GB/s 1us'");
    if (!read_axis(r, r->words[1], &axis) || !read_rate(r, r->words[2], &rate) ||
        (r->count == 4 && !read_latency(r, r->words[3], &latency)))
        return false;
    if (r->axis_given[axis]) return fail(r, "axis %c is given twice", topology_axis_names[axis]);
    r->axis_given[axis] = true;
    for (int p = 0; p < r->t->places; p++)
        for (int direction = 1; direction >= -1; direction -= 2) {
            size_t i = topology_link_index(r->t, p, axis, direction);
            if (!(r->given[i] & GIVEN_RATE)) r->t->links[i].bytes_per_second = rate;
            if (!(r->given[i] & GIVEN_LATENCY) && r->count == 4) r->t->links[i].latency_seconds = latency;
        }
    return true;
}

static bool line_burst(Reader *r) {
    char shown[NUMBER_BYTES];
    if (r->count != 2) return fail(r, "a burst line is 'burst 40KB'");
    if (r->t->burst_bytes > 0) return fail(r, "a second burst line");
    if (!quantity(r->words[1], size_units, &r->t->burst_bytes) || r->t->burst_bytes < 1 ||
        r->t->burst_bytes > 1e9) {
        r->t->burst_bytes = 0;
        return fail(r, "'%s' is no size (such as 40KB; at most 1000MB)", show(r->words[1], shown));
    }
    return true;
}

static bool line_message(Reader *r) {
    if (r->count != 2) return fail(r, "a message line is 'message 10us'");
    if (r->t->message_seconds > 0) return fail(r, "a second message line");
    return read_latency(r, r->words[1], &r->t->message_seconds);
}

static bool line_link(Reader *r) {
    int place, axis, direction;
    if (r->count != 4 && r->count != 5)
        return fail(r, "a link line is 'link 0,0,0 +x down' or 'link 0,0,0 +x 32GB/s 1us'");
    if (!read_link(r, &place, &axis, &direction)) return false;
    int to = topology_place_neighbour(r->t, place, axis, direction);
    size_t here = topology_link_index(r->t, place, axis, direction);
    size_t there = topology_link_index(r->t, to, axis, -direction);
    bool given = r->given[here] & GIVEN_RATE, other = r->given[there] & GIVEN_RATE;
    bool is_down = given && !(r->t->links[here].bytes_per_second > 0);
    if (r->count == 4 && is(r->words[3], "down")) {
        if (!is_down && (given || other))
            return fail(r, "this wire has a bandwidth by another line (one that is down is down both ways)");
        set_link(r, place, axis, direction, 0, NULL);
        set_link(r, to, axis, -direction, 0, NULL);
        return true;
    }
    double rate, latency = 0;
    if (!read_rate(r, r->words[3], &rate) || (r->count == 5 && !read_latency(r, r->words[4], &latency)))
        return false;
    if (is_down) return fail(r, "this wire is down by another line (one that is down is down both ways)");
    if (given)
        return fail(r, "this link is given twice%s",
                    topology_one_wire(r->t, axis) ? " (an axis of 2 has one wire, + and - are the same)"
                                                  : "");
    set_link(r, place, axis, direction, rate, r->count == 5 ? &latency : NULL);
    return true;
}

static bool line_address(Reader *r) {
    int place, axis, direction;
    char shown[NUMBER_BYTES], address[sizeof r->t->links->address];
    unsigned char binary[16];
    if (r->count != 4) return fail(r, "an address line is 'address 0,0,0 +x 10.0.0.2'");
    if (!read_link(r, &place, &axis, &direction)) return false;
    Word w = r->words[3];
    size_t n = w.bytes < sizeof address ? w.bytes : sizeof address - 1;
    memcpy(address, w.text, n);
    address[n] = 0;
    if (n < w.bytes ||
        (inet_pton(AF_INET, address, binary) != 1 && inet_pton(AF_INET6, address, binary) != 1))
        return fail(r, "'%s' is no IP address (such as 10.0.0.2)", show(w, shown));
    size_t index[2];
    for (int i = 0, links = same_links(r->t, place, axis, direction, index); i < links; i++) {
        if (r->given[index[i]] & GIVEN_ADDRESS) return fail(r, "this link has an address by another line");
        r->given[index[i]] |= GIVEN_ADDRESS;
        memcpy(r->t->links[index[i]].address, address, n + 1);
    }
    return true;
}

static bool line_rank(Reader *r) {
    int rank, place;
    char shown[NUMBER_BYTES];
    if (r->count != 4 || !is(r->words[2], "at")) return fail(r, "a rank line is 'rank 5 at 1,1,0'");
    if (!read_int(r->words[1], r->t->places - 1, &rank))
        return fail(r, "'%s' is no rank of this torus (0 to %d)", show(r->words[1], shown), r->t->places - 1);
    if (!read_place(r, r->words[3], &place)) return false;
    if (r->placed[rank]) return fail(r, "rank %d is placed twice", rank);
    if (r->taken[place]) return fail(r, "two ranks at this place");
    r->placed[rank] = r->taken[place] = true;
    r->t->place_of[rank] = place;
    return true;
}

static bool read_line(Reader *r) {
    static const struct {
        const char *word;
        bool (*read)(Reader *);
    } kinds[] = {{"torus", line_torus},     {"axis", line_axis}, {"burst", line_burst},
                 {"message", line_message}, {"link", line_link}, {"address", line_address},
                 {"rank", line_rank}};
    char shown[NUMBER_BYTES];
    if (!r->t->places && !is(r->words[0], "torus"))
        return fail(r, "'%s' before the torus line (first comes 'torus 4x4x4 wrap 111')",
                    show(r->words[0], shown));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (is(r->words[0], kinds[i].word)) return kinds[i].read(r);
    return fail(r, "'%s' is none of torus, axis, burst, message, link, address, rank",
                show(r->words[0], shown));
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r';
}

/* Cuts a line into words, up to '#'. */
static bool split(Reader *r, const char *line, size_t bytes) {
    r->count = 0;
    for (size_t at = 0; at < bytes && line[at] != '#';) {
        if (is_blank(line[at])) {
            at++;
            continue;
        }
        size_t first = at;
        while (at < bytes && !is_blank(line[at]) && line[at] != '#') at++;
        if (r->count == WORDS_MAX) return fail(r, "too many words");
        r->words[r->count++] = (Word){line + first, at - first};
    }
    return true;
}

/* Ranks without a line take the places that are left, in order; which axes have all their rates? */
static void finish(Reader *r) {
    Topology *t = r->t;
    for (int rank = 0, place = 0; rank < t->places; rank++) {
        if (r->placed[rank]) continue;
        while (r->taken[place]) place++;
        t->place_of[rank] = place++;
    }
    for (int rank = 0; rank < t->places; rank++) t->rank_at[t->place_of[rank]] = rank;
    for (int a = 0; a < t->axes; a++) {
        t->known[a] = true;
        for (int p = 0; p < t->places && !r->axis_given[a]; p++)
            for (int direction = 1; direction >= -1; direction -= 2)
                if (topology_place_neighbour(t, p, a, direction) >= 0 &&
                    !(r->given[topology_link_index(t, p, a, direction)] & GIVEN_RATE))
                    t->known[a] = false;
    }
}

bool topology_parse(Topology *t, const char *text, size_t bytes, const char *name, int size, Error *err) {
    Reader r = {.t = t, .name = name, .err = err};
    bool ok = false;
    memset(t, 0, sizeof *t);
    for (size_t at = 0; at < bytes; at++) {
        const char *line = text + at, *end = memchr(line, '\n', bytes - at);
        size_t length = end ? (size_t)(end - line) : bytes - at;
        r.line++;
        if (!split(&r, line, length) || (r.count && !read_line(&r))) goto out;
        at += length;
    }
    if (!t->places) {
        error_set(err, "%.200s: no torus line (first comes 'torus 4x4x4 wrap 111')", name);
        goto out;
    }
    finish(&r);
    ok = topology_size_fits(t, size, name, err);
out:
    free(r.given);
    free(r.placed);
    free(r.taken);
    if (!ok) topology_close(t);
    return ok;
}

/* ---- writing ---- */

typedef struct {
    FileWriter file;
    bool ok;
    Error *err;
} Writer;

static void put(Writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(Writer *w, const char *format, ...) {
    char line[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    CHECK(n > 0 && n < (int)sizeof line);
    w->ok = w->ok && file_writer_write(&w->file, line, (size_t)n, w->err);
}

static void format_place(const Topology *t, int place, char *out, size_t size) {
    int c[TOPOLOGY_AXES_MAX], used = 0;
    topology_place_coordinates(t, place, c);
    for (int a = 0; a < t->axes; a++)
        used += snprintf(out + used, size - (size_t)used, "%s%d", a ? "," : "", c[a]);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What the axis line says: the medians over its links that are up. False: none is, or no memory. */
static bool typical(const Topology *t, int axis, TopologyLink *out) {
    size_t n = 0, links = 2 * (size_t)t->places;
    double *rates = malloc(links * sizeof *rates), *latencies = malloc(links * sizeof *latencies);
    for (int p = 0; p < t->places && rates && latencies; p++)
        for (int direction = 1; direction >= -1; direction -= 2) {
            const TopologyLink *link = &t->links[topology_link_index(t, p, axis, direction)];
            if (topology_place_neighbour(t, p, axis, direction) < 0 || !(link->bytes_per_second > 0))
                continue;
            rates[n] = link->bytes_per_second;
            latencies[n++] = link->latency_seconds;
        }
    if (n) {
        qsort(rates, n, sizeof *rates, compare);
        qsort(latencies, n, sizeof *latencies, compare);
        *out = (TopologyLink){rates[n / 2], latencies[n / 2], ""};
    }
    free(rates);
    free(latencies);
    return n > 0;
}

static void put_link(Writer *w, const Topology *t, int place, int axis, int direction,
                     const TopologyLink *usual) {
    const TopologyLink *link = &t->links[topology_link_index(t, place, axis, direction)];
    int to = topology_place_neighbour(t, place, axis, direction);
    if (to < 0 || (direction < 0 && topology_one_wire(t, axis))) return;
    char at[64], rate[TOPOLOGY_TEXT_BYTES], latency[TOPOLOGY_TEXT_BYTES];
    char sign = direction > 0 ? '+' : '-', name = topology_axis_names[axis];
    bool down = !(link->bytes_per_second > 0);
    format_place(t, place, at, sizeof at);
    topology_format_latency(latency, link->latency_seconds);
    if (down) {
        put(w, "link %s %c%c down\n", at, sign, name);
    } else if (link->bytes_per_second != usual->bytes_per_second ||
               link->latency_seconds != usual->latency_seconds) {
        topology_format_rate(rate, link->bytes_per_second);
        put(w, "link %s %c%c %s %s\n", at, sign, name, rate, latency);
    }
    if (link->address[0]) put(w, "address %s %c%c %s\n", at, sign, name, link->address);
}

bool topology_write(const Topology *t, const char *path, Error *err) {
    Writer w = {.ok = true, .err = err};
    char shape[64], at[64], rate[TOPOLOGY_TEXT_BYTES], latency[TOPOLOGY_TEXT_BYTES];
    if (t->axes == 0)
        return error_set(err, "%s: a flat topology has no file (use --topology=flat:%d)", path, t->places);
    if (!file_writer_open(&w.file, path, err)) {
        file_writer_abort(&w.file);
        return false;
    }
    topology_format_shape(t, shape, sizeof shape);
    put(&w, "%s wrap ", shape);
    for (int a = 0; a < t->axes; a++) put(&w, t->wrap[a] ? "1" : "0");
    put(&w, "\n");
    TopologyLink usual[TOPOLOGY_AXES_MAX];
    for (int a = 0; a < t->axes; a++) {
        usual[a] = (TopologyLink){TOPOLOGY_DEFAULT_RATE, TOPOLOGY_DEFAULT_LATENCY, ""};
        if (!t->known[a] || !typical(t, a, &usual[a])) continue;
        topology_format_rate(rate, usual[a].bytes_per_second);
        topology_format_latency(latency, usual[a].latency_seconds);
        put(&w, "axis %c %s %s\n", topology_axis_names[a], rate, latency);
    }
    if (t->burst_bytes > 0) {
        format_quantity(rate, size_units, t->burst_bytes);
        put(&w, "burst %s\n", rate);
    }
    if (t->message_seconds > 0) {
        topology_format_latency(latency, t->message_seconds);
        put(&w, "message %s\n", latency);
    }
    for (int p = 0; p < t->places && w.ok; p++) {
        for (int a = 0; a < t->axes; a++) {
            put_link(&w, t, p, a, 1, &usual[a]);
            put_link(&w, t, p, a, -1, &usual[a]);
        }
    }
    for (int rank = 0; rank < t->places && w.ok; rank++) {
        if (t->place_of[rank] == rank) continue;
        format_place(t, t->place_of[rank], at, sizeof at);
        put(&w, "rank %d at %s\n", rank, at);
    }
    bool ok = w.ok && file_writer_commit(&w.file, err);
    file_writer_abort(&w.file);
    return ok;
}
