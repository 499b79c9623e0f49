#!/usr/bin/env python3
"""faults.py [--local] [ROUNDS [SEED]]: faults injected at random into a tiny training run. Every round draws a fault, a
rank and a moment from the seed, and is good if what must happen happens in time:

  kill       a rank dies (SIGKILL)                the others end within a second, not with success
  stop       a rank stops (SIGSTOP)               the others end within the timeout; continued, it ends too
  mismatch   a rank begins another operation      all end within a second
  busy       a rank is killed while another       the others end within a second, the busy one, too
             computes for long
  lost       all wires of a host are cut          all end within the timeout
  cut        one wire is cut                      the run goes on, and can be stopped and saved

In all but the last, every rank that is left prints one line, which names the rank at fault with its host, and the step;
and nothing is left running. Prints a line a round and a summary; exits 1 if a round was bad.

  --local              on this host, over shared memory, MPI and TCP by turns; no lost, no cut. Else in a lab of
                       netlab.sh (root), over its wires, a rank a host
  --ranks=N            --local: 4;  --shape=2x2x2 --rate=100mbit: the lab
  --mpirun             --local: ranks are launched by mpirun over all backends, not over MPI alone
  --backends=shm,mpi,torus  --faults=kill,stop,...
  --timeout=5          --comm-timeout of the run;  --slack=0: seconds added to what is allowed, on a busy machine
  --program=build/train_gpt2"""
import argparse
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NETLAB = os.path.join(ROOT, "dev/netlab/netlab.sh")
SAVE_EVERY = 20
SIZES = ["--layers=2", "--heads=2", "--channels=48", "--context=32", "--learning-rate=3e-3", "--color=never", "--quiet",
         "--threads=1", "--batch-size=2", f"--checkpoint-every={SAVE_EVERY}", "--steps=1000000"]
KINDS = ("operation", "type", "count", "reduction")
AXES = "xyzw"
START_SECONDS = 60


