#!/usr/bin/env python3
"""--reduce exact: the same bits of weights, losses and norms for any number of ranks over every backend, through steps whose
gradients outgrow their grids, through resumes on other numbers of ranks, and for gradients that are not finite; close to
--reduce fp32; and --reduce bf16.

usage: python3 dev/test/test_exact.py [path of train_gpt2]
Ranks are started by TOROID_RANK and TOROID_SIZE; with mpirun too where it is there."""
import shutil
import signal
import sys

import lab
from lab import check, finish, weights

# 24 micro-batches of 2 x 16 tokens a step, which 1, 2, 3, 4 and 8 ranks can share; odd sizes, so that blocks, layers and
# shares end anywhere.
BASE = ["--train-data=t_train_*.bin", "--val-data=t_val_*.bin", "--layers=2", "--heads=3", "--channels=27", "--context=16",
        "--batch-size=2", "--total-batch=768", "--learning-rate=3e-3", "--warmup=4", "--eval-every=5", "--eval-batches=5",
        "--color=never", "--threads=1", "--comm-timeout=30", "--log-every=1"]
STEPS = 20


def start(run, ranks, *more, backend="auto", steps=STEPS, reduce="exact"):
    command = [lab.PROGRAM, *BASE, f"--run={run}", f"--steps={steps}", f"--comm={backend}", f"--reduce={reduce}", *more]
    return lab.start_mpirun(command, ranks) if backend == "mpi" else lab.start(command, ranks)


def train(run, ranks, *more, **how):
    """The output of rank 0 of a run that ends well."""
    codes, outputs = finish(start(run, ranks, *more, **how))
    check(set(codes) == {0}, f"{run}: {codes} {outputs[0][-400:]}")
    return outputs[0]


def metrics(run):
    """What was computed in each step; times are left out."""
    return [{key: line.get(key) for key in ("step", "loss", "norm", "lr", "val_loss", "skipped")} for line in lab.metrics(run)]


def same(run, other, what):
    check(metrics(run) == metrics(other), f"{what}: other losses or norms than {other}")
    check(weights(run) == weights(other), f"{what}: other weights than {other}")


def test_any_ranks():
    out = train("one", 1)
    check("computed twice" in out, f"the first step measures: {out[-300:]}")
    lines = metrics("one")
    check(len(lines) == STEPS and lines[-1]["loss"] < lines[0]["loss"] - 0.5, f"learns: {lines[0]} {lines[-1]}")
    for backend, sizes in (("shm", (2, 3, 4, 8)), ("torus", (2, 3, 4, 8)), ("mpi", (2, 4, 8))):
        for ranks in sizes:
            run = f"{backend}{ranks}"
            if backend == "mpi" and not shutil.which("mpirun"):
                continue
            codes, outputs = finish(start(run, ranks, backend=backend))
            if "built without MPI" in outputs[0]:
                continue
            if check(set(codes) == {0}, f"{run}: {codes} {outputs[0][-400:]}"):
                same(run, "one", run)
    train("threads", 1, "--threads=3")
    same("threads", "one", "3 threads")
    topology = "torus2x2"
    train(topology, 4, "--topology=torus:2x2", backend="torus")
    same(topology, "one", topology)


def test_resume():
    """Stopped in the middle and gone on with on other numbers of ranks."""
    for order in ((1, 3, 2), (4, 1, 8)):
        run = "resume" + "".join(map(str, order))
        for stop, ranks in zip((6, 13, STEPS), order):
            jobs = start(run, ranks, "--checkpoint-every=1")
            if stop < STEPS:
                lab.wait_for_steps(run, stop, jobs[0])
                jobs[-1].send_signal(signal.SIGTERM)
            codes, outputs = finish(jobs)
            check(len(set(codes)) == 1 and codes[0] in (0, 75), f"{run} on {ranks}: {codes} {outputs[0][-400:]}")
        same(run, "one", run)


def test_close_to_fp32():
    """Rounding alone: as close as another order of fp32 sums is. And bf16 is another, but not far."""
    train("fp32", 1, reduce="fp32")
    train("bf16", 2, reduce="bf16", backend="shm")
    for run, bound in (("one", 2e-5), ("bf16", 2e-2)):
        far = max(abs(a["loss"] - b["loss"]) for a, b in zip(metrics(run), metrics("fp32")))
        check(far <= bound, f"{run}: losses {far} from fp32's, bound {bound}")
    check(weights("bf16") != weights("fp32"), "bf16 is fp32")
    for backend in ("torus", "mpi") if shutil.which("mpirun") else ("torus",):
        codes, outputs = finish(start("bf16" + backend, 4, reduce="bf16", backend=backend, steps=4))
        if "built without MPI" not in outputs[0]:
            check(set(codes) == {0}, f"bf16 {backend}: {codes} {outputs[0][-400:]}")
            far = max(abs(a["loss"] - b["loss"]) for a, b in zip(metrics("bf16" + backend), metrics("fp32")))
            check(far <= 2e-2, f"bf16 {backend}: losses {far} from fp32's")


def test_not_finite():
    """A decay that makes weights grow 10000-fold in every step: all are skipped in the end, on any number of ranks."""
    for ranks in (1, 3):
        train(f"broken{ranks}", ranks, "--learning-rate=1000", "--weight-decay=10", "--warmup=0", "--schedule=constant",
              "--eval-every=0", steps=14)
    lines = metrics("broken1")
    check(lines[-1]["skipped"] and sum(bool(line["skipped"]) for line in lines) >= 3, f"not finite: {lines}")
    same("broken3", "broken1", "not finite on 3 ranks")


def test_limits():
    codes, outputs = finish(start("many", 1, "--batch-size=1", "--sequence=1", "--total-batch=65536", steps=1))
    check(codes == [1] and "--reduce exact: 65536 batches" in outputs[0], f"too many: {codes} {outputs[0][-300:]}")


if __name__ == "__main__":
    sys.exit(lab.main("exact", lab.make_tokens, test_any_ranks, test_resume, test_close_to_fp32, test_not_finite, test_limits))
