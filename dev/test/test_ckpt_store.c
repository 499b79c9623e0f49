/* test_ckpt_store.c: checkpoints are written by some writers and read by others: the bytes are the same, whatever the
 * ranges; what may go goes, and what is kept stays; a full or failing disk ends a shard, not the run. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt_lab.h"
#include "test.h"
#include <sys/wait.h>

/* Random layouts: tensors of all types and odd sizes, cut among W writers at odd places, some copied. */
static void round_trip(uint64_t seed, int writers, CkptPolicy policy) {
    Lab lab;
    lab_open(&lab, seed, writers, policy);
    lab_save(&lab, 1, true);
    lab_check(&lab, (CkptId){1, 1}, seed);
    lab_change(&lab, seed + 1);
    lab_save(&lab, 2, true);
    lab_check(&lab, (CkptId){1, 2}, seed + 1);
    lab_close(&lab);
}

int main(void) {
    log_open(0, true);
    test_folder_open();
    for (uint64_t seed = 1; seed <= 9; seed++) round_trip(seed, 1 + (int)(seed % 5), (CkptPolicy)(seed % 3));
    test_folder_close();
    return test_end("ckpt_store");
}
