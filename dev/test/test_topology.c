/* test_topology.c: shapes, neighbours, files read and written; what is wrong in a file is refused with its line; fuzzed
 * by fuzz_topology.c. */
#define _XOPEN_SOURCE 700
#include "comm/topology.h"
#include "fuzz_topology.c"
#include "test.h"
#include "test_folder.h"

static bool parse(Topology *t, const char *text, int size, Error *err) {
    return topology_parse(t, text, strlen(text), "t.topo", size, err);
}

static void test_specs(void) {
    static const struct {
        const char *spec;
        int size, axes, places;
    } good[] = {{"", 5, 0, 5},
                {"flat:64", 64, 0, 64},
                {"flat:3", 0, 0, 3},
                {"ring:8", 8, 1, 8},
                {"ring:1", 1, 1, 1},
                {"torus:4x4x4", 64, 3, 64},
                {"torus:2x1x3", 6, 3, 6},
                {"torus:2x2x2x2", 16, 4, 16},
                {"torus:65536", 65536, 1, 65536}};
    static const struct {
        const char *spec;
        int size;
    } bad[] = {{"ring", 8},
               {"ring:", 8},
               {"ring:0", 0},
               {"ring:2x4", 8},
               {"ring:7", 8},
               {"torus:2x2x", 4},
               {"torus:2x2x2x2x2", 32},
               {"torus:65537", 0},
               {"flat:0", 0},
               {"torus:256x257", 0},
               {"torus: 2x2", 4},
               {"torus:99999999999999999999", 0},
               {"mesh:2x2", 4},
               {"torus:-2x2", 4},
               {"flat:65537", 0},
               {"file:/nowhere/at/all", 4},
               {"torus:1x65536x2", 0}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        Topology t;
        Error err = {""};
        bool ok = topology_open(&t, good[i].spec, good[i].size, &err);
        TEST_CHECK(ok && t.axes == good[i].axes && t.places == good[i].places, "%s: %s", good[i].spec,
                   err.text);
        topology_close(&t);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Topology t;
        Error err = {""};
        TEST_CHECK(!topology_open(&t, bad[i].spec, bad[i].size, &err) && err.text[0], "%s", bad[i].spec);
        topology_close(&t);
    }
}

static void test_neighbours(void) {
    Topology t;
    Error err = {""};
    TEST_CHECK(parse(&t, "torus 4x2x3x1 wrap 1101\n", 24, &err), "%s", err.text);
    int c[TOPOLOGY_AXES_MAX];
    topology_coordinates(&t, 4 * 2 * 2 + 4 + 3, c); /* 3,1,2,0 */
    TEST_CHECK(c[0] == 3 && c[1] == 1 && c[2] == 2 && c[3] == 0, "%d,%d,%d,%d", c[0], c[1], c[2], c[3]);
    TEST_CHECK(topology_neighbour(&t, 3, 0, 1) == 0 && topology_neighbour(&t, 0, 0, -1) == 3, "x wraps");
    TEST_CHECK(topology_neighbour(&t, 0, 1, 1) == 4 && topology_neighbour(&t, 0, 1, -1) == 4, "y: one wire");
    TEST_CHECK(topology_one_wire(&t, 1) && !topology_one_wire(&t, 0) && !topology_one_wire(&t, 3),
               "one wire");
    TEST_CHECK(topology_neighbour(&t, 0, 2, -1) == -1 && topology_neighbour(&t, 16, 2, 1) == -1,
               "z is a line");
    TEST_CHECK(topology_neighbour(&t, 0, 2, 1) == 8 && !topology_link(&t, 0, 2, -1), "z is a line");
    TEST_CHECK(topology_neighbour(&t, 0, 3, 1) == -1, "w has one place");
    TEST_CHECK(!t.known[0] && t.known[3], "no rates were given");
    topology_check_places(&t);
    topology_close(&t);
}

static const char *const example = "# a comment\n"
                                   "torus 3x2x2 wrap 110 # and another\r\n"
                                   "\n"
                                   "link 0,0,0 +x down\n"
                                   "axis x 128GB/s 1us\n"
                                   "burst 40.5KB\n"
                                   "message 70us\n"
                                   "axis\ty  64GB/s   1.5us\n"
                                   "axis z 100Mbit/s\n"
                                   "link 1,1,0 -x 32GB/s\n"
                                   "link 1,0,1 +y 1e3KB/s 2ms\n"
                                   "address 2,0,0 +x 10.0.0.2\n"
                                   "address 2,0,0 +y fe80::1:2\n"
                                   "rank 5 at 1,1,0\n"
                                   "rank 0 at 2,1,1\n"
                                   "link 1,0,0 -x down"; /* the other end of a wire that is down already */

