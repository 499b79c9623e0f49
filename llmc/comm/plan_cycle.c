/* plan_cycle.c: a Hamiltonian cycle over live wires: how data goes where an axis is torn apart.
 *
 * Grows a path towards neighbours with the fewest ways on (Warnsdorff); stuck, it turns the end of the path round
 * (Posa rotation). The search is bounded and a function of its seed alone. */
#include "base/rng.h"
#include "comm/plan_internal.h"

typedef struct {
    const Plan *plan;
    const double *table;
    const unsigned char *used;
    int *path, *where; /* where: place in the path, or -1 */
    int length;
    uint64_t seed, draws;
} Search;

static unsigned search_random(Search *s, unsigned below) {
    return (unsigned)(rng_uniform(s->seed, 0, s->draws++) * below) % below;
}

static int search_near(const Search *s, int rank, int *near) {
    int n = 0;
    for (int a = 0; a < s->plan->axes; a++)
        for (int d = -1; d <= 1; d += 2) {
            size_t link = plan_link(s->plan, rank, a, d);
            if (s->plan->dim[a] == 1 || s->table[link] <= 0 || (s->used && s->used[link]) ||
                (s->plan->dim[a] == 2 && d > 0))
                continue;
            near[n++] = plan_step(s->plan, rank, a, d);
        }
    return n;
}

static int search_ways_on(const Search *s, int rank) {
    int near[2 * PLAN_AXES_MAX], n = search_near(s, rank, near), free_ones = 0;
    for (int i = 0; i < n; i++) free_ones += s->where[near[i]] < 0;
    return free_ones;
}

static void search_reverse(Search *s, int from, int to) {
    for (; from < to; from++, to--) {
        int swap = s->path[from];
        s->path[from] = s->path[to];
        s->path[to] = swap;
        s->where[s->path[from]] = from;
        s->where[s->path[to]] = to;
    }
}

/* One move; true when the path holds all ranks and closes. */
static bool search_move(Search *s) {
    int near[2 * PLAN_AXES_MAX], end = s->path[s->length - 1], n = search_near(s, end, near);
    int best = -1, best_ways = 1 << 30;
    for (int i = 0, skip = n ? (int)search_random(s, (unsigned)n) : 0; i < n; i++) {
        int rank = near[(i + skip) % n], ways;
        if (s->length == s->plan->size && rank == s->path[0]) return true;
        if (s->where[rank] < 0 && (ways = search_ways_on(s, rank)) < best_ways) {
            best = rank;
            best_ways = ways;
        }
    }
    if (best >= 0) {
        s->where[best] = s->length;
        s->path[s->length++] = best;
        return false;
    }
    if (n && search_random(s, 8)) {
        int pivot = s->where[near[search_random(s, (unsigned)n)]];
        if (pivot >= 0 && pivot < s->length - 2) search_reverse(s, pivot + 1, s->length - 1);
    } else {
        search_reverse(s, 0, s->length - 1);
    }
    return false;
}

bool plan_find_cycle(const Plan *plan, const double *table, const unsigned char *used, uint64_t seed,
                     int *order, int *index) {
    if (plan->size < 3) return false;
    Search s = {.plan = plan, .table = table, .used = used, .path = order, .where = index, .seed = seed};
    for (int r = 0; r < plan->size; r++) index[r] = -1;
    order[0] = 0;
    index[0] = 0;
    s.length = 1;
    for (int moves = 0; moves < 2000 + 100 * plan->size; moves++)
        if (search_move(&s)) return true;
    return false;
}
