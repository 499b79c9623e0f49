/* test_s3_sign.c: the signer of requests to S3 against what AWS published.
 *
 * Two sources. "S3": the four worked examples of "Signature Calculations for the Authorization Header: Transferring
 * Payload in a Single Chunk" in the Amazon S3 API Reference (sig-v4-header-based-auth). "suite": AWS's Signature Version
 * 4 test suite (aws-sig-v4-test-suite, as in awslabs/aws-c-auth, tests/aws-signing-test-suite/v4), of which those cases
 * apply that do not rest on the path normalisation that S3 does not do. */
#include "base/sha256.h"
#include "ckpt/s3_sign.h"
#include "test.h"

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define TOKEN                                                                                                \
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTf" \
    "lfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HF" \
    "vlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr" \
    "4rvx3iSIlTJabIQwj2ICCR/oLxBA=="

typedef struct {
    const char *name, *method, *path;
    S3Pair query[8];   /* up to the first without a name */
    S3Pair headers[8]; /* beyond host and x-amz-date */
    const char *payload, *signature;
} Vector;

static const Vector s3_vectors[] = {
    {"GET Object",
     "GET",
     "/test.txt",
     {{0, 0}},
     {{"range", "bytes=0-9"}, {"x-amz-content-sha256", EMPTY}},
     EMPTY,
     "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
    {"PUT Object",
     "PUT",
     "/test$file.text",
     {{0, 0}},
     {{"date", "Fri, 24 May 2013 00:00:00 GMT"},
      {"x-amz-storage-class", "REDUCED_REDUNDANCY"},
      {"x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"}},
     "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
     "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
    {"GET Bucket Lifecycle",
     "GET",
     "/",
     {{"lifecycle", ""}},
     {{"x-amz-content-sha256", EMPTY}},
     EMPTY,
     "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
    {"GET Bucket (List Objects)",
     "GET",
     "/",
     {{"prefix", "J"}, {"max-keys", "2"}},
     {{"x-amz-content-sha256", EMPTY}},
     EMPTY,
     "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
};

static const Vector suite_vectors[] = {
    {"get-vanilla",
     "GET",
     "/",
     {{0, 0}},
     {{0, 0}},
     EMPTY,
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
    {"get-header-value-trim",
     "GET",
     "/",
     {{0, 0}},
     {{"my-header1", " value1"}, {"my-header2", " \"a   b   c\""}},
     EMPTY,
     "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
    {"get-space-unnormalized",
     "GET",
     "/example space/",
     {{0, 0}},
     {{0, 0}},
     EMPTY,
     "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
    {"get-utf8",
     "GET",
     "/\xe1\x88\xb4",
     {{0, 0}},
     {{0, 0}},
     EMPTY,
     "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
    {"get-vanilla-query-order-encoded",
     "GET",
     "/",
     {{"Param-3", "Value3"}, {"Param", "Value2"}, {"\xe1\x88\xb4", "Value1"}},
     {{0, 0}},
     EMPTY,
     "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
    {"get-vanilla-with-session-token",
     "GET",
     "/",
     {{0, 0}},
     {{"x-amz-security-token", "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"}},
     EMPTY,
     "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
    {"post-sts-header-before",
     "POST",
     "/",
     {{0, 0}},
     {{"x-amz-security-token", TOKEN}},
     EMPTY,
     "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"},
    {"post-x-www-form-urlencoded",
     "POST",
     "/",
     {{0, 0}},
     {{"content-type", "application/x-www-form-urlencoded"},
      {"content-length", "13"},
      {"x-amz-content-sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"}},
     "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
     "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"},
};

static void check_vector(const S3Signer *signer, const char *host, const Vector *v) {
    S3Pair headers[S3_PAIRS_MAX] = {{"x-amz-date", signer->time}, {"host", host}};
    char authorization[S3_AUTHORIZATION_BYTES] = "";
    Error err = {""};
    S3Request request = {v->method, v->path, v->query, 0, headers, 2, v->payload};
    while (v->query[request.num_query].name) request.num_query++;
    for (int i = 0; v->headers[i].name; i++) headers[request.num_headers++] = v->headers[i];
    TEST_CHECK(s3_sign(signer, &request, authorization, &err), "%s: %s", v->name, err.text);
    const char *signature = strstr(authorization, "Signature=");
    TEST_CHECK(signature && !strcmp(signature + 10, v->signature), "%s: %s", v->name, authorization);
}

static void test_vectors(void) {
    const S3Signer s3 = {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1",
                         "s3", "20130524T000000Z"};
    const S3Signer suite = {"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "service",
                            "20150830T123600Z"};
    for (size_t i = 0; i < sizeof s3_vectors / sizeof *s3_vectors; i++)
        check_vector(&s3, "examplebucket.s3.amazonaws.com", &s3_vectors[i]);
    for (size_t i = 0; i < sizeof suite_vectors / sizeof *suite_vectors; i++)
        check_vector(&suite, "example.amazonaws.com", &suite_vectors[i]);
    unsigned char hash[SHA256_BYTES];
    char hex[SHA256_HEX_BYTES];
    sha256("Welcome to Amazon S3.", 21, hash); /* the payload of PUT Object */
    sha256_hex(hash, hex);
    TEST_CHECK(!strcmp(hex, s3_vectors[1].payload), "%s", hex);
}

static void test_whole_header(void) {
    const S3Signer signer = {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1",
                             "s3", "20130524T000000Z"};
    const S3Pair headers[] = {{"x-amz-date", "20130524T000000Z"},
                              {"range", "bytes=0-9"},
                              {"host", "examplebucket.s3.amazonaws.com"},
                              {"x-amz-content-sha256", EMPTY}};
    S3Request request = {"GET", "/test.txt", NULL, 0, headers, 4, EMPTY};
    char authorization[S3_AUTHORIZATION_BYTES] = "", region[300];
    Error err = {""};
    TEST_CHECK(s3_sign(&signer, &request, authorization, &err), "%s", err.text);
    TEST_CHECK(!strcmp(authorization,
                       "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
                       "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
                       "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
               "%s", authorization);
    memset(region, 'r', sizeof region - 1);
    region[sizeof region - 1] = 0;
    S3Signer too_long = signer;
    too_long.region = region;
    TEST_CHECK(!s3_sign(&too_long, &request, authorization, &err) && strstr(err.text, "too long"), "%s",
               err.text);
}

static void test_encoding(void) {
    char out[64], stamp[S3_TIME_BYTES];
    TEST_CHECK(s3_encode(out, sizeof out, 0, "a b/c~\xff+", true) == 14 && !strcmp(out, "a%20b/c~%FF%2B"),
               "%s", out);
    TEST_CHECK(s3_encode(out, sizeof out, 2, "/", false) == 5 && !strcmp(out, "a%%2F"), "%s", out);
    for (size_t size = 1; size < 8; size++) {
        bool fits = s3_encode(out, size, 0, "ab/%", true) != SIZE_MAX;
        TEST_CHECK(fits == (size >= 7), "6 characters in %zu bytes", size);
    }
    S3Pair pairs[] = {{"uploadId", "a+b/c"}, {"partNumber", "12"}};
    TEST_CHECK(s3_encode_query(out, sizeof out, pairs, 2) && !strcmp(out, "partNumber=12&uploadId=a%2Bb%2Fc"),
               "%s", out);
    for (size_t size = 1; size < 64; size++)
        TEST_CHECK(s3_encode_query(out, size, pairs, 2) == (size >= 33), "%zu bytes", size);
    TEST_CHECK(s3_encode_query(out, 1, NULL, 0) && !out[0], "nothing");
    s3_time(1369353600, stamp);
    TEST_CHECK(!strcmp(stamp, "20130524T000000Z"), "%s", stamp);
}

int main(void) {
    test_vectors();
    test_whole_header();
    test_encoding();
    return test_end("s3_sign");
}