static void test_example(void) {
    Topology t;
    Error err = {""};
    TEST_CHECK(parse(&t, example, 12, &err), "%s", err.text);
    if (!t.places) return;
    topology_check_places(&t);
    TEST_CHECK(t.place_of[0] == 11 && t.place_of[5] == 4, "%d %d", t.place_of[0], t.place_of[5]);
    TEST_CHECK(t.place_of[1] == 0 && t.place_of[4] == 3 && t.place_of[6] == 5 && t.rank_at[10] == 11,
               "the rest");
    const TopologyLink *down = topology_link(&t, t.rank_at[0], 0, 1),
                       *back = topology_link(&t, t.rank_at[1], 0, -1);
    TEST_CHECK(!(down->bytes_per_second > 0) && !(back->bytes_per_second > 0), "down both ways");
    const TopologyLink *slow = topology_link(&t, t.rank_at[4], 0, -1),
                       *other = topology_link(&t, t.rank_at[3], 0, 1);
    TEST_CHECK(slow->bytes_per_second == 32e9 && slow->latency_seconds == 1e-6,
               "its own rate, the axis's latency");
    TEST_CHECK(other->bytes_per_second == 128e9, "this way only");
    const TopologyLink *y = topology_link(&t, t.rank_at[7], 1, -1);
    TEST_CHECK(y->bytes_per_second == 1e6 && y->latency_seconds == 2e-3, "one wire, both directions");
    TEST_CHECK(topology_link(&t, t.rank_at[0], 2, 1)->bytes_per_second == 12.5e6, "Mbit/s");
    TEST_CHECK(!strcmp(topology_link(&t, t.rank_at[2], 0, 1)->address, "10.0.0.2"), "address");
    TEST_CHECK(!strcmp(topology_link(&t, t.rank_at[2], 1, -1)->address, "fe80::1:2"), "address");
    TEST_CHECK(t.known[0] && t.known[1] && t.known[2], "rates were given");
    TEST_CHECK(t.burst_bytes == 40500, "burst %g", t.burst_bytes);
    TEST_CHECK(t.message_seconds == 70e-6, "message %g", t.message_seconds);

    TestPath path = test_path("example.topo");
    TEST_CHECK(topology_write(&t, path.path, &err), "%s", err.text);
    char spec[600];
    snprintf(spec, sizeof spec, "file:%s", path.path);
    Topology again;
    TEST_CHECK(topology_open(&again, spec, 12, &err), "%s", err.text);
    if (again.places) topology_check_equal(&t, &again);
    topology_close(&again);
    TEST_CHECK(!topology_open(&again, spec, 8, &err) && strstr(err.text, "12 places"), "%s", err.text);
    FILE *out = fopen(test_path("print").path, "w");
    if (out) topology_print(&t, out);
    if (out) fclose(out);
    topology_close(&t);
}

