/* checkpoint_room.c: a start that finds the staging disk full of checkpoints that the remote store does not have: they are
 * uploaded first, old ones let go, and the run goes on. All ranks are in step here, so that none waits for long. */
#include "base/log.h"
#include "ckpt/ckpt_gc.h"
#include "run/checkpoint_internal.h"
#include "run/signals.h"

static void say_left(const DrainStatus *s, double *said) {
    enum { SAY_SECONDS = 10 };
    if (!s->behind_checkpoints || log_seconds() - *said < SAY_SECONDS) return;
    *said = log_seconds();
    log_info("checkpoints  %llu are still to be uploaded, %.2f GB, at %.0f MB/s",
             (unsigned long long)s->behind_checkpoints, 1e-9 * (double)s->behind_bytes,
             1e-6 * s->bytes_per_second);
}

/* Until every drain has uploaded all, or one of them cannot. */
static bool upload(Checkpoint *c, Error *err) {
    double said = log_seconds(), sums[2] = {1, 0};
    while (sums[0] > 0.5) {
        bool done = !c->drain || drain_wait(c->drain, 1);
        DrainStatus s = c->drain ? drain_status(c->drain) : (DrainStatus){0};
        bool failing = !done && s.failing, stopped = signals_stop() != NULL;
        sums[0] = !done;
        sums[1] = failing || stopped;
        if (!checkpoint_sum(c, sums, 2, err)) return false;
        if (sums[1] > 0.5)
            return error_set(err, "%s: is full of checkpoints, and they cannot be uploaded first: %s",
                             c->config.staging,
                             failing   ? s.error.text
                             : stopped ? "stopped by a signal"
                                       : "another rank's could not");
        say_left(&s, &said);
    }
    return true;
}

bool checkpoint_make_room(Checkpoint *c, bool node_first, Error *err) {
    CkptGcResult gone = {0};
    Error why;
    double none = 0;
    if (node_first)
        log_info("checkpoints  %s is full; what %s does not have is uploaded first", c->config.staging,
                 c->config.remote);
    if ((node_first && !checkpoint_start_drain(c, err)) || !upload(c, err)) return false;
    const CkptGcConfig config = {.place = c->config.staging, .keep = c->config.keep, .has_store = true};
    if (node_first && !ckpt_gc_staging(&config, &gone, &why)) log_warn("%s", why.text);
    return checkpoint_sum(c, &none, 1, err); /* all folders have been cleared */
}
