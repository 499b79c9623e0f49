/* test_ckpt_policy.c: on a disk that is slow, memory may change as soon as ckpt_fence returned and not a byte of what was
 * saved does, whatever the policy; AUTO goes over to snapshots when steps would wait for the disk, and back when they would
 * not. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt/ckpt_io_plain.h"
#include "ckpt_lab.h"
#include <time.h>

static CkptIoBody slow;
static long write_nanoseconds;

static bool slow_write(CkptIo *io, CkptFile *file, const void *data, size_t bytes, uint64_t offset,
                       Error *err) {
    nanosleep(&(struct timespec){0, write_nanoseconds}, NULL);
    return ckpt_io_plain_body.write(io, file, data, bytes, offset, err);
}

/* The store runs on this: these two stand in for ckpt_io.c. */
bool ckpt_io_open(CkptIo *io, const char *kind, const char **why, Error *err) {
    (void)kind;
    *why = "";
    if (!ckpt_io_plain_open(io, err)) return false;
    io->body = &slow;
    return true;
}

void ckpt_io_close(CkptIo *io) {
    if (io->body) io->body->close(io);
    io->body = NULL;
}

/* One save whose memory changes at the earliest moment; calm: a step that takes twice as long as the save. */
static void save(Lab *lab, uint64_t step, bool calm) {
    lab_change(lab, step);
    double from = log_seconds();
    lab_begin(lab, step);
    if (calm) {
        TEST_CHECK(ckpt_wait(lab->ckpt[0], 60), "step %d", (int)step);
        for (double took = log_seconds() - from; log_seconds() - from < 2 * took;)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    ckpt_fence(lab->ckpt[0]);
    lab_change(lab, step + 1000);
    TEST_CHECK(ckpt_wait(lab->ckpt[0], 60), "step %d: %s", (int)step, ckpt_status(lab->ckpt[0]).error.text);
    ckpt_commit(lab->ckpt[0], step, false);
    TEST_CHECK(ckpt_wait(lab->ckpt[0], 60), "commit");
}

static void check_newest(Lab *lab, uint64_t step) {
    lab_check(lab, (CkptId){1, step}, step);
}

static void test_auto(void) {
    Lab lab;
    uint64_t step = 1;
    write_nanoseconds = 10000000;
    lab_open(&lab, 61, 1, CKPT_POLICY_AUTO);
    for (; step < 60 && ckpt_status(lab.ckpt[0]).policy != CKPT_POLICY_SNAPSHOT; step++)
        save(&lab, step, false);
    TEST_CHECK(ckpt_status(lab.ckpt[0]).policy == CKPT_POLICY_SNAPSHOT, "no snapshot after %d saves",
               (int)step);
    save(&lab, step, false);
    check_newest(&lab, step++);
    write_nanoseconds = 0;
    for (uint64_t end = step + 60; step < end && ckpt_status(lab.ckpt[0]).policy != CKPT_POLICY_LAZY; step++)
        save(&lab, step, true);
    TEST_CHECK(ckpt_status(lab.ckpt[0]).policy == CKPT_POLICY_LAZY, "no way back");
    save(&lab, step, false);
    check_newest(&lab, step);
    lab_close(&lab);
}

int main(void) {
    slow = ckpt_io_plain_body;
    slow.write = slow_write;
    log_open(1, true);
    test_folder_open();
    for (int policy = CKPT_POLICY_LAZY; policy <= CKPT_POLICY_SNAPSHOT; policy++) {
        Lab lab;
        write_nanoseconds = 2000000;
        lab_open(&lab, 62 + (uint64_t)policy, 1, (CkptPolicy)policy);
        for (uint64_t step = 1; step <= 3; step++) {
            save(&lab, step, false);
            check_newest(&lab, step);
        }
        lab_close(&lab);
    }
    test_auto();
    test_folder_close();
    return test_end("ckpt_policy");
}
