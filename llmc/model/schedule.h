/* schedule.h: the learning rate as a function of the step, and nothing else. */
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

typedef enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD } ScheduleKind;

typedef struct {
    ScheduleKind kind;
    double peak;           /* learning rate after the warm-up */
    double final_fraction; /* of the peak, reached at the last step (not by constant) */
    double decay_fraction; /* of all steps, in which wsd decays; it is constant before */
    int warmup, steps;     /* steps; the warm-up is linear from peak / warmup */
} Schedule;

/* For step 0 .. steps-1; later steps keep the last value.
 * Cosine: Loshchilov, Hutter, arXiv 1608.03983. wsd (warm-up, stable, decay; linear): Hu et al., arXiv 2404.06395. */
double schedule_learning_rate(const Schedule *s, int step);
#endif
