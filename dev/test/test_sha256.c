/* test_sha256.c: SHA-256 against the examples of FIPS 180-4 and, with sha256sum's results, at every length around a
 * block; HMAC against RFC 4231; the processor's instructions against plain C. */
#include "base/sha256.h"
#include "test.h"

static void check_hash(const char *what, const unsigned char hash[SHA256_BYTES], const char *expected) {
    char hex[SHA256_HEX_BYTES];
    test_poison(hex, sizeof hex);
    sha256_hex(hash, hex);
    TEST_CHECK(!strcmp(hex, expected), "%s: %s, expected %s", what, hex, expected);
}

static void test_examples(void) {
    static const struct {
        const char *text, *hash;
    } examples[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    unsigned char hash[SHA256_BYTES];
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        sha256(examples[i].text, strlen(examples[i].text), hash);
        check_hash(examples[i].text, hash, examples[i].hash);
        test_poison(hash, sizeof hash);
        sha256_portable(examples[i].text, strlen(examples[i].text), hash);
        check_hash(examples[i].text, hash, examples[i].hash);
    }
    char *million = malloc(1000000); /* FIPS 180-4: a million times 'a' */
    memset(million, 'a', 1000000);
    sha256(million, 1000000, hash);
    check_hash("a million a", hash, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

static void test_pieces(void) {
    unsigned char data[400], a[SHA256_BYTES], b[SHA256_BYTES];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 31 + (i >> 3));
    for (size_t bytes = 0; bytes <= sizeof data; bytes++) {
        test_poison(a, sizeof a);
        sha256(data, bytes, a);
        sha256_portable(data, bytes, b);
        TEST_CHECK(!memcmp(a, b, sizeof a), "%zu bytes: not what plain C gives", bytes);
        Sha256 s;
        sha256_open(&s);
        size_t cut = bytes * 3 / 7, second = (bytes - cut) / 2;
        sha256_update(&s, data, cut);
        sha256_update(&s, data + cut, second);
        sha256_update(&s, data + cut + second, bytes - cut - second);
        sha256_close(&s, a);
        TEST_CHECK(!memcmp(a, b, sizeof a), "%zu bytes in pieces", bytes);
    }
}

static void test_hmac(void) {
    unsigned char mac[SHA256_BYTES], key[131];
    memset(key, 0x0b, 20); /* RFC 4231, test cases 1, 2 and 6 */
    hmac_sha256(key, 20, "Hi There", 8, mac);
    check_hash("case 1", mac, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, mac);
    check_hash("case 2", mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, 131);
    hmac_sha256(key, 131, "Test Using Larger Than Block-Size Key - Hash Key First", 54, mac);
    check_hash("case 6", mac, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

int main(void) {
    test_examples();
    test_pieces();
    test_hmac();
    return test_end("sha256");
}