/* Every one is refused, and the message names the line. */
static void test_refused(void) {
    static const struct {
        int line;
        const char *text;
    } bad[] = {
        {0, ""},
        {0, "# nothing\n"},
        {1, "axis x 1GB/s\ntorus 4\n"},
        {1, "torus\n"},
        {1, "torus 4x\n"},
        {1, "torus 4 wrap\n"},
        {1, "torus 4 wrap 11\n"},
        {1, "torus 4 wrap 2\n"},
        {1, "torus 4x4 wrap 11 now\n"},
        {1, "torus 2x2x2x2x2\n"},
        {1, "torus 0x2\n"},
        {1, "torus 65536x2\n"},
        {2, "torus 4\ntorus 4\n"},
        {2, "torus 4\naxis y 1GB/s\n"},
        {2, "torus 4\naxis x 1GB\n"},
        {2, "torus 4\naxis x 1gb/s\n"},
        {2, "torus 4\naxis x GB/s\n"},
        {2, "torus 4\naxis x -1GB/s\n"},
        {2, "torus 4\naxis x 1.GB/s\n"},
        {2, "torus 4\naxis x 1e999GB/s\n"},
        {2, "torus 4\naxis x 0GB/s\n"},
        {2, "torus 4\naxis x nanGB/s\n"},
        {2, "torus 4\naxis x 0x10GB/s\n"},
        {2, "torus 4\naxis x 1GB/s 1m\n"},
        {2, "torus 4\naxis x 1GB/s 61s\n"},
        {2, "torus 4\naxis x 1GB/s 1us 1us\n"},
        {2, "torus 4\naxis x\n"},
        {3, "torus 4\naxis x 1GB/s\naxis x 1GB/s\n"},
        {2, "torus 4\nburst\n"},
        {2, "torus 4\nburst 40K\n"},
        {2, "torus 4\nburst 0B\n"},
        {2, "torus 4\nburst 1001MB\n"},
        {2, "torus 4\nburst 1KB 1KB\n"},
        {3, "torus 4\nburst 1KB\nburst 1KB\n"},
        {2, "torus 4\nmessage\n"},
        {2, "torus 4\nmessage 70\n"},
        {2, "torus 4\nmessage 61s\n"},
        {3, "torus 4\nmessage 1us\nmessage 1us\n"},
        {2, "torus 4x2\nlink 0 +x down\n"},
        {2, "torus 4x2\nlink 0,0,0 +x down\n"},
        {2, "torus 4x2\nlink 4,0 +x down\n"},
        {2, "torus 4x2\nlink 0,0 x down\n"},
        {2, "torus 4x2\nlink 0,0 +z down\n"},
        {2, "torus 4x2\nlink 0,0 +x\n"},
        {2, "torus 4x2\nlink 0,0 +x up\n"},
        {2, "torus 4x2\nlink 0,0 +x down 1us\n"},
        {2, "torus 4x2\nlink , +x down\n"},
        {2, "torus 4x2\nlink 00000000000000000001,0 +x down\n"},
        {2, "torus 4x2 wrap 01\nlink 3,0 +x down\n"},
        {2, "torus 4x2 wrap 01\nlink 0,0 -x 1GB/s\n"},
        {2, "torus 4x1\nlink 0,0 +y 1GB/s\n"},
        {3, "torus 4\nlink 0 +x 1GB/s\nlink 0 +x 1GB/s\n"},
        {3, "torus 2\nlink 0 +x 1GB/s\nlink 0 -x 1GB/s\n"},
        {3, "torus 4\nlink 0 +x down\nlink 0 +x 1GB/s\n"},
        {3, "torus 4\nlink 0 +x down\nlink 1 -x 1GB/s\n"},
        {3, "torus 4\nlink 1 -x 1GB/s\nlink 0 +x down\n"},
        {2, "torus 4\naddress 0 +x 10.0.0\n"},
        {2, "torus 4\naddress 0 +x 10.0.0.256\n"},
        {2, "torus 4\naddress 0 +x example.org\n"},
        {2, "torus 4\naddress 0 +x 11111111111111111111111111111111111111111111111111111111111\n"},
        {3, "torus 4\naddress 0 +x 10.0.0.1\naddress 0 +x 10.0.0.1\n"},
        {2, "torus 4\nrank 4 at 0\n"},
        {2, "torus 4\nrank -1 at 0\n"},
        {2, "torus 4\nrank 0 in 0\n"},
        {2, "torus 4\nrank 0 at 4\n"},
        {3, "torus 4\nrank 0 at 1\nrank 0 at 2\n"},
        {3, "torus 4\nrank 0 at 1\nrank 2 at 1\n"},
        {2, "torus 4\nwire 0 +x down\n"},
        {2, "torus 4\na b c d e f g h\n"},
        {2, "torus 4\n\x01\xff\n"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Topology t;
        Error err = {""};
        char where[32];
        snprintf(where, sizeof where, bad[i].line ? "t.topo:%d: " : "t.topo: ", bad[i].line);
        TEST_CHECK(!parse(&t, bad[i].text, 0, &err), "accepted: %s", bad[i].text);
        TEST_CHECK(!strncmp(err.text, where, strlen(where)), "%s: %s", bad[i].text, err.text);
        topology_close(&t);
    }
    Topology t;
    Error err = {""};
    TEST_CHECK(!topology_parse(&t, "torus 4\n\0", 9, "t.topo", 0, &err), "a NUL byte");
}

static void test_quantities(void) {
    static const struct {
        double value;
        const char *text;
    } rates[] = {
        {128e9, "128GB/s"}, {12.5e6, "100Mbit/s"}, {2.5e6, "20Mbit/s"}, {1e9, "8Gbit/s"}, {1, "1B/s"}};
    char text[TOPOLOGY_TEXT_BYTES], line[128];
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        topology_format_rate(text, rates[i].value);
        TEST_CHECK(!strcmp(text, rates[i].text), "%s", text);
    }
    topology_format_latency(text, 1.5e-6);
    TEST_CHECK(!strcmp(text, "1.5us"), "%s", text);
    topology_format_latency(text, 0);
    TEST_CHECK(!strcmp(text, "0ns"), "%s", text);
    for (uint64_t i = 0; i < 2000; i++) { /* whatever the value, it reads back */
        double u = rng_uniform(1, RNG_STREAM(RNG_TEST, 3), i), v = rng_uniform(2, RNG_STREAM(RNG_TEST, 3), i);
        double rate = exp(41 * u), latency = exp(30 * v - 29);
        char latency_text[TOPOLOGY_TEXT_BYTES];
        topology_format_rate(text, rate);
        topology_format_latency(latency_text, latency);
        snprintf(line, sizeof line, "torus 2\naxis x %s %s\n", text, latency_text);
        Topology t;
        Error err = {""};
        bool ok = parse(&t, line, 2, &err);
        TEST_CHECK(ok && t.links[0].bytes_per_second == rate && t.links[0].latency_seconds == latency,
                   "%s: %s", line, err.text);
        topology_close(&t);
    }
}

