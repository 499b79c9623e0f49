/* s3_sign.c: see s3_sign.h. The canonical request is hashed piece by piece, so nothing of it can be cut off. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/s3_sign.h"
#include "base/check.h"
#include "base/sha256.h"
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static bool is_unreserved(unsigned char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           (c && strchr("-._~", c));
}

size_t s3_encode(char *out, size_t size, size_t used, const char *text, bool keep_slash) {
    for (const unsigned char *p = (const unsigned char *)text; used != SIZE_MAX && *p; p++) {
        bool plain = is_unreserved(*p) || (keep_slash && *p == '/');
        if (used + (plain ? 1 : 3) >= size) return SIZE_MAX;
        if (plain)
            out[used++] = (char)*p;
        else {
            out[used++] = '%';
            out[used++] = "0123456789ABCDEF"[*p >> 4];
            out[used++] = "0123456789ABCDEF"[*p & 15];
        }
    }
    if (used == SIZE_MAX || used >= size) return SIZE_MAX;
    out[used] = 0;
    return used;
}

/* As strcmp of what s3_encode makes of them. */
static int compare_encoded(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    unsigned char x = (unsigned char)*a, y = (unsigned char)*b;
    int code_x = x && !is_unreserved(x) ? '%' : x, code_y = y && !is_unreserved(y) ? '%' : y;
    return code_x != code_y ? code_x - code_y : x - y;
}

/* order[i]: the pair at place i when sorted by encoded name, then value. */
static void sort_pairs(const S3Pair *pairs, int count, int order[S3_PAIRS_MAX]) {
    CHECK(count >= 0 && count <= S3_PAIRS_MAX);
    for (int i = 0; i < count; i++) {
        int at = i;
        for (; at; at--) {
            const S3Pair *before = &pairs[order[at - 1]];
            int c = compare_encoded(before->name, pairs[i].name);
            if (c < 0 || (c == 0 && compare_encoded(before->value, pairs[i].value) <= 0)) break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
}

bool s3_encode_query(char *out, size_t size, const S3Pair *query, int num_query) {
    int order[S3_PAIRS_MAX];
    size_t used = 0;
    sort_pairs(query, num_query, order);
    CHECK(size > 0);
    out[0] = 0;
    for (int i = 0; i < num_query; i++) {
        const S3Pair *pair = &query[order[i]];
        if (i && used != SIZE_MAX && used + 1 < size) out[used++] = '&';
        used = s3_encode(out, size, used, pair->name, false);
        if (used == SIZE_MAX || used + 1 >= size) return false;
        out[used++] = '=';
        used = s3_encode(out, size, used, pair->value, false);
    }
    return used != SIZE_MAX;
}

static void hash_text(Sha256 *s, const char *text) {
    sha256_update(s, text, strlen(text));
}

static void hash_encoded_path(Sha256 *s, const char *path) {
    for (char one[2] = {0}, code[4]; *path; path++) {
        one[0] = *path;
        s3_encode(code, sizeof code, 0, one, true);
        hash_text(s, code);
    }
}

/* Without blanks at the ends; runs of blanks are one. */
static void hash_header_value(Sha256 *s, const char *value) {
    value += strspn(value, " \t");
    while (*value) {
        size_t word = strcspn(value, " \t"), blank = strspn(value + word, " \t");
        sha256_update(s, value, word);
        value += word + blank;
        if (blank && *value) sha256_update(s, " ", 1);
    }
}

static void hash_signed_names(Sha256 *s, const S3Request *request, const int *order) {
    for (int i = 0; i < request->num_headers; i++) {
        if (i) hash_text(s, ";");
        hash_text(s, request->headers[order[i]].name);
    }
}

static bool hash_request(const S3Request *request, const int *order, char hex[SHA256_HEX_BYTES]) {
    char query[4096];
    unsigned char hash[SHA256_BYTES];
    Sha256 s;
    if (!s3_encode_query(query, sizeof query, request->query, request->num_query)) return false;
    sha256_open(&s);
    hash_text(&s, request->method);
    hash_text(&s, "\n");
    hash_encoded_path(&s, request->path);
    hash_text(&s, "\n");
    hash_text(&s, query);
    hash_text(&s, "\n");
    for (int i = 0; i < request->num_headers; i++) {
        hash_text(&s, request->headers[order[i]].name);
        hash_text(&s, ":");
        hash_header_value(&s, request->headers[order[i]].value);
        hash_text(&s, "\n");
    }
    hash_text(&s, "\n");
    hash_signed_names(&s, request, order);
    hash_text(&s, "\n");
    hash_text(&s, request->payload_sha256);
    sha256_close(&s, hash);
    sha256_hex(hash, hex);
    return true;
}

static bool sign_text(const S3Signer *signer, const char *text, char hex[SHA256_HEX_BYTES]) {
    unsigned char key[SHA256_BYTES];
    char first[512];
    int n = snprintf(first, sizeof first, "AWS4%s", signer->secret_key);
    if (n < 0 || n >= (int)sizeof first) return false;
    hmac_sha256(first, (size_t)n, signer->time, 8, key);
    hmac_sha256(key, sizeof key, signer->region, strlen(signer->region), key);
    hmac_sha256(key, sizeof key, signer->service, strlen(signer->service), key);
    hmac_sha256(key, sizeof key, "aws4_request", 12, key);
    hmac_sha256(key, sizeof key, text, strlen(text), key);
    sha256_hex(key, hex);
    return true;
}

bool s3_sign(const S3Signer *signer, const S3Request *request, char authorization[S3_AUTHORIZATION_BYTES],
             Error *err) {
    int order[S3_PAIRS_MAX], n;
    char hex[SHA256_HEX_BYTES], scope[256], text[512], names[256] = "";
    CHECK(strlen(signer->time) == S3_TIME_BYTES - 1);
    sort_pairs(request->headers, request->num_headers, order);
    n = snprintf(scope, sizeof scope, "%.8s/%s/%s/aws4_request", signer->time, signer->region,
                 signer->service);
    if (n < 0 || n >= (int)sizeof scope || !hash_request(request, order, hex)) goto too_long;
    n = snprintf(text, sizeof text, "AWS4-HMAC-SHA256\n%s\n%s\n%s", signer->time, scope, hex);
    if (n < 0 || n >= (int)sizeof text || !sign_text(signer, text, hex)) goto too_long;
    for (int i = 0, used = 0; i < request->num_headers; i++) {
        n = snprintf(names + used, sizeof names - (size_t)used, "%s%s", i ? ";" : "",
                     request->headers[order[i]].name);
        if (n < 0 || n >= (int)sizeof names - used) goto too_long;
        used += n;
    }
    n = snprintf(authorization, S3_AUTHORIZATION_BYTES,
                 "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s", signer->access_key,
                 scope, names, hex);
    if (n < 0 || n >= S3_AUTHORIZATION_BYTES) goto too_long;
    return true;
too_long:
    return error_set(err, "cannot sign a request to S3: its region, keys or query are too long");
}

void s3_time(long long unix_seconds, char time[S3_TIME_BYTES]) {
    time_t t = (time_t)unix_seconds;
    struct tm g = {0};
    gmtime_r(&t, &g);
    CHECK(strftime(time, S3_TIME_BYTES, "%Y%m%dT%H%M%SZ", &g) == S3_TIME_BYTES - 1);
}
