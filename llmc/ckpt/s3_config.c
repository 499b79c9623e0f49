/* s3_config.c: see s3_config.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/s3_config.h"
#include "base/check.h"
#include "base/file.h"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first that is set and not empty, else "". */
static const char *environment(const char *a, const char *b) {
    const char *value = getenv(a);
    if ((!value || !*value) && b) value = getenv(b);
    return value ? value : "";
}

static bool copy(char *out, size_t size, const char *text, const char *what, Error *err) {
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] <= ' ' || (unsigned char)text[i] >= 0x7f)
            return error_set(err, "%s: a blank or an unprintable character in it", what);
    if (n >= size) return error_set(err, "%s: longer than %zu characters", what, size - 1);
    memcpy(out, text, n + 1);
    return true;
}

/* ---- the files ---- */

typedef struct {
    const char *text;
    size_t bytes;
} Span;

static Span trim(Span s) {
    while (s.bytes && isspace((unsigned char)s.text[0])) s.text++, s.bytes--;
    while (s.bytes && isspace((unsigned char)s.text[s.bytes - 1])) s.bytes--;
    return s;
}

static bool span_is(Span s, const char *text) {
    return s.bytes == strlen(text) && !memcmp(s.text, text, s.bytes);
}

static bool is_section(Span line, const char *name) {
    Span s = trim((Span){line.text + 1, line.bytes - 1});
    if (s.bytes && s.text[s.bytes - 1] == ']') s.bytes--;
    s = trim(s);
    if (s.bytes > 8 && !memcmp(s.text, "profile", 7) && isspace((unsigned char)s.text[7]))
        s = trim((Span){s.text + 7, s.bytes - 7});
    return span_is(s, name);
}

static bool set_value(S3Profile *profile, Span key, Span value, const char *file, int line, Error *err) {
    const struct {
        const char *key;
        char *out;
        size_t size;
    } known[] = {
        {"aws_access_key_id", profile->keys.access_key, sizeof profile->keys.access_key},
        {"aws_secret_access_key", profile->keys.secret_key, sizeof profile->keys.secret_key},
        {"aws_session_token", profile->keys.token, sizeof profile->keys.token},
        {"region", profile->region, sizeof profile->region},
        {"endpoint_url", profile->endpoint, sizeof profile->endpoint},
    };
    static const char *const other[] = {"role_arn", "sso_session", "sso_start_url", "credential_process",
                                        "web_identity_token_file"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (span_is(key, other[i])) snprintf(profile->needs, sizeof profile->needs, "%s", other[i]);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!span_is(key, known[i].key)) continue;
        char text[S3_TOKEN_BYTES], what[FILE_PATH_BYTES + 64];
        snprintf(what, sizeof what, "%s:%d: %s", file, line, known[i].key);
        if (value.bytes >= sizeof text || memchr(value.text, 0, value.bytes))
            return error_set(err, "%s: too long", what);
        memcpy(text, value.text, value.bytes);
        text[value.bytes] = 0;
        return copy(known[i].out, known[i].size, text, what, err);
    }
    return true;
}

bool s3_profile_read(S3Profile *profile, const char *name, const char *text, size_t bytes, const char *file,
                     Error *err) {
    bool inside = false;
    int number = 0;
    for (const char *p = text, *end = text + bytes; p < end;) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        Span whole = {p, (size_t)((newline ? newline : end) - p)}, line = trim(whole);
        p = newline ? newline + 1 : end;
        number++;
        if (!line.bytes || *line.text == '#' || *line.text == ';') continue;
        if (*line.text == '[') {
            inside = is_section(line, name);
            profile->found |= inside;
            continue;
        }
        const char *equals = memchr(line.text, '=', line.bytes);
        if (!inside || !equals || isspace((unsigned char)whole.text[0])) continue; /* indented: below s3 = */
        Span key = trim((Span){line.text, (size_t)(equals - line.text)});
        Span value = trim((Span){equals + 1, line.bytes - (size_t)(equals + 1 - line.text)});
        if (!set_value(profile, key, value, file, number, err)) return false;
    }
    return true;
}

