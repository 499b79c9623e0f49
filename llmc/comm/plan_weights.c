/* plan_weights.c: which colours a plan has, and how much of the data each takes.
 *
 * Candidates are every order of the axes, both ways, on the wires as they are and with rings cut at slow wires, and, if
 * some wire is cut, cycles around it, both ways. With x the bytes per second that a colour carries, the most that all
 * carry together is the linear program  max sum x,  sum over colours of share(link) * x <= bandwidth(link),  x >= 0:
 * a packing problem, whose origin is feasible; the simplex method with Bland's rule ends, and the same on every rank. */
#include "base/check.h"
#include "comm/plan_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MAX = 2 * 3 * 24 + 3 * PLAN_CYCLES_MAX, ROWS_MAX = 768 };

#define WEIGHT_LEAST 0.004 /* a colour with less is not worth its connections */
#define CYCLES_GAIN  1.02  /* cycles have long ways: only if they make it faster by this */

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

/* Both ways at once, where that is a difference; then each way alone. */
static void program_add_ways(Program *p, const Plan *plan, const int *axis, int axes, bool avoids_slow,
                             int cycle) {
    bool differ = cycle >= 0;
    for (int a = 0; a < plan->axes; a++) differ |= plan->dim[a] > 2;
    if (differ) program_add(p, axis, axes, 0, avoids_slow, cycle);
    program_add(p, axis, axes, 1, avoids_slow, cycle);
    if (differ) program_add(p, axis, axes, -1, avoids_slow, cycle);
}

/* Rotations first: of equal solutions the method takes the first. */
static void program_add_axes(Program *p, const Plan *plan, bool avoids_slow) {
    if (!axes_whole(plan, avoids_slow ? plan->slow : plan->bandwidth)) return;
    int axis[PLAN_AXES_MAX], n = plan->axes;
    for (int d = 0; d < n; d++) {
        for (int i = 0; i < n; i++) axis[i] = (d + i) % n;
        program_add_ways(p, plan, axis, n, avoids_slow, -1);
    }
    for (int i = 0; i < n; i++) axis[i] = i;
    while (next_permutation(axis, n)) {
        bool rotation = true;
        for (int i = 1; i < n; i++) rotation &= axis[i] == (axis[0] + i) % n;
        if (!rotation) program_add_ways(p, plan, axis, n, avoids_slow, -1);
    }
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
        program_add_ways(p, plan, (const int[]){0}, 1, false, plan->cycles);
        plan->cycles++;
    }
    free(used);
    return true;
}

/* --- rows --- */

/* What a colour does per byte of its data at one rank. */
typedef struct {
    double load[2][2 * PLAN_AXES_MAX]; /* bytes out, reduce-scatter and all-gather, by axis and direction */
    double path;                       /* seconds of its phases, one after the other, if it were alone */
} Cost;

static double bandwidth_of(const Plan *plan, int rank, int link) {
    return plan->bandwidth[plan_link(plan, rank, link / 2, link % 2 ? -1 : 1)];
}

static void cost_add(const Plan *plan, Cost *cost, int rank, int link, double reduce, double gather) {
    cost->load[0][link] += reduce;
    cost->load[1][link] += gather;
    if (reduce > 0 || gather > 0) cost->path += fmax(reduce, gather) / bandwidth_of(plan, rank, link);
}

/* direction: +1 or -1, for a colour that goes both ways; share: of its data that goes this way. */
static void cost_of(const Plan *plan, const PlanColour *c, int direction, int rank, double share,
                    Cost *cost) {
    if (c->cycle >= 0) {
        size_t base = (size_t)c->cycle * (size_t)plan->size;
        int n = plan->size, at = plan->cycle_index[base + (size_t)rank], axis, way;
        CHECK(
            plan_wire(plan, rank, plan->cycle_rank[base + (size_t)((at + direction + n) % n)], &axis, &way));
        cost_add(plan, cost, rank, 2 * axis + (way < 0), share * (n - 1) / n, share * (n - 1) / n);
        return;
    }
    for (int p = 0; p < c->phases; p++) {
        int axis = c->axis[p], n = plan->dim[axis], link = 2 * axis;
        PlanRing ring =
            plan_axis_ring(plan, c->avoids_slow ? plan->slow : plan->bandwidth, axis, direction, rank);
        if (ring.line) {
            int up = (ring.index - ring.first + n) % n, down = n - 1 - up; /* members below and above */
            double path = cost->path;
            cost_add(plan, cost, rank, link, share * down / n, ring.next < 0 ? 0 : share * (up + 1) / n);
            double above = cost->path;
            cost->path = path;
            cost_add(plan, cost, rank, link + 1, share * up / n, ring.prev < 0 ? 0 : share * (down + 1) / n);
            cost->path = fmax(cost->path, above);
        } else if (n > 1) {
            cost_add(plan, cost, rank, link + (n > 2 && direction < 0), share * (n - 1) / n,
                     share * (n - 1) / n);
        }
        share /= n;
    }
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
            const PlanColour *c = &p->column[j];
            Cost cost = {{{0}}, 0};
            if (c->direction >= 0) cost_of(plan, c, 1, r, c->direction ? 1 : 0.5, &cost);
            path[j] = fmax(path[j], cost.path);
            cost.path = 0;
            if (c->direction <= 0) cost_of(plan, c, -1, r, c->direction ? 1 : 0.5, &cost);
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
    while (plan->colours < PLAN_COLOURS_MAX - 1) {
        int best = -1;
        for (int j = 0; j < p->columns; j++)
            if (!taken[j] && p->x[j] > WEIGHT_LEAST * p->total &&
                (best < 0 || p->x[j] > p->x[best] * (1 + 1e-9)))
                best = j;
        if (best < 0) break;
        taken[best] = true;
        int ways = p->column[best].direction ? 1 : 2;
        for (int way = 0; way < ways; way++) {
            PlanColour *c = &plan->colour[plan->colours++];
            *c = p->column[best];
            c->weight = p->x[best] / ways;
            if (ways == 2) c->direction = way ? -1 : 1;
        }
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
    *c = (PlanColour){.phases = plan->axes, .direction = 1, .cycle = -1, .weight = 1};
    for (int a = 0; a < plan->axes; a++) c->axis[a] = a;
    if (plan->size > 1) plan->seconds_per_byte = (double)(plan->size - 1) / plan->size / plan->bandwidth[0];
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
    program_add_axes(p, plan, false);
    if (cut) program_add_axes(p, plan, true);
    for (size_t i = 0; i < links && !cut; i++)
        cut = plan->dim[i / 2 % (size_t)plan->axes] > 1 && plan->bandwidth[i] <= 0;
    if (p->columns) {
        program_add_rows(p, plan);
        program_solve(p);
        plan_take(plan, p);
    }
    if (cut) {
        double before = p->total;
        if (!program_add_cycles(p, plan, err)) goto out;
        program_add_rows(p, plan);
        program_solve(p);
        if (p->total > before * CYCLES_GAIN) plan_take(plan, p);
    }
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
