/* Tests of the planner: known weights and times, and what must hold over many random topologies. */
#include "comm/plan.h"
#include "test.h"

static double uniform(uint64_t seed, uint64_t i) {
    return rng_uniform(seed, RNG_STREAM(RNG_TEST, 3), i);
}

static int size_of(const int *dim, int axes) {
    int size = 1;
    for (int a = 0; a < axes; a++) size *= dim[a];
    return size;
}

static bool open_spec(Topology *topology, const char *spec) {
    Error err;
    bool ok = topology_open(topology, spec, 0, &err);
    TEST_CHECK(ok, "%s: %s", spec, err.text);
    return ok;
}

/* What the plan takes, against the bytes that must leave a host with L links: (N-1)/N / (L * bandwidth). */
static void test_bound(const char *spec, double share) {
    Topology topology;
    Plan plan;
    Error err;
    if (!open_spec(&topology, spec)) return;
    bool ok = plan_open(&plan, &topology, topology.places, &err);
    TEST_CHECK(ok, "%s: %s", spec, err.text);
    double out = 0;
    for (int a = 0; a < plan.axes; a++)
        out += plan.dim[a] == 1 ? 0 : plan.dim[a] == 2 ? plan.bandwidth[2 * a] : 2 * plan.bandwidth[2 * a];
    double bound = (double)(plan.size - 1) / plan.size / out;
    TEST_CHECK(bound / plan.seconds_per_byte > share, "%s: %.3f of the bound", spec,
               bound / plan.seconds_per_byte);
    plan_close(&plan);
    topology_close(&topology);
}

static void test_weights_4x2(void) {
    Topology topology;
    Plan plan;
    Error err;
    if (!open_spec(&topology, "torus:4x2")) return;
    TEST_CHECK(plan_open(&plan, &topology, 8, &err), "%s", err.text);
    double x = 0, y = 0;
    for (int c = 0; c < plan.colours; c++) {
        if (plan.colour[c].axis[0] == 0) x += plan.colour[c].weight;
        if (plan.colour[c].axis[0] == 1) y += plan.colour[c].weight;
    }
    TEST_CHECK(plan.colours == 2 && fabs(x / y - 1.25) < 1e-6, "%d colours, x:y = %g", plan.colours, x / y);
    plan_close(&plan);
    topology_close(&topology);
}

/* One wire out: the speed that is left. */
static void test_cut(const char *spec, double least) {
    Topology topology;
    Plan plan;
    Error err;
    if (!open_spec(&topology, spec)) return;
    TEST_CHECK(plan_open(&plan, &topology, topology.places, &err), "%s", err.text);
    double whole = plan.seconds_per_byte;
    plan_close(&plan);
    TEST_CHECK(plan_topology_cut(&topology, 0, 1), "%s: no wire between 0 and 1", spec);
    bool ok = plan_open(&plan, &topology, topology.places, &err);
    TEST_CHECK(ok, "%s without 0-1: %s", spec, err.text);
    int axis, direction;
    TEST_CHECK(!plan_wire(&plan, 0, 1, &axis, &direction), "%s: the dead wire is used", spec);
    TEST_CHECK(ok && whole / plan.seconds_per_byte >= least, "%s without 0-1: %.3f of the speed", spec,
               whole / plan.seconds_per_byte);
    plan_close(&plan);
    topology_close(&topology);
}

