/* fuzz_s3.c: any bytes as an XML answer, an HTTP header, a profile file, or a file of finished parts: nothing outside the
 * memory is touched, and what is accepted is within its bounds. The first byte chooses. Run by test_s3_parse.c and by
 * libFuzzer; see fuzz.h. */
#include "base/check.h"
#include "ckpt/http.h"
#include "ckpt/s3_config.h"
#include "ckpt/s3_resume.h"
#include "ckpt/s3_xml.h"
#include "fuzz.h"

static bool fuzz_element(void *ctx, const char *path, const char *text) {
    (*(int *)ctx)++;
    CHECK(strlen(path) && strlen(path) < S3_XML_PATH_BYTES);
    CHECK(!text || strlen(text) < S3_XML_TEXT_BYTES);
    return *(int *)ctx < 1000;
}

static void fuzz_xml(const char *text, size_t bytes) {
    Error err = {""};
    int elements = 0;
    S3Error error;
    if (!s3_xml_read(text, bytes, fuzz_element, &elements, &err))
        CHECK(err.text[0]);
    else
        CHECK(elements > 0);
    if (s3_xml_error(text, bytes, &error))
        for (const char *p = error.code; *p; p++) CHECK(*p >= 0x20 && *p < 0x7f);
}

static void fuzz_headers(const char *text, size_t bytes) {
    HttpHeaders headers = {0};
    uint64_t begin, last, total;
    long long seconds;
    for (const char *p = text, *end = text + bytes; p < end;) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        size_t n = newline ? (size_t)(newline + 1 - p) : (size_t)(end - p);
        http_header_read(&headers, p, n);
        p += n;
    }
    CHECK(headers.status >= 0 && headers.status <= 999);
    if (http_range_read(headers.content_range, &begin, &last, &total)) CHECK(begin <= last && last < total);
    if (http_date_read(headers.date, &seconds)) CHECK(seconds >= 0 && seconds < 400000000000);
    double wait = http_retry_after(headers.retry_after, 1000000000);
    CHECK(wait >= 0 && wait <= 3600);
}

static void fuzz_profile(const char *text, size_t bytes) {
    S3Profile profile = {0};
    Error err = {""};
    if (!s3_profile_read(&profile, "default", text, bytes, "fuzz", &err)) {
        CHECK(err.text[0]);
        return;
    }
    for (const char *p = profile.keys.secret_key; *p; p++) CHECK(*p > ' ' && *p < 0x7f);
    CHECK(memchr(profile.region, 0, sizeof profile.region) &&
          memchr(profile.endpoint, 0, sizeof profile.endpoint));
}

static void fuzz_resume(const char *text, size_t bytes) {
    static S3Part parts[S3_PARTS_MAX];
    S3Progress progress = {.parts = parts};
    s3_resume_parse(&progress, text, bytes, "s3://b", "key", 100);
    if (!progress.id[0]) return;
    CHECK(progress.num_parts >= 1 && progress.num_parts <= S3_PARTS_MAX && progress.bytes == 100);
    CHECK(progress.part_bytes * (uint64_t)progress.num_parts >= 100);
    for (int i = 0; i < S3_PARTS_MAX; i++)
        CHECK(!parts[i].done || (i < progress.num_parts && parts[i].etag[0]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (!bytes) return 0;
    const char *text = (const char *)data + 1;
    switch (data[0] % 4) {
    case 0: fuzz_xml(text, bytes - 1); break;
    case 1: fuzz_headers(text, bytes - 1); break;
    case 2: fuzz_profile(text, bytes - 1); break;
    default: fuzz_resume(text, bytes - 1);
    }
    return 0;
}
