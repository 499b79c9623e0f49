/* test_s3_parse.c: what comes from a server or a user's files: XML answers, HTTP headers, profiles, places, files of
 * finished parts; and fuzz_s3.c. */
#define _XOPEN_SOURCE 700
#include "fuzz_s3.c"
#include "test.h"
#include "test_folder.h"

typedef struct {
    char text[4096];
} Seen;

static bool see(void *ctx, const char *path, const char *text) {
    Seen *seen = ctx;
    size_t used = strlen(seen->text);
    snprintf(seen->text + used, sizeof seen->text - used, "%s=%s;", path, text ? text : "(parent)");
    return true;
}

static void test_xml(void) {
    static const struct {
        const char *xml, *seen;
    } good[] = {
        {"<?xml version=\"1.0\"?>\n<A xmlns=\"http://x/\"><B>one</B>\n <C/></A>\n",
         "A/B=one;A/C=;A=(parent);"},
        {"<a:R><a:K a='>'>x&amp;y&lt;&#65;&#x20ac;</a:K></a:R>", "R/K=x&y<A\xe2\x82\xac;R=(parent);"},
        {"<!-- c --><R> text </R><!-- d -->", "R= text ;"},
    };
    static const char *const bad[] = {
        "",
        "text",
        "<A>",
        "<A></B>",
        "</A>",
        "<A/><B/>",
        "<A>&nbsp;</A>",
        "<A>&#0;</A>",
        "<A>&#x110000;</A>",
        "<!DOCTYPE A><A/>",
        "<A><![CDATA[x]]></A>",
        "<A",
        "<A></A",
        "<></>",
        "<A/>x",
    };
    Error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        Seen seen = {""};
        TEST_CHECK(s3_xml_read(good[i].xml, strlen(good[i].xml), see, &seen, &err), "%s: %s", good[i].xml,
                   err.text);
        TEST_CHECK(!strcmp(seen.text, good[i].seen), "%s: %s", good[i].xml, seen.text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Seen seen = {""};
        TEST_CHECK(!s3_xml_read(bad[i], strlen(bad[i]), see, &seen, &err), "%s: accepted: %s", bad[i],
                   seen.text);
    }
    char deep[512] = "";
    for (int i = 0; i < 17; i++) strcat(deep, "<A>");
    for (int i = 0; i < 17; i++) strcat(deep, "</A>");
    Seen seen = {""};
    TEST_CHECK(!s3_xml_read(deep, strlen(deep), see, &seen, &err) && strstr(err.text, "deep"), "%s",
               err.text);
    S3Error error;
    const char *refusal =
        "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>a\nb</Message></Error>";
    TEST_CHECK(s3_xml_error(refusal, strlen(refusal), &error) && !strcmp(error.code, "SlowDown") &&
                   !strcmp(error.message, "a?b"),
               "%s, %s", error.code, error.message);
    TEST_CHECK(!s3_xml_error("<A><Code>x</Code></A>", 21, &error), "an error in %s", error.code);
}

static void read_head(HttpHeaders *headers, const char *const *lines) {
    memset(headers, 0xff, sizeof *headers);
    for (; *lines; lines++) http_header_read(headers, *lines, strlen(*lines));
}

