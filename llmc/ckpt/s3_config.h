/* s3_config.h: where S3 is and who we are: from the place, the environment, and the AWS configuration files.
 *
 * Environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; AWS_REGION, AWS_DEFAULT_REGION;
 * AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL; AWS_PROFILE; AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE; AWS_CA_BUNDLE;
 * TOROID_S3_ADDRESSING (path, virtual). Files: ~/.aws/credentials, ~/.aws/config. Secrets are in no message. */
#ifndef LLMC_S3_CONFIG_H
#define LLMC_S3_CONFIG_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>

enum { S3_TOKEN_BYTES = 4096, S3_FILE_BYTES_MAX = 1 << 20 };

/* Long-lived keys have no token: "". */
typedef struct {
    char access_key[256], secret_key[256], token[S3_TOKEN_BYTES];
} S3Keys;

typedef struct {
    char bucket[128];
    char prefix[512]; /* "" or without '/' at its ends */
    char region[64];
    char scheme[8];    /* http or https */
    char host[256];    /* name[:port] of the endpoint, without the bucket */
    char base[256];    /* path of the endpoint, "" or "/..." */
    char profile[128]; /* in the files */
    char ca_bundle[1024];
    bool path_style; /* /bucket/key on the endpoint's host, else bucket.host/key */
    S3Keys keys;
} S3Config;

/* place: s3://bucket[/prefix]. Errors say what is missing and how to give it. */
bool s3_config_read(S3Config *config, const char *place, Error *err);
/* The keys again, since whoever renews them writes them into the files. */
bool s3_config_read_keys(const S3Config *config, S3Keys *keys, Error *err);

/* What one profile says in one of the files. */
typedef struct {
    S3Keys keys;
    char region[64], endpoint[512];
    bool found;
    char needs[32]; /* role_arn, sso_session, ...: a way to get keys that is not known here; "" none */
} S3Profile;
/* text of credentials (sections [name]) or config ([profile name], [default]); adds to *profile. Lines that are not
 * understood are passed over, as AWS's tools do; a value that is too long is an error that names the line. */
bool s3_profile_read(S3Profile *profile, const char *name, const char *text, size_t bytes, const char *file,
                     Error *err);
#endif