static bool near(double x, double y) {
    return fabs(x - y) <= 1e-9 * fabs(y);
}

static void test_bound(void) {
    static const struct {
        const char *text;
        double seconds; /* for 16e6 bytes */
    } cases[] = {{"torus 2x2x2\naxis x 1MB/s\naxis y 1MB/s\naxis z 1MB/s\n", 2 * 7. / 8 * 16 / 3},
                 {"torus 3x3x3\naxis x 1MB/s\naxis y 1MB/s\naxis z 1MB/s\n", 2 * 26. / 27 * 16 / 6},
                 {"torus 4x2\naxis x 1MB/s\naxis y 1MB/s\n", 2 * 7. / 8 * 16 / 3},
                 {"torus 4 wrap 0\naxis x 1MB/s\n", 16}, /* the ends of a line have one way out */
                 {"torus 4\naxis x 1MB/s\nlink 0 +x down\n", 16},
                 {"torus 2\n", 0},
                 {"torus 2x2\naxis x 1MB/s\n", 0},
                 {"torus 2\naxis x 1MB/s\nlink 0 +x down\n", 0},
                 {"torus 1\n", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Topology t;
        Error err = {""};
        TEST_CHECK(parse(&t, cases[i].text, 0, &err), "%s", err.text);
        double bound = topology_all_reduce_bound(&t, 16e6);
        TEST_CHECK(near(bound, cases[i].seconds), "%s: %g s", cases[i].text, bound);
        topology_close(&t);
    }
}

/* The largest torus: written whole, it can be read. */
static void test_largest(void) {
    Topology t, again;
    Error err = {""};
    TEST_CHECK(topology_open(&t, "torus:16x16x16x16", 65536, &err), "%s", err.text);
    for (size_t i = 0; i < (size_t)t.places * 8; i++) {
        t.links[i].bytes_per_second = (double)(1e9f * (float)(i + 1) / 3); /* many digits */
        t.links[i].latency_seconds = 1e-6 * (double)(i % 1000);
        snprintf(t.links[i].address, sizeof t.links[i].address, "1111:2222:3333:4444:5555:6666:7777:%04x",
                 (unsigned)(i & 0xffff));
    }
    for (int a = 0; a < t.axes; a++) t.known[a] = true;
    TestPath path = test_path("largest.topo");
    char spec[600];
    snprintf(spec, sizeof spec, "file:%s", path.path);
    TEST_CHECK(topology_write(&t, path.path, &err) && topology_open(&again, spec, 65536, &err), "%s",
               err.text);
    topology_check_equal(&t, &again);
    topology_close(&again);
    topology_close(&t);
}

int main(void) {
    static const char *const seeds[] = {
        ("torus 4x4x4 wrap 111\naxis x 128GB/s 1us\nlink 0,0,0 +x down\n"
         "link 1,2,0 -y 32GB/s\naddress 0,0,0 +x 10.0.0.2\nrank 5 at 1,1,0\n"),
        "torus 2\naxis x 1B/s 1ns\n", "torus 3x1 wrap 01\nlink 1,0 -x 2kbit/s 3s\n",
        "torus 2x2x2x2\nrank 3 at 0,1,0,1\nrank 0 at 1,1,1,1\n"};
    test_folder_open();
    static TestPath path;
    path = test_path("fuzz.topo");
    fuzz_topology_path = path.path;
    test_specs();
    test_neighbours();
    test_example();
    test_refused();
    test_quantities();
    test_bound();
    test_largest();
    test_checks += fuzz_run(LLVMFuzzerTestOneInput, seeds, 4, 20000);
    test_folder_close();
    return test_end("topology");
}