static void test_headers(void) {
    static const char *const lines[] = {"HTTP/1.1 100 Continue\r\n",
                                        "ETag: \"x\"\r\n",
                                        "HTTP/1.1 206 Partial\r\n",
                                        "content-LENGTH:  17 \r\n",
                                        "Content-Range: bytes 5-21/100\r\n",
                                        "Retry-After:\t12\r\n",
                                        "ETag: \"abc\x01\"\r\n",
                                        "nothing\r\n",
                                        NULL};
    static const char *const bad[] = {"HTTP/1.1 x\r\n", "Content-Length: 1x\r\n",
                                      "Content-Length: 99999999999999999999\r\n", NULL};
    HttpHeaders h;
    uint64_t begin = 0, last = 0, total = 0;
    long long seconds = 0;
    read_head(&h, lines);
    TEST_CHECK(h.status == 206 && h.has_length && h.content_length == 17, "%d", h.status);
    TEST_CHECK(!strcmp(h.etag, "\"abc\"") && !h.date[0], "%s", h.etag);
    TEST_CHECK(http_range_read(h.content_range, &begin, &last, &total) && begin == 5 && last == 21 &&
                   total == 100,
               "%s", h.content_range);
    TEST_CHECK(http_range_read("bytes 0-0/*", &begin, &last, &total) && total == UINT64_MAX, "total unknown");
    static const char *const ranges[] = {
        "bytes 5-4/9",  "bytes 0-9/9", "bytes -4/9", "bytes 1-2", "bytes 1-2/3x",
        "items 1-2/30", "bytes 1-2/",  "",           NULL};
    for (int i = 0; ranges[i]; i++)
        TEST_CHECK(!http_range_read(ranges[i], &begin, &last, &total), "'%s' is accepted", ranges[i]);
    read_head(&h, bad);
    TEST_CHECK(h.status == 0 && !h.has_length, "%d %d", h.status, h.has_length);
    TEST_CHECK(http_date_read("Sun, 06 Nov 1994 08:49:37 GMT", &seconds) && seconds == 784111777, "%lld",
               seconds);
    TEST_CHECK(http_date_read("Thu, 29 Feb 2024 00:00:00 GMT", &seconds) && seconds == 1709164800, "%lld",
               seconds);
    TEST_CHECK(!http_date_read("Sun, 06 Nov 1994 08:49:37 CET", &seconds) &&
                   !http_date_read("06 Nov", &seconds) &&
                   !http_date_read("Sun, 06 vJa 1994 08:49:37 GMT", &seconds),
               "bad dates are accepted");
    TEST_CHECK(http_retry_after("12", 0) == 12 && http_retry_after("99999", 0) == 3600 &&
                   http_retry_after("", 0) == 0,
               "seconds");
    TEST_CHECK(http_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 784111770) == 7 &&
                   http_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 784111780) == 0,
               "dates");
}

static const char credentials[] =
    "# comment\n[default]\naws_access_key_id = AKID\naws_secret_access_key=s3cr3t/+=\n\n"
    "[two]\r\naws_access_key_id=TWO\r\naws_secret_access_key=TWOSECRET\r\n"
    "aws_session_token = TOK==\r\n[three]\nrole_arn = x\n";
static const char config[] = "[default]\nregion = eu-west-3\n[profile two]\nregion=us-west-2\n"
                             "endpoint_url = https://two.example\ns3 =\n  endpoint_url = http://wrong\n";

static void test_profiles(void) {
    S3Profile p = {0};
    Error err;
    TEST_CHECK(s3_profile_read(&p, "two", config, strlen(config), "config", &err) &&
                   s3_profile_read(&p, "two", credentials, strlen(credentials), "credentials", &err),
               "%s", err.text);
    TEST_CHECK(p.found && !strcmp(p.keys.access_key, "TWO") && !strcmp(p.keys.secret_key, "TWOSECRET") &&
                   !strcmp(p.keys.token, "TOK==") && !strcmp(p.region, "us-west-2") &&
                   !strcmp(p.endpoint, "https://two.example"),
               "%s %s %s", p.keys.access_key, p.region, p.endpoint);
    memset(&p, 0, sizeof p);
    s3_profile_read(&p, "default", credentials, strlen(credentials), "credentials", &err);
    TEST_CHECK(!strcmp(p.keys.secret_key, "s3cr3t/+=") && !p.keys.token[0], "%s", p.keys.access_key);
    char longer[400] = "[default]\nx=1\nregion = ";
    memset(longer + strlen(longer), 'r', 100);
    TEST_CHECK(!s3_profile_read(&p, "default", longer, strlen(longer), "file", &err) &&
                   strstr(err.text, "file:3: region"),
               "%s", err.text);
}

