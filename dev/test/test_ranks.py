#!/usr/bin/env python3
"""Training on many ranks: the same curve as on one, over every backend; saved and resumed on other numbers of ranks; one
rank asked to stop stops all; one rank killed ends all, and is named.

usage: python3 dev/test/test_ranks.py [path of train_gpt2]
Ranks are started by TOROID_RANK and TOROID_SIZE; with mpirun too where it is there."""
import os
import shutil
import signal
import sys
import time

import lab
from lab import check, finish

SIZES = ["--layers=2", "--heads=2", "--channels=48", "--context=32", "--total-batch=768", "--learning-rate=3e-3",
         "--eval-every=4", "--eval-batches=3", "--color=never", "--threads=1", "--comm-timeout=20"]


def arguments(run, steps, batch, more=()):
    return [lab.PROGRAM, "--train-data=t_train_*.bin", "--val-data=t_val_*.bin", f"--run={run}", f"--steps={steps}",
            f"--batch-size={batch}", *SIZES, *more]


def losses(run):
    return [(line["step"], line["loss"], line.get("val_loss")) for line in lab.metrics(run)]


def close(a, b):
    """The same steps, and losses equal to fp32's tolerance of another order of summation."""
    return len(a) == len(b) and all(x[0] == y[0] and abs(x[1] - y[1]) <= 1e-4 * abs(y[1]) for x, y in zip(a, b))


def test_one():
    lab.make_tokens(3000)
    codes, outputs = finish(lab.start(arguments("one", 8, 8), 1))
    check(codes == [0] and len(losses("one")) == 8, outputs[0][-300:])


def test_same_curve():
    reference = losses("one")
    for backend in ("auto", "shm", "torus"):
        for ranks, batch in ((2, 4), (3, 8), (4, 2)):
            run = f"{backend}{ranks}"
            codes, outputs = finish(lab.start(arguments(run, 8, batch, [f"--comm={backend}"]), ranks))
            good = codes == [0] * ranks and close(losses(run), reference)
            check(good, f"{backend}, {ranks} ranks: {codes} {outputs[0][-300:]}")
    for backend in ("auto", "mpi") if shutil.which("mpirun") else ():
        run = f"mpirun-{backend}"
        codes, outputs = finish(lab.start_mpirun(arguments(run, 8, 2, [f"--comm={backend}"]), 4))
        if backend == "mpi" and "built without MPI" in outputs[0]:
            continue
        check(codes == [0] and close(losses(run), reference), f"{run}: {codes} {outputs[0][-300:]}")


def test_resume():
    """8 steps, the first 3 on one number of ranks, then to 6 and to 8 on others."""
    for order in ((1, 3, 2), (4, 1, 3)):
        run = "resume" + "".join(map(str, order))
        for stop, ranks in zip((3, 6, 8), order):
            jobs = lab.start(arguments(run, 8, {1: 8, 2: 4, 3: 8, 4: 2}[ranks], ["--checkpoint-every=1"]), ranks)
            if stop < 8:  # ask the last rank, which must take the others along
                lab.wait_for_steps(run, stop, jobs[0])
                jobs[-1].send_signal(signal.SIGTERM)
            codes, outputs = finish(jobs)
            check(set(codes) <= {0, 75} and len(set(codes)) == 1, f"{run} on {ranks}: {codes} {outputs[0][-300:]}")
        check(close(losses(run), losses("one")), f"{run}: {losses(run)}")


def test_killed():
    jobs = lab.start(arguments("killed", 100000, 4, ["--log-every=1000", "--eval-every=0", "--total-batch=384"]), 3)
    lab.wait_for_steps("killed", 1, jobs[0])
    jobs[1].kill()
    killed = time.monotonic()
    codes, outputs = finish(jobs)
    check(time.monotonic() - killed < 20, "the other ranks end soon")
    check(codes[0] == 1 and codes[2] == 1, f"a rank killed: {codes}")
    for rank in (0, 2):
        last = [line for line in outputs[rank].splitlines() if line.startswith("error: ")]
        check(len(last) == 1 and "rank 1" in last[0], f"rank {rank} names the killed one: {outputs[rank][-400:]}")


def fails_saying(jobs, *parts):
    """Every rank fails with one line, which has all parts."""
    codes, outputs = finish(jobs)
    for code, output in zip(codes, outputs):
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        check(code == 1 and len(errors) == 1 and all(p in errors[0] for p in parts), f"{parts}: exit {code}: {output[-400:]}")


def test_disagreement():
    """Ranks that were not asked for the same training do not train together; what belongs to a host may differ."""
    command = arguments("split", 3, 4, ["--checkpoint-every=1"])

    def two(more, folder="."):
        os.makedirs(folder, exist_ok=True)
        here = os.getcwd()
        first = lab.start(command, 2, only=0)
        os.chdir(folder)
        jobs = first + lab.start([*command, *more], 2, only=1)
        os.chdir(here)
        return jobs
    for flag, mine, other in (("learning-rate", "0.25", "0.003"), ("seed", "7", "1337"), ("run", "elsewhere", "split"),
                              ("checkpoint-every", "2", "1"), ("precision", "bf16", "fp32"), ("steps", "4", "3")):
        fails_saying(two([f"--{flag}={mine}"]), f"--{flag} is {mine}", f"but {other} on rank 0")
    os.makedirs("other_host", exist_ok=True)
    shutil.copy("t_train_000000.bin", "other_host/t_train_000000.bin")
    shutil.copy("t_val_000000.bin", "other_host/t_train_000001.bin")
    fails_saying(two([], "other_host"), "t_train_*.bin", "in 2 files here", "in 1 on rank 0")
    codes, outputs = finish(two(["--quiet", "--threads=2", f"--staging={os.getcwd()}/fast"]))
    check(codes == [0, 0], f"options of a host: {codes} {outputs[1][-300:]}")


def test_launcher_gone():
    """Ranks whose mpirun was killed save and stop."""
    if not shutil.which("mpirun"):
        return
    job, = lab.start_mpirun(arguments("gone", 1000000, 4, ["--log-every=1000", "--eval-every=0", "--total-batch=512"]), 2)
    lab.wait_for_steps("gone", 1, job)
    job.kill()
    codes, outputs = finish([job])
    check(codes[0] == -signal.SIGKILL, f"mpirun killed: {codes} {outputs[0][-300:]}")
    end = time.monotonic() + 60
    while lab.run("ckpt", "verify", "gone")[0] and time.monotonic() < end:
        time.sleep(0.05)
    check(lab.checkpoints("gone"), "mpirun killed: the ranks have saved")


if __name__ == "__main__":
    sys.exit(lab.main("ranks", test_one, test_same_curve, test_resume, test_killed, test_disagreement, test_launcher_gone))