class Round:
    """One run of all ranks, and what became of it."""

    def __init__(self, setting, backend, folder, environment):
        self.setting, self.backend, self.folder = setting, backend, folder
        self.job = f"faults-{os.getpid()}-{time.monotonic_ns()}"
        self.run = os.path.join(folder, "run")
        shutil.rmtree(self.run, ignore_errors=True)
        self.environment = dict(os.environ, TOROID_JOB=self.job, OMP_WAIT_POLICY="passive", **environment)
        self.mpirun = backend == "mpi" or setting.mpirun
        self.processes, self.codes, self.ended, self.outputs = [], {}, {}, []
        ranks = setting.ranks
        command = [setting.program, "--train-data=t_train_*.bin", "--val-data=t_val_*.bin", f"--run={self.run}",
                   f"--total-batch={64 * ranks}", f"--comm={backend}", f"--comm-timeout={setting.timeout}", *SIZES]
        if setting.topology:
            command.append(f"--topology=file:{setting.topology}")
        if self.mpirun:
            self.start(0, ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--tag-output",
                           "-np", str(ranks), *command], {})
        else:
            for rank in range(ranks):
                prefix, more = setting.place(rank)
                self.start(rank, [*prefix, *command], dict(TOROID_RANK=str(rank), TOROID_SIZE=str(ranks), **more))

    def start(self, rank, command, more):
        self.outputs.append(open(os.path.join(self.folder, f"rank{rank}"), "w+", encoding="utf-8", errors="replace"))
        self.processes.append(subprocess.Popen(command, cwd=self.folder, env={**self.environment, **more},
                                               stdout=self.outputs[-1], stderr=subprocess.STDOUT))

    def living(self):
        """pid by rank, of this round's ranks, as the kernel knows them."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    text = file.read()
                if f"TOROID_JOB={self.job}".encode() not in text:
                    continue
                with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                    if file.read().strip() != os.path.basename(self.setting.program)[:15]:
                        continue
                with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                    if file.read().rpartition(")")[2].split()[0] == "Z":
                        continue
            except OSError:
                continue
            rank = re.search(rb"(?:TOROID|OMPI_COMM_WORLD)_RANK=(\d+)", text)
            found[int(rank.group(1)) if rank else -1] = int(pid)
        return found

    def steps(self):
        try:
            with open(os.path.join(self.run, "metrics.jsonl"), encoding="utf-8") as file:
                return sum(line.endswith("\n") for line in file)
        except FileNotFoundError:
            return 0

    def wait_for_steps(self, steps, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.steps() < steps and any(p.poll() is None for p in self.processes):
            time.sleep(0.01)
        return self.steps() >= steps

    def wait(self, since, seconds, but=()):
        """Until all processes but those have ended, at most so long; notes when they did."""
        while True:
            for i, process in enumerate(self.processes):
                if i not in self.ended and process.poll() is not None:
                    self.ended[i], self.codes[i] = time.monotonic() - since, process.returncode
            left = [i for i in range(len(self.processes)) if i not in self.ended and i not in but]
            if not left or time.monotonic() > since + seconds:
                return not left
            time.sleep(0.005)

    def close(self):
        """Ends what is left of it; how many ranks that was."""
        time.sleep(0.05)
        left = self.living()
        for pid in left.values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            process.kill()
            process.wait()
        for output in self.outputs:
            output.close()
        return len(left)

    def text(self, rank):
        """What a rank has printed; under mpirun it is among what mpirun has."""
        output = self.outputs[0 if self.mpirun else rank]
        output.seek(0)
        lines = output.read().splitlines(keepends=True)
        return "".join(line for line in lines if not self.mpirun or re.match(rf"\[\d+,{rank}\]", line))


class Local:
    """Ranks on this host."""
    topology = None

    def __init__(self, options):
        self.mpirun = options.mpirun
        self.program, self.timeout, self.ranks = options.program, options.timeout, options.ranks

    def place(self, _rank):
        return [], {}

    def close(self):
        pass


class Lab:
    """A rank on every host of a torus."""
    mpirun = False

    def __init__(self, options):
        self.program, self.timeout = options.program, options.timeout
        self.name = f"nf{os.getpid() % 100000}"
        self.dims = [int(d) for d in options.shape.split("x")]
        self.environment = {**os.environ, "NETLAB": self.name}
        up = self.netlab("up", "torus", options.shape, options.rate)
        if up.returncode:
            print(up.stderr.strip())
            sys.exit(up.returncode)
        self.topology = self.netlab("topology").stdout.strip()
        self.ranks = 1
        for d in self.dims:
            self.ranks *= d

    def netlab(self, *arguments):
        return subprocess.run([NETLAB, *arguments], env=self.environment, capture_output=True, text=True, check=False)

    def place(self, rank):
        host = f"{self.name}{rank}"
        return (["ip", "netns", "exec", host], dict(TOROID_ROOT="10.77.0.1:29400", TOROID_HOST=host))

    def coordinates(self, host):
        text = []
        for d in self.dims:
            text.append(str(host % d))
            host //= d
        return ",".join(text)

    def wire(self, host, axis, direction, state):
        r = self.netlab("link", self.coordinates(host), direction + AXES[axis], state)
        if r.returncode:
            raise RuntimeError(r.stderr)

    def wires(self, host, state):
        for axis, d in enumerate(self.dims):
            if d > 1:
                self.wire(host, axis, "+", state)
            if d > 2:
                self.wire(host, axis, "-", state)

    def close(self):
        self.netlab("down")


def check_lines(r, victim, named, silent):
    """Of every rank but `silent`: one line, with a rank at fault, its host and the step. What is wrong, or None."""
    for rank in range(r.setting.ranks):
        if rank == silent:
            continue
        lines = [line for line in r.text(rank).splitlines() if "error: " in line]
        if len(lines) != 1:
            return f"rank {rank} printed {len(lines)} lines"
        if not any(re.search(rf"rank {n} \([\w.-]+\)", lines[0]) for n in named):
            return f"rank {rank} does not name rank {victim}: {lines[0]}"
        if "step " not in lines[0]:
            return f"rank {rank} names no step: {lines[0]}"
    return None


def hurt(r, fault, victim, other, options):
    """Injects the fault into a run that runs. (since, what is wrong or None)"""
    setting, slack = r.setting, options.slack
    ranks = r.living()
    if victim not in ranks:
        return time.monotonic(), "the run is not there"
    soon = 1 + slack
    since = time.monotonic()
    if fault in ("kill", "busy"):
        os.kill(ranks[victim], signal.SIGKILL)
        if not r.wait(since, soon):
            return since, "it took too long"
        return since, check_lines(r, victim, [victim], victim)
    if fault == "stop":
        os.kill(ranks[victim], signal.SIGSTOP)
        good = r.wait(since, setting.timeout + slack, () if r.mpirun else (victim,))
        if victim in r.living():
            os.kill(ranks[victim], signal.SIGCONT)
        if not good:
            return since, "it took too long"
        if not r.wait(time.monotonic(), 2 + slack):
            return since, "the rank that was stopped does not end"
        return since, check_lines(r, victim, [victim], victim if r.mpirun else None)  # mpirun ends it at once
    if fault == "lost":
        setting.wires(victim, "down")
        if not r.wait(since, setting.timeout + slack):
            return since, "it took too long"
        return since, check_lines(r, victim, [victim], None)
    # cut
    setting.wire(victim, other, "+", "down")
    done = r.steps()
    if not r.wait_for_steps(done + 5, 2 * setting.timeout + slack):
        return since, "it did not go on"
    went_on = time.monotonic() - since
    os.kill(ranks[0], signal.SIGTERM)
    if not r.wait(time.monotonic(), setting.timeout + 5 + slack):
        return since, "it cannot be stopped"
    r.ended = {i: went_on for i in r.ended}
    return since, None if set(r.codes.values()) == {75} else f"exit codes {r.codes}"


def check_round(r, fault, victim, other, moment, options):
    """(seconds, what is wrong or None)"""
    if fault == "mismatch":
        if not r.wait(time.monotonic(), START_SECONDS + options.slack):
            return 0, "it did not end"
        ended = list(r.ended.values())
        bad = check_lines(r, victim, [victim], None)
        if not bad and max(ended) - min(ended) > 1 + options.slack:
            bad = "it took too long"
        since = max(ended) - min(ended)
    else:
        if not r.wait_for_steps(3, START_SECONDS + options.slack):
            return 0, "it did not begin"
        time.sleep(moment)
        at, bad = hurt(r, fault, victim, other, options)
        since = max([t for i, t in r.ended.items() if i != victim or r.mpirun], default=time.monotonic() - at)
    if not bad and fault != "cut" and 0 in r.codes.values():
        bad = f"exit codes {r.codes}"
    return since, bad


def play(number, setting, folder, draw, options):
    backend, fault = draw.choice(options.backends), draw.choice(options.faults)
    victim, moment, kind = draw.randrange(setting.ranks), 0.8 * draw.random(), draw.choice(KINDS)
    axis = draw.randrange(len(setting.dims)) if isinstance(setting, Lab) else 0
    step, other = 3 + draw.randrange(40), draw.randrange(setting.ranks - 1)
    other += other >= victim
    step += step % SAVE_EVERY == 0  # what saves is not broken off
    environment, note = {}, ""
    if fault == "mismatch":
        environment["TOROID_FAULT"] = f"mismatch {victim} {step} {kind}"
        note = f" {kind} at step {step}"
    if fault == "busy":
        environment["TOROID_FAULT"] = f"busy {other} {step} 30"
        note = f", rank {other} busy"
        moment += 1
    r = Round(setting, backend, folder, environment)
    seconds, bad = check_round(r, fault, victim, axis, moment, options)
    said = [r.text(rank).strip().splitlines()[-3:] for rank in range(setting.ranks)]
    left = r.close()
    if left and not bad:
        bad = f"{left} ranks are left"
    if os.path.exists(f"/tmp/toroid-{os.getuid()}-{r.job}"):
        bad = bad or "the file by which ranks meet is left"
    if fault == "lost":
        setting.wires(victim, "up")
    if fault == "cut":
        setting.wire(victim, axis, "+", "up")
    print(f"round {number}: {backend}, {fault}{note}, rank {victim}: {seconds:.2f} s, {'BAD: ' + bad if bad else 'good'}",
          flush=True)
    if bad:
        print(f"    exit codes {r.codes}")
        for i, lines in enumerate(said):
            for line in lines:
                print(f"    rank {i}: {line}", flush=True)
    return f"{backend} {fault}", seconds, bad


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rounds", nargs="?", type=int, default=20)
    p.add_argument("seed", nargs="?", type=int, default=1)
    p.add_argument("--local", action="store_true")
    p.add_argument("--ranks", type=int, default=4)
    p.add_argument("--shape", default="2x2x2")
    p.add_argument("--rate", default="100mbit")
    p.add_argument("--mpirun", action="store_true")
    p.add_argument("--backends")
    p.add_argument("--faults")
    p.add_argument("--timeout", type=float, default=5)
    p.add_argument("--slack", type=float, default=0)
    p.add_argument("--program", default=os.path.join(ROOT, os.environ.get("BUILD", "build"), "train_gpt2"))
    options = p.parse_args()
    options.program = os.path.abspath(options.program)
    backends = ["shm", "torus", *(["mpi"] if shutil.which("mpirun") else [])] if options.local else ["torus"]
    faults = ["kill", "stop", "mismatch", "busy", *([] if options.local else ["lost", "cut"])]
    options.backends = options.backends.split(",") if options.backends else backends
    options.faults = options.faults.split(",") if options.faults else faults
    return options


def main():
    options = parse()
    draw, results, setting = random.Random(options.seed), {}, None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "text.txt"), "w", encoding="utf-8") as file:
            file.write("".join(f"{i} bottles of {chr(97 + i % 26)}eer on the wall.\n" for i in range(5000)))
        subprocess.run([options.program, "tokenize", "text.txt", "--output=t", "--quiet"], cwd=folder, check=True,
                       capture_output=True)
        try:
            setting = Local(options) if options.local else Lab(options)
            for number in range(1, options.rounds + 1):
                what, seconds, bad = play(number, setting, folder, draw, options)
                results.setdefault(what, []).append((seconds, bad))
        finally:
            if setting:
                setting.close()
    bad = sum(bool(b) for rows in results.values() for _, b in rows)
    for what, rows in sorted(results.items()):
        times = [t for t, _ in rows]
        print(f"{what:16} {len(rows):4} rounds, {sum(bool(b) for _, b in rows)} bad, "
              f"median {statistics.median(times):.2f} s, most {max(times):.2f} s")
    where = "on one host" if options.local else f"on {options.shape} at {options.rate}"
    print(f"faults: {options.rounds} rounds with seed {options.seed} {where}, {bad} bad")
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
