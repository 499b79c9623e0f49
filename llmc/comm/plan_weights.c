/* plan_weights.c: which colours a plan has, and how much of the data each takes.
 *
 * Candidates are the rotations of the axes, both ways around; then every order of them, each way alone, and with rings
 * cut at slow wires; and, if some wire is cut, cycles around it. With x the bytes per second that a colour carries, the
 * most that all carry together is the linear program  max sum x,  sum over colours of share(link) * x <= bandwidth(link),
 * x >= 0: a packing problem, whose origin is feasible; the simplex method with Bland's rule ends, and the same on every
 * rank. */
#include "base/check.h"
#include "comm/plan_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MAX = 2 * 3 * 24 + 3 * PLAN_CYCLES_MAX, ROWS_MAX = 768 };

#define WEIGHT_LEAST 0.004 /* a colour with less is not worth its connections */
#define PARTS        4     /* of a large colour, which follow one another through the phases */
#define ORDERS_GAIN  1.005 /* other orders of the axes than rotations: only if they make it faster by this */
#define CYCLES_GAIN  1.02  /* the same of cycles, whose ways are long */

typedef struct {
    int columns, rows, width;
    PlanColour column[COLUMNS_MAX];
    double *row;     /* (ROWS_MAX, COLUMNS_MAX): seconds on a link for a byte of each column */
    double *simplex; /* (ROWS_MAX + 1, COLUMNS_MAX + 1) */
    double x[COLUMNS_MAX];
    double total; /* bytes per second */
} Program;

/* --- candidates --- */

static void program_add(Program *p, const int *axis, int axes, int direction, bool avoids_slow, int cycle) {
    if (p->columns == COLUMNS_MAX) return;
    PlanColour *c = &p->column[p->columns++];
    *c = (PlanColour){.phases = axes, .direction = direction, .avoids_slow = avoids_slow, .cycle = cycle};
    for (int i = 0; i < axes; i++) c->axis[i] = axis[i];
}

static bool axes_whole(const Plan *plan, const double *table) {
    for (int a = 0; a < plan->axes; a++)
        for (int r = 0; r < plan->size; r++)
            if (!plan_axis_ring(plan, table, a, 1, r).length) return false;
    return true;
}

static bool next_permutation(int *axis, int n) {
    int i = n - 2, j = n - 1;
    while (i >= 0 && axis[i] > axis[i + 1]) i--;
    if (i < 0) return false;
    while (axis[j] < axis[i]) j--;
    int swap = axis[i];
    axis[i] = axis[j];
    axis[j] = swap;
    for (i++, j = n - 1; i < j; i++, j--) {
        swap = axis[i];
        axis[i] = axis[j];
        axis[j] = swap;
    }
    return true;
}

static bool is_rotation(const int *axis, int n) {
    for (int i = 1; i < n; i++)
        if (axis[i] != (axis[0] + i) % n) return false;
    return true;
}

/* The rotations, both ways around; or all that is left: other orders of the axes, and every one in one way only. */
static void program_add_axes(Program *p, const Plan *plan, bool avoids_slow, bool rotations) {
    if (!axes_whole(plan, avoids_slow ? plan->slow : plan->bandwidth)) return;
    int axis[PLAN_AXES_MAX], n = plan->axes;
    bool ways_differ = false;
    for (int a = 0; a < n; a++) {
        axis[a] = a;
        ways_differ |= plan->dim[a] > 2;
    }
    do {
        if (is_rotation(axis, n) == rotations) program_add(p, axis, n, 0, avoids_slow, -1);
        for (int way = 1; way >= -1 && ways_differ && !rotations; way -= 2)
            program_add(p, axis, n, way, avoids_slow, -1);
    } while (next_permutation(axis, n));
}

