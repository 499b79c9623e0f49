/* fuzz_topology.c: any bytes into the parser of topology files. What it accepts must be consistent, and written and read
 * again it must be the same. Run by test_topology.c and by libFuzzer; see fuzz.h. Where it may write is in
 * fuzz_topology_path. */
#include "base/check.h"
#include "base/file.h"
#include "comm/topology.h"
#include "fuzz.h"

static const char *fuzz_topology_path = "/tmp/fuzz_topology.topo";

static void topology_check_places(const Topology *t) {
    int places = 1, c[TOPOLOGY_AXES_MAX];
    for (int a = 0; a < t->axes; a++) places *= t->dim[a];
    CHECK(t->axes >= 1 && t->axes <= TOPOLOGY_AXES_MAX && places == t->places);
    for (int r = 0; r < t->places; r++) {
        CHECK(t->place_of[r] >= 0 && t->place_of[r] < t->places && t->rank_at[t->place_of[r]] == r);
        topology_coordinates(t, r, c);
        for (int a = 0; a < t->axes; a++) {
            CHECK(c[a] >= 0 && c[a] < t->dim[a]);
            for (int direction = -1; direction <= 1; direction += 2) {
                int to = topology_neighbour(t, r, a, direction);
                const TopologyLink *link = topology_link(t, r, a, direction);
                CHECK((to < 0) == !link);
                if (!link) continue;
                const TopologyLink *back = topology_link(t, to, a, -direction);
                CHECK(to != r && topology_neighbour(t, to, a, -direction) == r);
                CHECK((link->bytes_per_second > 0) == (back->bytes_per_second > 0));
            }
        }
    }
}

static void topology_check_equal(const Topology *a, const Topology *b) {
    CHECK(a->axes == b->axes && a->places == b->places && a->burst_bytes == b->burst_bytes &&
          a->message_seconds == b->message_seconds);
    for (int x = 0; x < a->axes; x++)
        CHECK(a->dim[x] == b->dim[x] && a->wrap[x] == b->wrap[x] && a->known[x] == b->known[x]);
    for (int r = 0; r < a->places; r++) {
        CHECK(a->place_of[r] == b->place_of[r]);
        for (int x = 0; x < a->axes; x++)
            for (int direction = -1; direction <= 1; direction += 2) {
                const TopologyLink *m = topology_link(a, r, x, direction),
                                   *n = topology_link(b, r, x, direction);
                if (!m) continue;
                CHECK(m->bytes_per_second == n->bytes_per_second && !strcmp(m->address, n->address));
                CHECK(!(m->bytes_per_second > 0) || m->latency_seconds == n->latency_seconds);
            }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static unsigned accepted;
    Topology a, b;
    Error err = {""};
    if (!topology_parse(&a, (const char *)data, bytes, "fuzz", 0, &err)) {
        CHECK(err.text[0] && !a.links && !a.places);
        return 0;
    }
    if (a.places <= 4096) topology_check_places(&a);
    if (accepted++ % 16 == 0 && a.places <= 4096) { /* a file is made durable, which takes long */
        CHECK(topology_write(&a, fuzz_topology_path, &err));
        char *text;
        size_t size;
        CHECK(file_read(fuzz_topology_path, TOPOLOGY_FILE_BYTES_MAX, &text, &size, &err));
        CHECK(topology_parse(&b, text, size, "again", a.places, &err));
        topology_check_equal(&a, &b);
        topology_close(&b);
        free(text);
    }
    topology_close(&a);
    return 0;
}
