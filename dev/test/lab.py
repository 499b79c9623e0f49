"""lab.py: what tests in Python share, as comm_lab.h is for those in C: checks that are counted, the trainer run as its user
runs it, ranks that are processes, and what a run leaves behind.

A check that fails is printed, and the test goes on. Runs are folders of the current folder, which main() makes, empty.
Settings in the caller's environment (TOROID_*) never reach a program."""
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
# The trainer that is tested: of the build, or the first argument of tests that take one.
PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else os.path.join(BUILD, "train_gpt2")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TOROID_")}
STOPPED, SKIPPED = 75, 77  # exit codes: of a run that stopped and saved, of a test that cannot run here
LIMIT_SECONDS = 120        # for one command, or for all ranks of a run together
SHOWN_MAX = 50
checks = failures = 0
for number in (signal.SIGHUP, signal.SIGINT):  # in the background or under nohup they are ignored, by programs too
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


def check(good, what):
    """Counts; returns whether it is good."""
    global checks, failures
    checks += 1
    if not good:
        failures += 1
        if failures <= SHOWN_MAX:
            print("failed:", what)
    return good


def report(name):
    """The last line of a test, and what it exits with: nothing checked is a failure, too."""
    print(f"{name}: {checks} checks, {failures} failed")
    return 1 if failures or not checks else 0


def main(name, *tests):
    """Runs tests of PROGRAM, one after the other, in one folder; what to exit with. VERBOSE=1 says how long each took."""
    if not os.path.exists(PROGRAM):
        print(f"skipped: {PROGRAM} is not built (make)")
        return SKIPPED
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for test in tests:
            begin = time.monotonic()
            test()
            if os.environ.get("VERBOSE"):
                print(f"{test.__name__}: {time.monotonic() - begin:.1f} s")
        os.chdir("/")
    return report(name)


def run(*arguments, limit=LIMIT_SECONDS):
    """Exit code, stdout and stderr of a command of the trainer."""
    p = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, errors="replace", env=ENVIRONMENT, timeout=limit)
    return p.returncode, p.stdout, p.stderr


def make_tokens(lines=2000):
    """Token files t_train_*.bin and t_val_*.bin of a text that a small model learns something of in a few steps."""
    with open("text.txt", "w", encoding="utf-8") as file:
        file.write("".join(f"{i} bottles of {chr(97 + i % 26)}eer on the wall, take {i % 7} down.\n" for i in range(lines)))
    code, _, err = run("tokenize", "text.txt", "--output=t", "--quiet")
    check(code == 0, f"tokenize: exit {code}: {err[-300:]}")


def start(command, ranks, only=None):
    """A process a rank, or that of one rank only, told by the environment which it is; stderr goes to stdout."""
    return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={
        **ENVIRONMENT, "TOROID_RANK": str(rank), "TOROID_SIZE": str(ranks), "OMP_WAIT_POLICY": "passive"})
            for rank in (range(ranks) if only is None else [only])]


def start_mpirun(command, ranks):
    """The same by mpirun: one process here. Leaks are not counted: Open MPI's are not ours."""
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(ranks), *command]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             env={**ENVIRONMENT, "ASAN_OPTIONS": "detect_leaks=0"})]


def finish(processes, limit=LIMIT_SECONDS):
    """Exit codes and outputs; what outlives the limit is killed and counts as -1."""
    end, codes, outputs = time.monotonic() + limit, [], []
    for p in processes:
        try:
            outputs.append(p.communicate(timeout=max(1, end - time.monotonic()))[0])
            codes.append(p.returncode)
        except subprocess.TimeoutExpired:
            p.kill()
            outputs.append(p.communicate()[0])
            codes.append(-1)
    return codes, outputs


def metrics(run_):
    """The lines of metrics.jsonl, as far as they are whole; none if it is not there yet."""
    path = os.path.join(run_, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def wait_for_steps(run_, count, process, limit=LIMIT_SECONDS):
    """Until so many steps are in metrics.jsonl, or the process or the time is at its end."""
    end = time.monotonic() + limit
    while len(metrics(run_)) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def weights(run_):
    """The bytes of the final weights as safetensors: checkpoints also hold times."""
    out = run_ + ".safetensors"
    code, _, err = run("convert", run_, out, "--quiet")
    if not check(code == 0, f"convert {run_}: exit {code}: {err[-300:]}"):
        return b""
    with open(out, "rb") as file:
        return file.read()


def checkpoints(place):
    """The steps that can be restored, newest first."""
    code, out, err = run("ckpt", "ls", place)
    check(code == 0, f"ckpt ls {place}: exit {code}: {err[-300:]}")
    return [int(line.split()[0]) for line in out.split("\n")[1:] if " restorable " in line]


def segments(run_):
    """(step, path) of the segment files of a run's checkpoints, that of the newest checkpoint first."""
    found = []
    for path in glob.glob(f"{run_}/checkpoints/seg/*.seg"):
        with open(path, "rb") as file:
            found.append((int.from_bytes(file.read(48)[40:], "little"), path))
    return sorted(found, reverse=True)