/* Cycles that share no wire as far as there are such, then others. */
static bool program_add_cycles(Program *p, Plan *plan, Error *err) {
    size_t n = (size_t)plan->size, links = n * (size_t)plan->axes * 2;
    if (plan->size > PLAN_PLACES_CYCLE_MAX) return true;
    unsigned char *used = calloc(links, 1);
    if (!used) return error_set(err, "plan of %d ranks: no memory", plan->size);
    bool apart = true;
    for (uint64_t seed = 0; seed < 2 * PLAN_CYCLES_MAX && plan->cycles < PLAN_CYCLES_MAX; seed++) {
        int *order = plan->cycle_rank + (size_t)plan->cycles * n,
            *index = plan->cycle_index + (size_t)plan->cycles * n;
        const double *table = seed < PLAN_CYCLES_MAX ? plan->slow : plan->bandwidth;
        if (!plan_find_cycle(plan, table, apart ? used : NULL, seed, order, index)) {
            if (apart && plan->cycles) memset(used, 0, links);
            apart = apart && !plan->cycles ? false : true;
            continue;
        }
        for (int i = 0; i < plan->size; i++) {
            int axis, direction, a = order[i], b = order[(i + 1) % plan->size];
            CHECK(plan_wire(plan, a, b, &axis, &direction));
            used[plan_link(plan, a, axis, direction)] = used[plan_link(plan, b, axis, -direction)] = 1;
            if (plan->dim[axis] == 2)
                used[plan_link(plan, a, axis, -direction)] = used[plan_link(plan, b, axis, direction)] = 1;
        }
        for (int way = 0; way < 3; way++)
            program_add(p, (const int[]){0}, 1, way == 2 ? -1 : way, false, plan->cycles);
        plan->cycles++;
    }
    free(used);
    return true;
}

/* --- rows --- */

/* What a colour does per byte of its data at one rank. */
typedef struct {
    double load[2][2 * PLAN_AXES_MAX]; /* bytes out, reduce-scatter and all-gather, by axis and direction */
    double path;                       /* seconds of its phases, if it were alone */
} Cost;

static double bandwidth_of(const Plan *plan, int rank, int link) {
    return plan->bandwidth[plan_link(plan, rank, link / 2, link % 2 ? -1 : 1)];
}

/* Returns the seconds of the longer half. */
static double cost_add(const Plan *plan, Cost *cost, int rank, int peer, double reduce, double gather) {
    int axis, direction;
    if (peer < 0) return 0;
    CHECK(plan_wire(plan, rank, peer, &axis, &direction));
    int link = 2 * axis + (direction < 0);
    cost->load[0][link] += reduce;
    cost->load[1][link] += gather;
    return fmax(reduce, gather) / bandwidth_of(plan, rank, link);
}

static void cost_of(const Plan *plan, const PlanColour *c, int rank, Cost *cost) {
    double share = 1, sum = 0, most = 0; /* share: of the data, that a ring of this phase holds */
    for (int p = 0; p < c->phases; p++) {
        PlanRing ring = plan_colour_ring(plan, c, p, rank);
        int n = ring.length, below = (ring.index - ring.first + n) % n, above = n - 1 - below;
        double out = share * (n - 1) / n, next, prev = 0;
        if (ring.line) {
            next = cost_add(plan, cost, rank, ring.next, share * above / n, share * (below + 1) / n);
            prev = cost_add(plan, cost, rank, ring.prev, share * below / n, share * (above + 1) / n);
        } else if (ring.direction || n == 1) {
            next = cost_add(plan, cost, rank, n > 1 ? ring.next : -1, out, out);
        } else {
            next = cost_add(plan, cost, rank, ring.next, out / 2, out / 2);
            prev = cost_add(plan, cost, rank, ring.prev, out / 2, out / 2);
        }
        sum += fmax(next, prev);
        most = fmax(most, fmax(next, prev));
        share /= n;
    }
    cost->path = most + (sum - most) / PARTS;
}

static void program_add_row(Program *p, const double *row) {
    double sum = 0;
    for (int j = 0; j < p->columns; j++) sum += row[j];
    if (sum <= 0) return;
    int weakest = -1; /* room for a row that others make needless, if there are too many */
    for (int i = 0; i < p->rows; i++) {
        const double *other = p->row + (size_t)i * COLUMNS_MAX;
        bool within = true, holds = true;
        for (int j = 0; j < p->columns && (within || holds); j++) {
            within &= row[j] <= other[j] * (1 + 1e-12);
            holds &= other[j] <= row[j];
        }
        if (within) return;
        if (holds) weakest = i;
    }
    if (weakest < 0 && p->rows == ROWS_MAX) return;
    int i = weakest >= 0 ? weakest : p->rows++;
    memcpy(p->row + (size_t)i * COLUMNS_MAX, row, sizeof(double) * COLUMNS_MAX);
}

