/* plan_choose.c: how long each algorithm takes, by a model of steps and bytes, and up to which size each is the best.
 *
 * A step costs what the wire and the two systems at its ends need for a message of one byte; further messages that a rank
 * sends in the same step cost what its processor needs for them, a share of that unless the topology says how much. Then a
 * wire takes its bytes one after another, but for what its shaper lets through at once. The constants are not measured
 * when a group is opened: the same algorithm, and so the same bits, belong to the same topology. `comm_bench --probe`
 * measures the latencies that a topology file gives. */
#include "comm/plan_internal.h"
#include <math.h>
#include <string.h>

/* What a step costs beside the wire: two system calls, a wakeup, the network stack. */
#define STEP_SECONDS 40e-6
/* A further message in the same step, as a share of the step. */
#define MESSAGE_SHARE 0.3
/* Sizes that are looked at, one after another. */
#define SIZE_LEAST  64.0
#define SIZE_MOST   (4.0 * (1 << 20))
#define SIZE_FACTOR 1.0218971486541166 /* 2 ^ (1/32) */

const char *const plan_algorithm_names[PLAN_ALGORITHMS] = {"whole", "split", "rings"};

/* What the predictions are made of, beside the size. */
typedef struct {
    bool exchanges;
    int axes, steps[PLAN_AXES_MAX];  /* around an axis, both ways */
    double bandwidth[PLAN_AXES_MAX]; /* of its slowest wire */
    int all_steps, messages;         /* of all axes; messages: the most that a rank sends */
    int ring_steps, ring_messages;   /* of one half */
    int headers;                     /* messages before the rings: one to each neighbour */
    double step_seconds, message_seconds;
    double ring_credit; /* the burst, in seconds of the slowest wire */
} Model;

/* Adds an axis; false: it cannot be gone around. */
static bool model_axis(const Plan *plan, Model *m, int axis) {
    double slowest = INFINITY;
    int steps = 0, messages = 0;
    for (int r = 0; r < plan->size; r++) {
        PlanRing ring;
        if (!plan_exchange(plan, axis, r, &ring)) return false;
        if (ring.next >= 0) slowest = fmin(slowest, plan->bandwidth[plan_link(plan, r, axis, 1)]);
        if (ring.prev >= 0) slowest = fmin(slowest, plan->bandwidth[plan_link(plan, r, axis, -1)]);
        messages = ring.length - 1;
        steps = ring.line && messages > steps ? messages : ring.length / 2 > steps ? ring.length / 2 : steps;
    }
    m->steps[m->axes] = steps;
    m->bandwidth[m->axes++] = slowest;
    m->all_steps += steps;
    m->messages += messages;
    return true;
}

static void model_of(const Plan *plan, Model *m) {
    *m = (Model){.exchanges = true, .step_seconds = plan->latency_seconds + STEP_SECONDS};
    m->message_seconds = plan->message_seconds > 0 ? plan->message_seconds : MESSAGE_SHARE * m->step_seconds;
    for (int a = 0; a < plan->axes && m->exchanges; a++)
        if (plan->dim[a] > 1) m->exchanges = model_axis(plan, m, a);
    for (int c = 0; c < plan->colours; c++) {
        int steps = 0;
        for (int p = 0; p < plan->colour[c].phases; p++) {
            PlanRing ring = plan_ring(plan, c, p, 0);
            steps += ring.line || ring.direction ? ring.length - 1 : ring.length / 2;
            m->ring_messages += ring.length - 1;
        }
        m->ring_steps = steps > m->ring_steps ? steps : m->ring_steps;
    }
    int near[2 * PLAN_AXES_MAX];
    m->headers = plan_neighbours(plan, 0, near);
    double slowest = INFINITY;
    for (size_t i = 0; i < (size_t)plan->size * (size_t)plan->axes * 2; i++)
        if (plan->bandwidth[i] > 0) slowest = fmin(slowest, plan->bandwidth[i]);
    m->ring_credit = plan->burst_bytes / slowest;
}

static double seconds_of(const Plan *plan, const Model *m, PlanAlgorithm algorithm, double bytes) {
    if (algorithm == PLAN_RINGS) {
        double wire = 2 * bytes * plan->seconds_per_byte * PLAN_HEADER_FACTOR - m->ring_credit;
        double further = 2 * (m->ring_messages - m->ring_steps) + m->headers;
        return 2 * m->ring_steps * m->step_seconds + further * m->message_seconds + fmax(0, wire);
    }
    if (!m->exchanges) return 1e30;
    double sum = 0, most = 0;
    for (int a = 0; a < m->axes; a++) {
        double wire = fmax(0, m->steps[a] * bytes * PLAN_HEADER_FACTOR - plan->burst_bytes) / m->bandwidth[a];
        sum += wire;
        most = fmax(most, wire);
    }
    bool split = algorithm == PLAN_SPLIT;
    double further = (split ? m->axes : 1) * m->messages - m->all_steps;
    return m->all_steps * m->step_seconds + further * m->message_seconds + (split ? most : sum);
}

double plan_seconds(const Plan *plan, PlanAlgorithm algorithm, double bytes) {
    Model m;
    model_of(plan, &m);
    return seconds_of(plan, &m, algorithm, bytes);
}

PlanAlgorithm plan_algorithm(const Plan *plan, size_t bytes) {
    return bytes <= plan->whole_bytes_max   ? PLAN_WHOLE
           : bytes <= plan->split_bytes_max ? PLAN_SPLIT
                                            : PLAN_RINGS;
}

static void choose_fastest(Plan *plan) {
    Model m;
    double whole = 0, split = 0, seconds[PLAN_ALGORITHMS];
    model_of(plan, &m);
    for (double bytes = SIZE_LEAST; bytes <= SIZE_MOST; bytes *= SIZE_FACTOR) {
        for (int a = 0; a < PLAN_ALGORITHMS; a++) seconds[a] = seconds_of(plan, &m, (PlanAlgorithm)a, bytes);
        if (seconds[PLAN_WHOLE] <= fmin(seconds[PLAN_SPLIT], seconds[PLAN_RINGS])) whole = bytes;
        if (fmin(seconds[PLAN_WHOLE], seconds[PLAN_SPLIT]) <= seconds[PLAN_RINGS]) split = bytes;
    }
    plan->whole_bytes_max = (size_t)whole;
    plan->split_bytes_max = plan->single_bytes_max = (size_t)split;
}

bool plan_choose(Plan *plan, const char *name) {
    choose_fastest(plan);
    if (!name || !strcmp(name, "auto")) return true;
    for (int a = 0; a < PLAN_ALGORITHMS; a++)
        if (!strcmp(name, plan_algorithm_names[a])) {
            plan->whole_bytes_max = a == PLAN_WHOLE ? SIZE_MAX : 0;
            plan->split_bytes_max = a == PLAN_RINGS ? 0 : SIZE_MAX;
            return true;
        }
    return false;
}
