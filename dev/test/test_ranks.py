#!/usr/bin/env python3
"""Training on many ranks: the same curve as on one, over every backend; saved and resumed on other numbers of ranks; one
rank asked to stop stops all; one rank killed ends all, and is named.

usage: python3 dev/test/test_ranks.py [path of train_gpt2]
Ranks are started by TOROID_RANK and TOROID_SIZE; with mpirun too where it is there."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.abspath(sys.argv[1] if len(sys.argv) > 1
                          else os.path.join(ROOT, os.environ.get("BUILD", "build"), "train_gpt2"))
SIZES = ["--layers=2", "--heads=2", "--channels=48", "--context=32", "--total-batch=768", "--learning-rate=3e-3",
         "--eval-every=4", "--eval-batches=3", "--color=never", "--threads=1", "--comm-timeout=20"]
LIMIT_SECONDS = 90
checks = failures = 0


def check(condition, what):
    global checks, failures
    checks += 1
    if not condition:
        failures += 1
        print("failed:", what)


def arguments(run, steps, batch, more=()):
    return [PROGRAM, "--train-data=t_train_*.bin", "--val-data=t_val_*.bin", f"--run={run}", f"--steps={steps}",
            f"--batch-size={batch}", *SIZES, *more]


def start(ranks, command, folder):
    """One process a rank, told by the environment who it is."""
    jobs = []
    for rank in range(ranks):
        environment = dict(os.environ, TOROID_RANK=str(rank), TOROID_SIZE=str(ranks), OMP_WAIT_POLICY="passive")
        jobs.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True))
    return jobs


def finish(jobs):
    """Exit codes and outputs; what outlives the limit is killed and counts as -1."""
    end, codes, outputs = time.monotonic() + LIMIT_SECONDS, [], []
    for job in jobs:
        try:
            outputs.append(job.communicate(timeout=max(1, end - time.monotonic()))[0])
            codes.append(job.returncode)
        except subprocess.TimeoutExpired:
            job.kill()
            outputs.append(job.communicate()[0])
            codes.append(-1)
    return codes, outputs


def losses(folder, run):
    with open(os.path.join(folder, run, "metrics.jsonl"), encoding="utf-8") as file:
        return [(line["step"], line["loss"], line.get("val_loss")) for line in map(json.loads, file)]


def close(a, b):
    """The same steps, and losses equal to fp32's tolerance of another order of summation."""
    return len(a) == len(b) and all(x[0] == y[0] and abs(x[1] - y[1]) <= 1e-4 * abs(y[1]) for x, y in zip(a, b))


def test_same_curve(folder, reference):
    for backend in ("auto", "shm", "torus"):
        for ranks, batch in ((2, 4), (3, 8), (4, 2)):
            run = f"{backend}{ranks}"
            codes, outputs = finish(start(ranks, arguments(run, 8, batch, [f"--comm={backend}"]), folder))
            good = codes == [0] * ranks and close(losses(folder, run), reference)
            check(good, f"{backend}, {ranks} ranks: {codes} {outputs[0][-300:]}")
    for backend in ("auto", "mpi") if shutil.which("mpirun") else ():
        run = f"mpirun-{backend}"
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "4",
                   *arguments(run, 8, 2, [f"--comm={backend}"])]
        job = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        codes, outputs = finish([job])
        if backend == "mpi" and "built without MPI" in outputs[0]:
            continue
        check(codes == [0] and close(losses(folder, run), reference), f"{run}: {codes} {outputs[0][-300:]}")


def test_resume(folder, reference):
    """8 steps, the first 3 on one number of ranks, then to 6 and to 8 on others."""
    for order in ((1, 3, 2), (4, 1, 3)):
        run = "resume" + "".join(map(str, order))
        for stop, ranks in zip((3, 6, 8), order):
            command = arguments(run, 8, {1: 8, 2: 4, 3: 8, 4: 2}[ranks], ["--checkpoint-every=1"])
            jobs = start(ranks, command, folder)
            if stop < 8:  # ask the last rank, which must take the others along
                metrics = os.path.join(folder, run, "metrics.jsonl")
                end = time.monotonic() + LIMIT_SECONDS
                while time.monotonic() < end and jobs[0].poll() is None:
                    if os.path.exists(metrics) and len(losses_so_far(metrics)) >= stop:
                        break
                    time.sleep(0.005)
                jobs[-1].send_signal(signal.SIGTERM)
            codes, outputs = finish(jobs)
            check(set(codes) <= {0, 75} and len(set(codes)) == 1, f"{run} on {ranks}: {codes} {outputs[0][-300:]}")
        check(close(losses(folder, run), reference), f"{run}: {losses(folder, run)}")


def losses_so_far(metrics):
    with open(metrics, encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]


def test_killed(folder):
    jobs = start(3, arguments("killed", 100000, 4, ["--log-every=1000", "--eval-every=0", "--total-batch=384"]), folder)
    metrics, end = os.path.join(folder, "killed", "metrics.jsonl"), time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end and not (os.path.exists(metrics) and losses_so_far(metrics)):
        time.sleep(0.02)
    jobs[1].kill()
    killed = time.monotonic()
    codes, outputs = finish(jobs)
    check(time.monotonic() - killed < 20, "the other ranks end soon")
    check(codes[0] == 1 and codes[2] == 1, f"a rank killed: {codes}")
    for rank in (0, 2):
        last = [line for line in outputs[rank].splitlines() if line.startswith("error: ")]
        check(len(last) == 1 and "rank 1" in last[0], f"rank {rank} names the killed one: {outputs[rank][-400:]}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "text.txt"), "w", encoding="utf-8") as file:
            file.write("".join(f"{i} bottles of {chr(97 + i % 26)}eer on the wall, take {i % 7} down.\n"
                               for i in range(3000)))
        subprocess.run([PROGRAM, "tokenize", "text.txt", "--output=t", "--quiet"], cwd=folder, check=True,
                       capture_output=True)
        codes, outputs = finish([subprocess.Popen(arguments("one", 8, 8), cwd=folder, stdout=subprocess.PIPE,
                                                  stderr=subprocess.STDOUT, text=True)])
        check(codes == [0], outputs[0][-300:])
        reference = losses(folder, "one")
        test_same_curve(folder, reference)
        test_resume(folder, reference)
        test_killed(folder)
    print(f"ranks: {checks} checks, {failures} failed")
    return 1 if failures or not checks else 0


if __name__ == "__main__":
    sys.exit(main())