/* A row for each link and half of the operation, and one for each column, which is not faster than its path. */
static void program_add_rows(Program *p, const Plan *plan) {
    double path[COLUMNS_MAX] = {0};
    p->rows = 0;
    for (int r = 0; r < plan->size; r++) {
        static double rows[2][2 * PLAN_AXES_MAX][COLUMNS_MAX];
        memset(rows, 0, sizeof rows);
        for (int j = 0; j < p->columns; j++) {
            Cost cost = {{{0}}, 0};
            cost_of(plan, &p->column[j], r, &cost);
            path[j] = fmax(path[j], cost.path);
            for (int half = 0; half < 2; half++)
                for (int l = 0; l < 2 * plan->axes; l++)
                    if (cost.load[half][l] > 0)
                        rows[half][l][j] = cost.load[half][l] / bandwidth_of(plan, r, l);
        }
        for (int half = 0; half < 2; half++)
            for (int l = 0; l < 2 * plan->axes; l++) program_add_row(p, rows[half][l]);
    }
    for (int j = 0; j < p->columns; j++) {
        double row[COLUMNS_MAX] = {0};
        row[j] = path[j];
        program_add_row(p, row);
    }
}

/* --- the simplex method, on a dictionary of (rows + 1, columns + 1): basic = rhs - row . nonbasic --- */

static int simplex_leave(const Program *p, int enter, const int *basic) {
    int leave = -1;
    double least = INFINITY;
    for (int i = 0; i < p->rows; i++) {
        const double *row = p->simplex + (size_t)i * (size_t)p->width;
        if (row[enter] <= 1e-9) continue;
        double ratio = row[p->columns] / row[enter];
        if (ratio < least - 1e-12 || (ratio <= least + 1e-12 && leave >= 0 && basic[i] < basic[leave])) {
            least = ratio < least ? ratio : least;
            leave = i;
        }
    }
    return leave;
}

static void simplex_pivot(Program *p, int leave, int enter) {
    double *pivot = p->simplex + (size_t)leave * (size_t)p->width, inverse = 1 / pivot[enter];
    for (int j = 0; j < p->width; j++) pivot[j] *= inverse;
    pivot[enter] = inverse;
    for (int i = 0; i <= p->rows; i++) {
        double *row = p->simplex + (size_t)i * (size_t)p->width, factor = row[enter];
        if (i == leave || factor == 0) continue;
        for (int j = 0; j < p->width; j++) row[j] -= factor * pivot[j];
        row[enter] = -factor * inverse;
    }
}

static void program_solve(Program *p) {
    int basic[ROWS_MAX], nonbasic[COLUMNS_MAX];
    double scale = 0;
    p->width = p->columns + 1;
    for (int i = 0; i < p->rows; i++)
        for (int j = 0; j < p->columns; j++) scale = fmax(scale, p->row[(size_t)i * COLUMNS_MAX + (size_t)j]);
    for (int i = 0; i < p->rows; i++) {
        double *row = p->simplex + (size_t)i * (size_t)p->width;
        for (int j = 0; j < p->columns; j++) row[j] = p->row[(size_t)i * COLUMNS_MAX + (size_t)j] / scale;
        row[p->columns] = 1;
        basic[i] = p->columns + i;
    }
    double *gain = p->simplex + (size_t)p->rows * (size_t)p->width;
    for (int j = 0; j < p->columns; j++) {
        gain[j] = 1;
        nonbasic[j] = j;
    }
    gain[p->columns] = 0;
    for (int pivots = 0; pivots < 20000; pivots++) {
        int enter = -1;
        for (int j = 0; j < p->columns; j++)
            if (gain[j] > 1e-9 && (enter < 0 || nonbasic[j] < nonbasic[enter])) enter = j;
        int leave = enter < 0 ? -1 : simplex_leave(p, enter, basic);
        if (leave < 0) break;
        simplex_pivot(p, leave, enter);
        int swap = basic[leave];
        basic[leave] = nonbasic[enter];
        nonbasic[enter] = swap;
    }
    memset(p->x, 0, sizeof p->x);
    p->total = 0;
    for (int i = 0; i < p->rows; i++)
        if (basic[i] < p->columns) {
            p->x[basic[i]] = p->simplex[(size_t)i * (size_t)p->width + (size_t)p->columns] / scale;
            p->total += p->x[basic[i]];
        }
}