/* A wire at a quarter of its rate is not worse than one that is cut, or hardly. */
static void test_slow(const char *spec) {
    Topology topology;
    Plan plan;
    Error err;
    double seconds[3];
    for (int k = 0; k < 3; k++) {
        if (!open_spec(&topology, spec)) return;
        if (k == 1)
            for (int r = 0; r < 2; r++)
                for (int s = 0; s < 2; s++)
                    if (topology_neighbour(&topology, r, 0, s ? -1 : 1) == 1 - r)
                        topology.links[(size_t)r * (size_t)topology.axes * 2 + (size_t)s].bytes_per_second /=
                            4;
        if (k == 2) plan_topology_cut(&topology, 0, 1);
        TEST_CHECK(plan_open(&plan, &topology, topology.places, &err), "%s", err.text);
        seconds[k] = plan.seconds_per_byte;
        plan_close(&plan);
        topology_close(&topology);
    }
    TEST_CHECK(seconds[1] >= seconds[0] * 0.999 && seconds[1] <= seconds[2] * 1.001,
               "%s: whole %g, one slow %g, one cut %g s/byte", spec, seconds[0], seconds[1], seconds[2]);
}

/* Random dims, wraps, rates and dead wires: a plan is proven, its weights sum to 1, positions are what rings say. */
static void test_random(int rounds) {
    int planned = 0;
    for (int round = 0; round < rounds; round++) {
        uint64_t seed = (uint64_t)round, i = 0;
        char spec[64] = "torus:";
        int axes = 1 + (int)(4 * uniform(seed, i++)), dim[4];
        for (int a = 0; a < axes; a++) {
            dim[a] = 1 + (int)(uniform(seed, i++) * (axes > 2 ? 4 : 8));
            snprintf(spec + strlen(spec), sizeof spec - strlen(spec), a ? "x%d" : "%d", dim[a]);
        }
        Topology topology;
        Plan plan;
        Error err;
        if (!open_spec(&topology, spec)) continue;
        for (int a = 0; a < axes; a++) topology.wrap[a] = uniform(seed, i++) < 0.7;
        for (size_t l = 0; l < (size_t)size_of(dim, axes) * (size_t)axes * 2; l++) {
            double u = uniform(seed, i++);
            topology.links[l].bytes_per_second *= u < 0.02 ? 0 : u < 0.1 ? 0.25 : 1;
        }
        bool ok = plan_open(&plan, &topology, topology.places, &err);
        planned += ok;
        if (ok) {
            double sum = 0;
            for (int c = 0; c < plan.colours; c++) sum += plan.colour[c].weight;
            TEST_CHECK(fabs(sum - 1) < 1e-9, "%s: weights sum to %g", spec, sum);
            TEST_CHECK(plan_prove(&plan, &err), "%s: %s", spec, err.text);
            TEST_CHECK((plan.size == 1 || plan_seconds(&plan, PLAN_RINGS, 1e6) > 0) &&
                           isfinite(plan_seconds(&plan, PLAN_RINGS, 1e6)),
                       "%s", spec);
            plan_close(&plan);
        }
        topology_close(&topology);
    }
    TEST_CHECK(planned > rounds / 3, "only %d of %d random topologies have a plan", planned, rounds);
}

/* Row 1 of a 4x3 torus, and ranks that fill no box. */
static void test_among(void) {
    Topology topology, group;
    Error err;
    if (!open_spec(&topology, "torus:4x3")) return;
    TEST_CHECK(plan_topology_among(&group, &topology, (const int[]){4, 5, 6, 7}, 4, &err), "%s", err.text);
    TEST_CHECK(group.axes == 1 && group.dim[0] == 4 && group.wrap[0], "%d axes", group.axes);
    topology_close(&group);
    TEST_CHECK(plan_topology_among(&group, &topology, (const int[]){1, 2, 5, 6}, 4, &err), "%s", err.text);
    TEST_CHECK(group.axes == 2 && !group.wrap[0] && !group.wrap[1], "%d axes", group.axes);
    topology_close(&group);
    TEST_CHECK(plan_topology_among(&group, &topology, (const int[]){0, 1, 6}, 3, &err), "%s", err.text);
    TEST_CHECK(group.axes == 0 && group.places == 3, "%d axes", group.axes);
    topology_close(&group);
    topology_close(&topology);
}