static bool read_file(S3Profile *profile, const char *name, const char *variable, const char *in_home,
                      Error *err) {
    char path[FILE_PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    const char *given = environment(variable, NULL), *home = environment("HOME", NULL);
    if (!*given && !*home) return true;
    int n = *given ? snprintf(path, sizeof path, "%s", given)
                   : snprintf(path, sizeof path, "%s/%s", home, in_home);
    if (n < 0 || n >= (int)sizeof path) return error_set(err, "%s: the path is too long", variable);
    if (!*given && !file_exists(path)) return true;
    if (!file_read(path, S3_FILE_BYTES_MAX, &text, &bytes, err)) return false;
    bool ok = s3_profile_read(profile, name, text, bytes, path, err);
    free(text);
    return ok;
}

/* What both files say; credentials' word is the stronger. */
static bool read_profile(S3Profile *profile, const char *name, Error *err) {
    return read_file(profile, name, "AWS_CONFIG_FILE", ".aws/config", err) &&
           read_file(profile, name, "AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials", err);
}

/* ---- keys ---- */

static bool choose_keys(const S3Profile *profile, const char *name, S3Keys *keys, Error *err) {
    const char *id = environment("AWS_ACCESS_KEY_ID", NULL);
    const char *secret = environment("AWS_SECRET_ACCESS_KEY", NULL);
    const char *token = environment("AWS_SESSION_TOKEN", NULL);
    memset(keys, 0, sizeof *keys);
    if (*id || *secret) {
        if (!*id || !*secret)
            return error_set(err, "%s is set but %s is not (set both)",
                             *id ? "AWS_ACCESS_KEY_ID" : "AWS_SECRET_ACCESS_KEY",
                             *id ? "AWS_SECRET_ACCESS_KEY" : "AWS_ACCESS_KEY_ID");
        return copy(keys->access_key, sizeof keys->access_key, id, "AWS_ACCESS_KEY_ID", err) &&
               copy(keys->secret_key, sizeof keys->secret_key, secret, "AWS_SECRET_ACCESS_KEY", err) &&
               copy(keys->token, sizeof keys->token, token, "AWS_SESSION_TOKEN", err);
    }
    if (profile->keys.access_key[0] && profile->keys.secret_key[0]) {
        *keys = profile->keys;
        return true;
    }
    if (profile->needs[0])
        return error_set(err,
                         "the AWS profile %s gets its keys by %s, which is not known here (run 'eval \"$(aws "
                         "configure export-credentials --profile %s --format env)\"' first)",
                         name, profile->needs, name);
    return error_set(
        err, "no keys for S3 (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them into "
             "~/.aws/credentials; from a role: eval \"$(aws configure export-credentials --format env)\")");
}

bool s3_config_read_keys(const S3Config *config, S3Keys *keys, Error *err) {
    S3Profile profile = {0};
    return read_profile(&profile, config->profile, err) && choose_keys(&profile, config->profile, keys, err);
}

/* ---- the place ---- */

static bool set_place(S3Config *config, const char *place, Error *err) {
    const char *bucket = place + strlen("s3://");
    CHECK(!strncmp(place, "s3://", 5));
    size_t n = strcspn(bucket, "/");
    if (n < 3 || n > 63 ||
        strspn(bucket, "abcdefghijklmnopqrstuvwxyz0123456789.-_ABCDEFGHIJKLMNOPQRSTUVWXYZ") < n)
        return error_set(err, "%s: no bucket's name (write s3://bucket/prefix)", place);
    memcpy(config->bucket, bucket, n);
    config->bucket[n] = 0;
    const char *prefix = bucket + n;
    while (*prefix == '/') prefix++;
    if (!copy(config->prefix, sizeof config->prefix, prefix, place, err)) return false;
    for (n = strlen(config->prefix); n && config->prefix[n - 1] == '/';) config->prefix[--n] = 0;
    return true;
}

static bool set_endpoint(S3Config *config, const char *endpoint, Error *err) {
    if (strchr(endpoint, '@')) /* not shown: what stands before it may be a password */
        return error_set(err,
                         "AWS_ENDPOINT_URL: there is an '@' in it (keys are given by AWS_ACCESS_KEY_ID and "
                         "AWS_SECRET_ACCESS_KEY)");
    const char *host = strstr(endpoint, "://");
    size_t scheme = host ? (size_t)(host - endpoint) : 0;
    if ((scheme != 4 || strncmp(endpoint, "http", 4)) && (scheme != 5 || strncmp(endpoint, "https", 5)))
        return error_set(err, "endpoint '%.200s' of S3: neither http://HOST nor https://HOST", endpoint);
    memcpy(config->scheme, endpoint, scheme);
    config->scheme[scheme] = 0;
    host += 3;
    size_t n = strcspn(host, "/");
    if (!n || n >= sizeof config->host || strpbrk(host, " \t?#"))
        return error_set(err, "endpoint '%.200s' of S3: no host's name (write https://HOST[:PORT])",
                         endpoint);
    memcpy(config->host, host, n);
    config->host[n] = 0;
    if (!copy(config->base, sizeof config->base, host + n, "endpoint of S3", err)) return false;
    for (n = strlen(config->base); n && config->base[n - 1] == '/';) config->base[--n] = 0;
    return true;
}

static bool set_addressing(S3Config *config, bool endpoint_given, Error *err) {
    const char *style = environment("TOROID_S3_ADDRESSING", NULL);
    if (*style && strcmp(style, "path") && strcmp(style, "virtual"))
        return error_set(err, "TOROID_S3_ADDRESSING: '%.40s' is neither path nor virtual", style);
    /* a certificate for *.host does not cover names with more dots */
    config->path_style = *style ? !strcmp(style, "path") : endpoint_given || strchr(config->bucket, '.');
    return true;
}

bool s3_config_read(S3Config *config, const char *place, Error *err) {
    S3Profile profile = {0};
    const char *name = environment("AWS_PROFILE", "AWS_DEFAULT_PROFILE");
    memset(config, 0, sizeof *config);
    if (!set_place(config, place, err)) return false;
    if (!copy(config->profile, sizeof config->profile, *name ? name : "default", "AWS_PROFILE", err))
        return false;
    if (!read_profile(&profile, config->profile, err)) return false;
    if (*name && !profile.found && !*environment("AWS_ACCESS_KEY_ID", NULL))
        return error_set(err, "AWS_PROFILE: there is no profile '%s' in ~/.aws/credentials or ~/.aws/config",
                         config->profile);
    const char *region = environment("AWS_REGION", "AWS_DEFAULT_REGION");
    if (!*region) region = profile.region;
    if (!copy(config->region, sizeof config->region, *region ? region : "us-east-1", "AWS_REGION", err))
        return false;
    const char *endpoint = environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL");
    if (!*endpoint) endpoint = profile.endpoint;
    char aws[128];
    snprintf(aws, sizeof aws, "https://s3.%s.amazonaws.com%s", config->region,
             strncmp(config->region, "cn-", 3) ? "" : ".cn");
    return set_endpoint(config, *endpoint ? endpoint : aws, err) && set_addressing(config, *endpoint, err) &&
           copy(config->ca_bundle, sizeof config->ca_bundle, environment("AWS_CA_BUNDLE", NULL),
                "AWS_CA_BUNDLE", err) &&
           choose_keys(&profile, config->profile, &config->keys, err);
}