static bool config_with(const char *place, const char *endpoint, S3Config *c, Error *err) {
    if (endpoint)
        setenv("AWS_ENDPOINT_URL", endpoint, 1);
    else
        unsetenv("AWS_ENDPOINT_URL");
    return s3_config_read(c, place, err);
}

static void test_places(void) {
    static const char *const clear[] = {"AWS_ACCESS_KEY_ID",   "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
                                        "AWS_REGION",          "AWS_DEFAULT_REGION",    "AWS_ENDPOINT_URL_S3",
                                        "AWS_PROFILE",         "AWS_DEFAULT_PROFILE",   "AWS_CA_BUNDLE",
                                        "TOROID_S3_ADDRESSING"};
    for (size_t i = 0; i < sizeof clear / sizeof *clear; i++) unsetenv(clear[i]);
    test_folder_open();
    TestPath a = test_path("credentials"), b = test_path("config");
    test_file_write(a.path, credentials, strlen(credentials));
    test_file_write(b.path, config, strlen(config));
    setenv("AWS_SHARED_CREDENTIALS_FILE", a.path, 1);
    setenv("AWS_CONFIG_FILE", b.path, 1);
    S3Config *c = malloc(sizeof *c);
    Error err = {""};
    TEST_CHECK(config_with("s3://bucket/a/b/", NULL, c, &err), "%s", err.text);
    TEST_CHECK(!strcmp(c->bucket, "bucket") && !strcmp(c->prefix, "a/b") && !strcmp(c->region, "eu-west-3") &&
                   !strcmp(c->host, "s3.eu-west-3.amazonaws.com") && !strcmp(c->scheme, "https") &&
                   !c->path_style && !strcmp(c->keys.access_key, "AKID"),
               "%s %s %s %s", c->bucket, c->prefix, c->region, c->host);
    TEST_CHECK(config_with("s3://bucket", "http://localhost:9000/base/", c, &err) && c->path_style &&
                   !strcmp(c->host, "localhost:9000") && !strcmp(c->base, "/base") && !c->prefix[0],
               "%s %s", c->host, err.text);
    TEST_CHECK(config_with("s3://a.b.c", NULL, c, &err) && c->path_style, "a bucket with dots");
    setenv("AWS_PROFILE", "two", 1);
    TEST_CHECK(config_with("s3://bucket", NULL, c, &err) && !strcmp(c->host, "two.example") &&
                   !strcmp(c->keys.token, "TOK=="),
               "%s", c->host);
    static const struct {
        const char *profile, *place, *endpoint, *message;
    } bad[] = {
        {"default", "s3://", NULL, "no bucket"},
        {"default", "s3://b", NULL, "no bucket"},
        {"default", "s3://buck et/x", NULL, "no bucket"},
        {"default", "s3://bucket/x y", NULL, "blank"},
        {"default", "s3://bucket", "localhost:9000", "neither http"},
        {"default", "s3://bucket", "ftp://localhost", "neither http"},
        {"default", "s3://bucket", "http:///x", "no host"},
        {"default", "s3://bucket", "http://user:hidden@host", "'@'"},
        {"nobody", "s3://bucket", NULL, "no profile 'nobody'"},
        {"three", "s3://bucket", NULL, "role_arn"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("AWS_PROFILE", bad[i].profile, 1);
        TEST_CHECK(!config_with(bad[i].place, bad[i].endpoint, c, &err) && strstr(err.text, bad[i].message) &&
                       !strstr(err.text, "hidden"),
                   "%s: %s", bad[i].message, err.text);
    }
    setenv("AWS_ACCESS_KEY_ID", "ONE", 1);
    TEST_CHECK(!config_with("s3://bucket", NULL, c, &err) && strstr(err.text, "AWS_SECRET_ACCESS_KEY is not"),
               "%s", err.text);
    setenv("AWS_SECRET_ACCESS_KEY", "top secret", 1);
    TEST_CHECK(!config_with("s3://bucket", NULL, c, &err) && !strstr(err.text, "top secret"), "%s", err.text);
    free(c);
    test_folder_close();
}

static void test_resume(void) {
    static S3Part parts[S3_PARTS_MAX], again[S3_PARTS_MAX];
    S3Progress p = {.id = "the-id==", .bytes = 25, .part_bytes = 10, .num_parts = 3, .parts = parts};
    S3Progress q = {.parts = again};
    Error err = {""};
    size_t bytes = 0;
    test_folder_open();
    TestPath path = test_path("resume");
    snprintf(parts[0].etag, sizeof parts[0].etag, "\"one\"");
    parts[0].done = true;
    memset(parts[0].hash, 0xa5, sizeof parts[0].hash);
    snprintf(parts[2].etag, sizeof parts[2].etag, "\"three\"");
    TEST_CHECK(s3_resume_begin(&p, path.path, "s3://b at http://h", "k/e/y", &err) &&
                   s3_resume_part(path.path, 3, &parts[2], &err),
               "%s", err.text);
    s3_resume_read(&q, path.path, "s3://b at http://h", "k/e/y", 25);
    TEST_CHECK(!strcmp(q.id, p.id) && q.num_parts == 3 && q.part_bytes == 10, "%s", q.id);
    TEST_CHECK(again[0].done && !again[1].done && again[2].done && !strcmp(again[2].etag, "\"three\"") &&
                   !memcmp(again[0].hash, parts[0].hash, sizeof parts[0].hash),
               "parts");
    s3_resume_read(&q, path.path, "s3://b at http://h", "k/e/y", 26);
    TEST_CHECK(!q.id[0], "another size");
    s3_resume_read(&q, path.path, "s3://c at http://h", "k/e/y", 25);
    TEST_CHECK(!q.id[0], "another place");
    s3_resume_read(&q, test_path("nothing").path, "s3://b at http://h", "k/e/y", 25);
    TEST_CHECK(!q.id[0], "no file");
    uint8_t *text = test_file_read(path.path, &bytes);
    size_t lines = 0;
    for (size_t cut = 0; cut <= bytes; cut++) { /* torn anywhere: the longest valid prefix */
        if (cut && text[cut - 1] == '\n') lines++;
        s3_resume_parse(&q, (char *)text, cut, "s3://b at http://h", "k/e/y", 25);
        TEST_CHECK((q.id[0] != 0) == (lines > 0) && again[0].done == (lines > 1) &&
                       again[2].done == (lines > 2),
                   "cut at %zu", cut);
    }
    for (size_t at = 0; at < bytes; at++) { /* no changed line is believed */
        text[at] ^= 1;
        s3_resume_parse(&q, (char *)text, bytes, "s3://b at http://h", "k/e/y", 25);
        TEST_CHECK(!(q.id[0] && again[0].done && again[2].done), "changed at %zu", at);
        text[at] ^= 1;
    }
    free(text);
    test_folder_close();
}

static void test_fuzz(void) {
    static char profile[sizeof credentials + 1] = "2", resume[] = "3"
                                                                  "00000000 upload s3://b key 100 10 id\n";
    memcpy(profile + 1, credentials, sizeof credentials);
    const char *const seeds[] = {
        "0<?xml "
        "version=\"1.0\"?><ListPartsResult><Part><PartNumber>1</PartNumber><ETag>&quot;x&quot;</"
        "ETag><Size>5</Size>"
        "</Part></ListPartsResult>",
        "0<Error><Code>SlowDown</Code><Message>&#x20ac;</Message></Error>",
        "1HTTP/1.1 206 OK\r\nContent-Length: 17\r\nContent-Range: bytes 5-21/100\r\nRetry-After: 12\r\n"
        "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"x\"\r\n",
        profile, resume};
    test_checks += fuzz_run(LLVMFuzzerTestOneInput, seeds, 5, 60000);
}

int main(void) {
    test_xml();
    test_headers();
    test_profiles();
    test_places();
    test_resume();
    test_fuzz();
    return test_end("s3_parse");
}
