/* s3_xml.c: see s3_xml.h. */
#include "ckpt/s3_xml.h"
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *text, *end, *p;
    char path[S3_XML_PATH_BYTES];
    size_t path_bytes;
    size_t starts[S3_XML_DEPTH_MAX]; /* where in path each open element's name begins */
    int depth;
    bool parent; /* the element that is open has had a child */
    char value[S3_XML_TEXT_BYTES];
    size_t value_bytes;
    Error *err;
} Xml;

static bool fail(Xml *x, const char *why) {
    return error_set(x->err, "the answer is not XML as S3 sends it: byte %zu: %s", (size_t)(x->p - x->text),
                     why);
}

static bool starts_with(const Xml *x, const char *what) {
    size_t n = strlen(what);
    return (size_t)(x->end - x->p) >= n && !memcmp(x->p, what, n);
}

static bool skip_behind(Xml *x, const char *what) {
    while (x->p < x->end && !starts_with(x, what)) x->p++;
    if (x->p == x->end) return false;
    x->p += strlen(what);
    return true;
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static bool is_name(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == ':';
}

static bool put(Xml *x, char c) {
    if (!c || x->value_bytes + 1 >= sizeof x->value) return fail(x, "a text is too long or has a NUL");
    x->value[x->value_bytes++] = c;
    return true;
}

static bool put_character(Xml *x, unsigned long code) {
    if (code < 0x80) return put(x, (char)code);
    if (code < 0x800) return put(x, (char)(0xc0 | code >> 6)) && put(x, (char)(0x80 | (code & 63)));
    if (code < 0x10000)
        return put(x, (char)(0xe0 | code >> 12)) && put(x, (char)(0x80 | (code >> 6 & 63))) &&
               put(x, (char)(0x80 | (code & 63)));
    return put(x, (char)(0xf0 | code >> 18)) && put(x, (char)(0x80 | (code >> 12 & 63))) &&
           put(x, (char)(0x80 | (code >> 6 & 63))) && put(x, (char)(0x80 | (code & 63)));
}

static int digit_of(char c, int base) {
    int d = c >= '0' && c <= '9'   ? c - '0'
            : c >= 'a' && c <= 'f' ? c - 'a' + 10
            : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                   : 99;
    return d < base ? d : -1;
}

/* p stands on '&'. */
static bool read_entity(Xml *x) {
    static const struct {
        const char *name;
        char c;
    } known[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (starts_with(x, known[i].name)) {
            x->p += strlen(known[i].name);
            return put(x, known[i].c);
        }
    if (!starts_with(x, "&#")) return fail(x, "an unknown entity");
    x->p += 2;
    int base = x->p < x->end && *x->p == 'x' ? 16 : 10;
    if (base == 16) x->p++;
    unsigned long code = 0;
    int digits = 0;
    for (; x->p < x->end && digits < 8 && digit_of(*x->p, base) >= 0; x->p++, digits++)
        code = code * (unsigned long)base + (unsigned long)digit_of(*x->p, base);
    if (!digits || x->p == x->end || *x->p != ';' || !code || code > 0x10ffff)
        return fail(x, "a character number that is none");
    x->p++;
    return put_character(x, code);
}

static bool read_open_tag(Xml *x, bool *empty) {
    const char *name = x->p;
    while (x->p < x->end && is_name(*x->p)) {
        if (*x->p == ':') name = x->p + 1;
        x->p++;
    }
    size_t bytes = (size_t)(x->p - name);
    if (!bytes) return fail(x, "an element without a name");
    if (x->depth == S3_XML_DEPTH_MAX || x->path_bytes + bytes + 2 > sizeof x->path)
        return fail(x, "nested too deeply");
    if (x->depth) x->path[x->path_bytes++] = '/';
    x->starts[x->depth++] = x->path_bytes;
    memcpy(x->path + x->path_bytes, name, bytes);
    x->path[x->path_bytes += bytes] = 0;
    for (char quote = 0; x->p < x->end && (quote || *x->p != '>'); x->p++) { /* attributes */
        if (quote && *x->p == quote)
            quote = 0;
        else if (!quote && (*x->p == '"' || *x->p == '\''))
            quote = *x->p;
    }
    if (x->p == x->end) return fail(x, "ends inside a tag");
    *empty = x->p[-1] == '/';
    x->p++;
    x->parent = false;
    x->value_bytes = 0;
    return true;
}

/* The element that is open ends; *more false: `each` wants no more. */
static void end_element(Xml *x, S3XmlEach each, void *ctx, bool *more) {
    x->value[x->value_bytes] = 0;
    *more = each(ctx, x->path, x->parent ? NULL : x->value);
    x->path_bytes = x->starts[--x->depth];
    if (x->depth) x->path_bytes--; /* the '/' */
    x->path[x->path_bytes] = 0;
    x->parent = true;
    x->value_bytes = 0;
}

static bool read_close_tag(Xml *x) {
    const char *name = x->p;
    while (x->p < x->end && is_name(*x->p)) {
        if (*x->p == ':') name = x->p + 1;
        x->p++;
    }
    size_t bytes = (size_t)(x->p - name);
    const char *open = x->depth ? x->path + x->starts[x->depth - 1] : "";
    if (!x->depth || strlen(open) != bytes || memcmp(open, name, bytes))
        return fail(x, "an end of an element that is not open");
    while (x->p < x->end && is_blank(*x->p)) x->p++;
    if (x->p == x->end || *x->p != '>') return fail(x, "ends inside a tag");
    x->p++;
    return true;
}

bool s3_xml_read(const char *text, size_t bytes, S3XmlEach each, void *ctx, Error *err) {
    Xml x = {.text = text, .end = text + bytes, .p = text, .err = err};
    bool more = true, root = false, empty = false;
    if (starts_with(&x, "\xef\xbb\xbf")) x.p += 3;
    while (more && x.p < x.end) {
        if (starts_with(&x, "<?")) {
            if (!skip_behind(&x, "?>")) return fail(&x, "ends inside a declaration");
        } else if (starts_with(&x, "<!--")) {
            if (!skip_behind(&x, "-->")) return fail(&x, "ends inside a comment");
        } else if (starts_with(&x, "<!")) {
            return fail(&x, "a document type or CDATA, which S3 does not send");
        } else if (starts_with(&x, "</")) {
            x.p += 2;
            if (!read_close_tag(&x)) return false;
            end_element(&x, each, ctx, &more);
        } else if (*x.p == '<') {
            x.p++;
            if (root && !x.depth) return fail(&x, "a second root element");
            root = true;
            if (!read_open_tag(&x, &empty)) return false;
            if (empty) end_element(&x, each, ctx, &more);
        } else if (!x.depth || x.parent) { /* between elements: blanks only, and nobody asks */
            if (!x.depth && !is_blank(*x.p)) return fail(&x, "text outside of elements");
            x.p++;
        } else if (*x.p == '&') {
            if (!read_entity(&x)) return false;
        } else {
            if (!put(&x, *x.p)) return false;
            x.p++;
        }
    }
    if (more && (!root || x.depth)) return fail(&x, root ? "ends inside an element" : "nothing in it");
    return true;
}

static void copy_printable(char *out, size_t size, const char *text) {
    size_t i = 0;
    for (; text[i] && i + 1 < size; i++) {
        unsigned char c = (unsigned char)text[i];
        out[i] = (char)(c < 0x20 || c >= 0x7f ? '?' : c);
    }
    out[i] = 0;
}

static bool error_element(void *ctx, const char *path, const char *text) {
    S3Error *error = ctx;
    if (text && !strcmp(path, "Error/Code")) copy_printable(error->code, sizeof error->code, text);
    if (text && !strcmp(path, "Error/Message")) copy_printable(error->message, sizeof error->message, text);
    return !strncmp(path, "Error/", 6);
}

bool s3_xml_error(const char *text, size_t bytes, S3Error *error) {
    Error ignored;
    memset(error, 0, sizeof *error);
    s3_xml_read(text, bytes, error_element, error, &ignored);
    return error->code[0];
}