/* The choice follows the model, for every size; and the model says what steps and bytes say. */
static void test_choice(const char *spec, double burst_bytes, double message_seconds) {
    Topology topology;
    Plan plan;
    Error err;
    if (!open_spec(&topology, spec)) return;
    topology.burst_bytes = burst_bytes;
    topology.message_seconds = message_seconds;
    TEST_CHECK(plan_open(&plan, &topology, topology.places, &err), "%s: %s", spec, err.text);
    for (size_t bytes = 256; bytes <= (size_t)64 << 20; bytes *= 2) {
        double least = 1e30, taken = plan_seconds(&plan, plan_algorithm(&plan, bytes), (double)bytes);
        for (int a = 0; a < PLAN_ALGORITHMS; a++)
            least = fmin(least, plan_seconds(&plan, (PlanAlgorithm)a, (double)bytes));
        TEST_CHECK(taken <= least * 1.05 && least > 0, "%s: %zu bytes: %g s, at best %g", spec, bytes, taken,
                   least);
    }
    TEST_CHECK(plan_algorithm(&plan, 1024) == PLAN_WHOLE && plan_algorithm(&plan, 64 << 20) == PLAN_RINGS,
               "%s: 1 KiB: %d, 64 MiB: %d", spec, plan_algorithm(&plan, 1024),
               plan_algorithm(&plan, 64 << 20));
    for (int a = 0; a < PLAN_ALGORITHMS; a++) {
        uint64_t hash = plan_hash(&plan);
        TEST_CHECK(plan_choose(&plan, plan_algorithm_names[a]), "%s", plan_algorithm_names[a]);
        TEST_CHECK(plan_algorithm(&plan, 1) == (PlanAlgorithm)a && plan_hash(&plan) != hash, "%s is taken",
                   plan_algorithm_names[a]);
    }
    TEST_CHECK(!plan_choose(&plan, "fastest") && plan_choose(&plan, "auto"), "names");
    plan_close(&plan);
    topology_close(&topology);
}

/* A plan that is harmed is not proven. */
static void test_proof_can_fail(void) {
    Topology topology;
    Plan plan;
    Error err;
    if (!open_spec(&topology, "torus:3x3")) return;
    TEST_CHECK(plan_open(&plan, &topology, 9, &err), "%s", err.text);
    plan.rank_at[4] = 3;
    TEST_CHECK(!plan_prove(&plan, &err), "a rank twice is proven");
    plan.rank_at[4] = 4;
    plan.bandwidth[0] = 0;
    TEST_CHECK(plan_prove(&plan, &err), "a line is refused: %s", err.text);
    plan.colour[0].axis[1] = plan.colour[0].axis[0];
    TEST_CHECK(!plan_prove(&plan, &err), "an axis twice is proven");
    plan_close(&plan);
    topology_close(&topology);
}

int main(void) {
    static const char *const whole[] = {"ring:2",        "ring:8",        "torus:2x2",   "torus:4x2",
                                        "torus:2x2x2",   "torus:3x3x3",   "torus:4x4x4", "torus:2x3",
                                        "torus:5x3",     "torus:2x2x2x2", "torus:4x4",   "torus:8x2x2x2",
                                        "torus:3x3x3x3", "torus:4x1x2"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) test_bound(whole[i], 0.97);
    test_weights_4x2();
    test_cut("torus:2x2x2", 0.62);
    test_cut("torus:3x3x3", 0.8);
    test_cut("torus:4x4", 0.6);
    test_cut("torus:2x2x2x2", 0.62);
    test_cut("ring:8", 0.49);
    test_slow("torus:2x2x2");
    test_slow("torus:3x3x3");
    test_slow("torus:4x2");
    test_choice("torus:2x2x2", 0, 0);
    test_choice("torus:2x2x2", 40960, 70e-6);
    test_choice("torus:4x2", 40960, 70e-6);
    test_choice("ring:8", 0, 1e-6);
    test_choice("torus:3x3x3", 1e6, 0);
    test_choice("ring:2", 0, 0);
    test_among();
    test_proof_can_fail();
    test_random(300);
    return test_end("plan");
}
