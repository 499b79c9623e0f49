/* http_header.c: the head of an HTTP answer (http.h), read without trust. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/http.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Printable ASCII only: what a server says is shown in messages. */
static void copy_value(char *out, size_t size, const char *value, size_t bytes) {
    size_t used = 0;
    for (size_t i = 0; i < bytes && used + 1 < size; i++)
        if (value[i] >= ' ' && value[i] < 0x7f) out[used++] = value[i];
    out[used] = 0;
}

/* Digits only, at most 19 of them. */
static bool read_number(const char **p, const char *end, uint64_t *number) {
    const char *start = *p;
    *number = 0;
    for (; *p < end && **p >= '0' && **p <= '9' && *p - start < 19; (*p)++)
        *number = *number * 10 + (uint64_t)(**p - '0');
    return *p > start && (*p == end || **p < '0' || **p > '9');
}

static void read_status(HttpHeaders *headers, const char *line, size_t bytes) {
    const char *end = line + bytes, *p = memchr(line, ' ', bytes);
    uint64_t status;
    memset(headers, 0, sizeof *headers);
    if (!p) return;
    while (p < end && *p == ' ') p++;
    if (read_number(&p, end, &status) && status >= 100 && status <= 999) headers->status = (int)status;
}

void http_header_read(HttpHeaders *headers, const char *line, size_t bytes) {
    const struct {
        const char *name;
        char *out;
        size_t size;
    } known[] = {
        {"etag", headers->etag, sizeof headers->etag},
        {"content-range", headers->content_range, sizeof headers->content_range},
        {"retry-after", headers->retry_after, sizeof headers->retry_after},
        {"date", headers->date, sizeof headers->date},
        {"x-amz-bucket-region", headers->region, sizeof headers->region},
    };
    while (bytes && (line[bytes - 1] == '\r' || line[bytes - 1] == '\n' || line[bytes - 1] == ' ')) bytes--;
    if (bytes >= 5 && !memcmp(line, "HTTP/", 5)) {
        read_status(headers, line, bytes);
        return;
    }
    const char *colon = memchr(line, ':', bytes);
    if (!colon) return;
    size_t name = (size_t)(colon - line), value = bytes - name - 1;
    const char *text = colon + 1;
    while (value && (*text == ' ' || *text == '\t')) text++, value--;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == name && !strncasecmp(line, known[i].name, name))
            copy_value(known[i].out, known[i].size, text, value);
    if (name == 14 && !strncasecmp(line, "content-length", 14)) {
        const char *p = text;
        uint64_t length;
        headers->has_length = read_number(&p, text + value, &length) && p == text + value;
        if (headers->has_length) headers->content_length = length;
    }
}

bool http_range_read(const char *value, uint64_t *begin, uint64_t *last, uint64_t *total) {
    const char *end = value + strlen(value), *p = value + 6;
    if (strncasecmp(value, "bytes ", 6)) return false;
    if (!read_number(&p, end, begin) || *p++ != '-' || !read_number(&p, end, last) || *p++ != '/')
        return false;
    if (!strcmp(p, "*"))
        *total = UINT64_MAX;
    else if (!read_number(&p, end, total) || *p)
        return false;
    return *begin <= *last && *last < *total;
}

bool http_date_read(const char *value, long long *unix_seconds) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    int day, year, hour, minute, second, used = 0;
    char month[4] = "", zone[4] = "";
    const char *comma = strchr(value, ',');
    if (!comma || comma - value > 9) return false;
    if (sscanf(comma + 1, " %2d %3s %4d %2d:%2d:%2d %3s%n", &day, month, &year, &hour, &minute, &second, zone,
               &used) != 7 ||
        strcmp(zone, "GMT"))
        return false;
    const char *found = strlen(month) == 3 ? strstr(months, month) : NULL;
    if (!found || (found - months) % 3 || day < 1 || day > 31 || year < 1970 || hour < 0 || hour > 23 ||
        minute < 0 || minute > 59 || second < 0 || second > 60)
        return false;
    /* Days since 1970 of the civil calendar, the year counted from March so that the leap day is its last. */
    long long m = (found - months) / 3 + 1, y = year - (m <= 2);
    long long era = y / 400, of_era = y - era * 400;
    long long of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    long long days = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
    *unix_seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    return true;
}

double http_retry_after(const char *value, long long unix_seconds_now) {
    const char *p = value, *end = value + strlen(value);
    uint64_t seconds;
    long long at;
    if (read_number(&p, end, &seconds) && p == end) return seconds < 3600 ? (double)seconds : 3600;
    if (!http_date_read(value, &at) || at <= unix_seconds_now) return 0;
    return at - unix_seconds_now < 3600 ? (double)(at - unix_seconds_now) : 3600;
}