/* --- the plan --- */

/* The heaviest columns become the colours, and the time is that of what is left. */
static void plan_take(Plan *plan, const Program *p) {
    bool taken[COLUMNS_MAX] = {false};
    double sum = 0;
    plan->colours = 0;
    while (plan->colours < PLAN_COLOURS_MAX) {
        int best = -1;
        for (int j = 0; j < p->columns; j++)
            if (!taken[j] && p->x[j] > WEIGHT_LEAST * p->total &&
                (best < 0 || p->x[j] > p->x[best] * (1 + 1e-9)))
                best = j;
        if (best < 0) break;
        taken[best] = true;
        PlanColour *c = &plan->colour[plan->colours++];
        *c = p->column[best];
        c->weight = p->x[best];
        sum += p->x[best];
    }
    for (int c = 0; c < plan->colours; c++) plan->colour[c].weight /= sum;
    plan->seconds_per_byte = 0;
    for (int i = 0; i < p->rows; i++) {
        double seconds = 0;
        for (int j = 0; j < p->columns; j++)
            seconds += taken[j] ? p->row[(size_t)i * COLUMNS_MAX + (size_t)j] * p->x[j] / sum : 0;
        plan->seconds_per_byte = fmax(plan->seconds_per_byte, seconds);
    }
}

static void plan_weigh_flat(Plan *plan) {
    PlanColour *c = &plan->colour[0];
    plan->colours = 1;
    *c = (PlanColour){.phases = plan->axes, .cycle = -1, .weight = 1};
    for (int a = 0; a < plan->axes; a++) c->axis[a] = a;
    if (plan->size > 1) plan->seconds_per_byte = (double)(plan->size - 1) / plan->size / plan->bandwidth[0];
}

/* With the columns added since, if it is faster by that. */
static void plan_improve(Plan *plan, Program *p, double gain) {
    double before = p->total;
    if (!p->columns) return;
    program_add_rows(p, plan);
    program_solve(p);
    if (p->total > before * gain) plan_take(plan, p);
}

bool plan_weigh(Plan *plan, Error *err) {
    if (plan->flat || plan->size == 1) {
        plan_weigh_flat(plan);
        return true;
    }
    size_t links = (size_t)plan->size * (size_t)plan->axes * 2;
    bool done = false, cut = memcmp(plan->slow, plan->bandwidth, links * sizeof(double)) != 0;
    Program *p = calloc(1, sizeof *p);
    double *row = malloc(sizeof(double) * ROWS_MAX * COLUMNS_MAX);
    double *simplex = malloc(sizeof(double) * (ROWS_MAX + 1) * (COLUMNS_MAX + 1));
    if (!p || !row || !simplex) {
        error_set(err, "plan of %d ranks: no memory", plan->size);
        goto out;
    }
    p->row = row;
    p->simplex = simplex;
    program_add_axes(p, plan, false, true);
    plan_improve(plan, p, 1);
    program_add_axes(p, plan, false, false);
    if (cut) program_add_axes(p, plan, true, true);
    if (cut) program_add_axes(p, plan, true, false);
    plan_improve(plan, p, ORDERS_GAIN);
    for (size_t i = 0; i < links && !cut; i++)
        cut = plan->dim[i / 2 % (size_t)plan->axes] > 1 && plan->bandwidth[i] <= 0;
    if (cut && !program_add_cycles(p, plan, err)) goto out;
    plan_improve(plan, p, CYCLES_GAIN);
    if (!plan->colours) {
        error_set(err,
                  "the wires that are left do not join all %d ranks in rings (see the links that are down)",
                  plan->size);
        goto out;
    }
    done = true;
out:
    free(p);
    free(row);
    free(simplex);
    return done;
}
