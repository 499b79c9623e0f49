#!/usr/bin/env python3
"""Training that is killed, runs out of disk, loses its remote store, or goes on with other numbers of ranks: it ends with the
weights of the run that nothing happened to, and no committed checkpoint is ever lost.

    python3 dev/test/test_ckpt_train.py [path of train_gpt2]
    KILLS=1000 nice -n 19 python3 dev/test/test_ckpt_train.py build/train_gpt2     many kills only, with a summary
                                                 (RANKS="1 3": of runs of so many ranks; SECONDS_MAX: no longer than that; SEED=0: of the times)
    ALL=1 python3 dev/test/test_ckpt_train.py build/train_gpt2                     every N -> M of 1, 2, 3, 4, 8 only"""
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.abspath(sys.argv[1] if len(sys.argv) > 1
                          else os.path.join(ROOT, os.environ.get("BUILD", "build"), "train_gpt2"))
# A learning rate that does not depend on --steps, so that a run may be ended by it and gone on with by a larger one.
BASE = ["--train-data=t_train_*.bin", "--layers=2", "--heads=3", "--channels=27", "--context=16", "--batch-size=2",
        "--total-batch=768", "--learning-rate=3e-3", "--warmup=4", "--schedule=constant", "--color=never", "--threads=1",
        "--comm-timeout=30", "--log-every=1"]
STOPPED, CORRUPT = 75, 3
COMMIT = 3
LIMIT_SECONDS = 120
checks = failures = 0


def check(condition, what):
    global checks, failures
    checks += 1
    if not condition:
        failures += 1
        print("failed:", what)
    return condition


def environment(rank, ranks, more=()):
    return dict(os.environ, TOROID_RANK=str(rank), TOROID_SIZE=str(ranks), OMP_WAIT_POLICY="passive", **dict(more))


class Run:
    """The ranks of one start; what they say goes to files."""

    def __init__(self, run, ranks, *more, env=()):
        command = [PROGRAM, *BASE, f"--run={run}", *more]
        self.name, self.outputs, self.jobs = run, [tempfile.TemporaryFile("w+") for _ in range(ranks)], []
        for rank, output in enumerate(self.outputs):
            self.jobs.append(subprocess.Popen(command, env=environment(rank, ranks, env), stdout=output, stderr=output))

    def running(self):
        return any(job.poll() is None for job in self.jobs)

    def kill(self):
        for job in self.jobs:
            job.kill()

    def wait(self):
        """Exit codes, and what rank 0 said. What outlives the limit is killed and counts as -1."""
        end, codes = time.monotonic() + LIMIT_SECONDS, []
        for job in self.jobs:
            try:
                codes.append(job.wait(timeout=max(1, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
                codes.append(-1)
        texts = []
        for output in self.outputs:
            output.seek(0)
            texts.append(output.read())
            output.close()
        self.all_text = "".join(texts)
        return codes, texts[0]


def train(run, ranks, *more, code=0, env=()):
    codes, text = Run(run, ranks, *more, env=env).wait()
    check(set(codes) == {code}, f"{run} on {ranks} ranks, {more}: {codes}: {text[-600:]}")
    return text


def ckpt(*args, env=()):
    p = subprocess.run([PROGRAM, "ckpt", *args], capture_output=True, text=True, timeout=LIMIT_SECONDS, env=dict(os.environ, **dict(env)))
    return p.returncode, p.stdout, p.stderr


def restorable(place, env=()):
    """(attempt, step) of what can be restored, newest first."""
    lines = [line.split() for line in ckpt("ls", place, env=env)[1].split("\n")[1:] if " restorable " in line]
    return [(int(line[1]), int(line[0])) for line in lines]


def committed(place):
    """The newest (attempt, step) that a manifest says is committed, read as it is at this moment; (0, 0): none."""
    newest = (0, 0)
    for path in glob.glob(f"{place}/manifest/*.log"):
        try:
            with open(path, "rb") as file:
                while True:  # 16 blocks without a record end it
                    data = file.read(16 * 4096)
                    records = [data[at:at + 48] for at in range(0, len(data), 4096) if data[at:at + 8] == b"toroidck"]
                    if not records:
                        break
                    newest = max([newest, *((int.from_bytes(r[32:36], "little"), int.from_bytes(r[40:48], "little"))
                                            for r in records if r[12] == COMMIT)])
        except FileNotFoundError:
            continue
    return newest


def metrics(run):
    with open(f"{run}/metrics.jsonl", encoding="utf-8") as file:
        return [{key: line.get(key) for key in ("step", "loss", "norm", "lr")} for line in map(json.loads, file)]


def weights(run):
    subprocess.run([PROGRAM, "convert", run, "weights.bin", "--quiet"], check=True, capture_output=True)
    with open("weights.bin", "rb") as file:
        return file.read()


def same(run, other, what):
    check(metrics(run) == metrics(other), f"{what}: other losses or norms than {other}")
    return check(weights(run) == weights(other), f"{what}: other weights than {other}")


def wait_for(condition):
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False


# ---- killed ----

class Kills:
    """A run that is killed at random times and started again until it is done; then the next such run."""
    STEPS = 16

    def __init__(self, ranks, seed):
        self.ranks, self.random = ranks, random.Random(seed)
        self.more = [f"--steps={self.STEPS}", "--checkpoint-every=1", "--reduce=exact", "--resume=auto"]
        self.kills = self.done = self.starts = self.before_first = self.incomplete = self.uncommitted = 0
        self.number, self.seen, self.found = 0, (0, 0), []
        begin = time.monotonic()
        train(f"straight{ranks}", ranks, *self.more)
        self.seconds = time.monotonic() - begin

    def folder(self):
        return f"kill{self.ranks}_{self.number}"

    def kill_once(self):
        """One start: killed, or through. Half of the times shortly behind a commit, where most happens."""
        place, what = f"{self.folder()}/checkpoints", f"{self.folder()}, start {self.starts}"
        found = self.found
        run = Run(self.folder(), self.ranks, *self.more)
        self.starts += 1
        if self.random.random() < 0.5:
            wait_for(lambda: not run.running() or committed(place) > self.seen)
            time.sleep(self.random.uniform(0, 0.02))
        else:
            time.sleep(self.random.uniform(0, 0.7 * self.seconds))
        self.seen = max(self.seen, committed(place))
        killed = run.running()
        run.kill()
        codes, text = run.wait()
        self.kills += killed and -signal.SIGKILL in codes
        resumed = re.search(r"resumed .* at step (\d+)", text)
        if found and resumed:
            check(int(resumed[1]) == found[0][1], f"{what}: resumed at {resumed[1]}, but {found[0]} was there")
        self.judge(place, what, codes, text)

    def judge(self, place, what, codes, text):
        found = self.found = restorable(place)
        newest = found[0] if found else (0, 0)
        check(newest >= self.seen, f"{what}: {self.seen} was committed, the newest restorable is {newest}")
        self.uncommitted += newest > self.seen
        self.before_first += not found
        code, out, err = ckpt("verify", place, "--deep")
        check(code in (0, 4, 5), f"{what}: verify --deep: {code} {out} {err}")
        self.incomplete += code == 4
        self.seen = newest
        bad = [code for code in codes if code not in (0, 1, -signal.SIGKILL)]
        check(not bad and "CHECK" not in text, f"{what}: {codes} {text[-600:]}")
        if codes == [0] * self.ranks:
            self.done += 1
            same(self.folder(), f"straight{self.ranks}", what)
            check(newest[1] == self.STEPS, f"{what}: the last state is {newest}")
            shutil.rmtree(self.folder())
            self.number += 1
            self.seen, self.found = (0, 0), []

    def run(self, kills, end):
        done = 0
        while self.kills < kills and not failures and time.monotonic() < end:
            self.kill_once()
            if os.environ.get("KILLS") and self.done > done:
                print(f"{self.ranks} ranks, {self.kills} kills, {self.starts} starts, {self.done} runs done and the same", flush=True)
            done = self.done
        if os.path.exists(self.folder()):  # and it ends well
            train(self.folder(), self.ranks, *self.more)
            self.done += same(self.folder(), f"straight{self.ranks}", "after the last kill")
            shutil.rmtree(self.folder())
            self.number += 1
            self.seen = (0, 0)

    def summary(self):
        return (f"{self.ranks} rank{'s' * (self.ranks > 1)}: {self.kills} kills in {self.starts} starts; "
                f"{self.done} runs of {self.STEPS} steps ended with the weights and losses of the run that never stopped; "
                f"after kills: restorable beyond the last COMMIT seen {self.uncommitted}, an incomplete one lay beside "
                f"{self.incomplete}, nothing saved yet {self.before_first}; corrupt 0, a committed one lost 0")


def test_killed(kills=15):
    sizes = [int(ranks) for ranks in os.environ.get("RANKS", "1 3").split()]
    limit = float(os.environ.get("SECONDS_MAX", "1e9")) / len(sizes)
    seed = 1000 * int(os.environ.get("SEED", "0"))
    for i, ranks in enumerate(sizes):
        k = Kills(ranks, seed + ranks)
        k.run((kills + len(sizes) - 1 - i) // len(sizes), time.monotonic() + limit)
        if os.environ.get("KILLS"):
            print(k.summary(), flush=True)


# ---- other numbers of ranks, and the same ----

def test_resume(pairs=((2, 8), (8, 2), (3, 4)), first=4, last=8):
    """first steps on N, the others on M; bits of one rank's run that was never stopped."""
    train("whole", 1, f"--steps={last}", "--reduce=exact")
    for n in sorted({n for n, _ in pairs}):
        train(f"first{n}", n, f"--steps={first}", "--reduce=exact")
    for n, m in pairs:
        run = f"from{n}to{m}"
        shutil.copytree(f"first{n}", run)
        text = train(run, m, f"--steps={last}", "--reduce=exact", "--resume=must")
        check(f"at step {first}," in text, f"{run}: {text[-400:]}")
        good = same(run, "whole", run)
        shutil.rmtree(run)
        if len(pairs) > 3:
            print(f"{n} -> {m}: {'the same bits' if good else 'OTHER BITS'} (weights; loss, norm and rate of {last} steps)", flush=True)


def test_next_losses():
    """In fp32, on the same number of ranks: the 20 losses behind a resume, digit by digit."""
    for ranks in (1, 4):
        train(f"long{ranks}", ranks, "--steps=24", "--reduce=fp32")
        train(f"parts{ranks}", ranks, "--steps=4", "--reduce=fp32")
        train(f"parts{ranks}", ranks, "--steps=24", "--reduce=fp32", "--resume=must")
        same(f"parts{ranks}", f"long{ranks}", f"{ranks} -> {ranks}")
        check(len(metrics(f"parts{ranks}")) == 24, f"{ranks} -> {ranks}: steps")


# ---- the remote store, and a full disk ----

NOWHERE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "r"}


def test_unreachable():
    remote = ["--remote=s3://bucket/run", "--drain-seconds=0"]
    text = train("away", 1, "--steps=2", *remote, code=1, env=NOWHERE)
    check("cannot be read" in text and "--resume=never" in text and text.count("error: ") == 1, f"nothing to go on from: {text[-500:]}")
    text = train("away", 1, "--steps=4", "--checkpoint-every=1", "--resume=never", *remote, env=NOWHERE)
    check(text.count("only what is in") == 1 and text.count("not everything is there yet") == 1, f"a store that is away: {text}")
    text = train("away", 2, "--steps=6", "--checkpoint-every=1", *remote, env=NOWHERE)
    check("at step 4," in text, f"goes on from what is here: {text[-500:]}")
    check(restorable("away")[0][1] == 6, f"saved: {restorable('away')}")
    text = train("away", 1, "--steps=8", "--remote=back", "--drain-seconds=60")
    check(restorable("back")[0][1] == 8 and set(restorable("away")) <= set(restorable("back")),
          f"another store gets all that is here: {restorable('away')} {restorable('back')}")


def test_s3_outage():
    """A real server that fails in mid-run and comes back: training never waits, and in the end all is there; then ckpt gc."""
    try:
        import moto.server  # noqa: F401
    except ImportError:
        print("ckpt_train: without moto (pip install 'moto[server]'), an outage of S3 is not tried")
        return
    sys.path.insert(0, os.path.join(ROOT, "dev", "test"))
    import s3_server
    server, down, place = s3_server.open_server(), [], "s3://bucket/cloud/run"
    proxy = s3_server.Proxy(server.port, lambda request: "503" if down else None)
    env = {"AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": server.info["aws_access_key_id"],
           "AWS_SECRET_ACCESS_KEY": server.info["aws_secret_access_key"]}
    try:
        more = ["--checkpoint-every=1", f"--remote={place}"]
        train("cloud", 2, "--steps=2", *more, env=env)
        check(restorable(place, env)[0][1] == 2, f"S3: {restorable(place, env)}")
        run = Run("cloud", 2, "--steps=14", *more, "--drain-seconds=0", env=env)
        wait_for(lambda: not run.running() or committed("cloud/checkpoints")[1] >= 4)
        down.append(True)
        codes, text = run.wait()
        check(codes == [0, 0] and text.count("not everything is there yet") == 1, f"an outage: {codes} {text[-600:]}")
        check(text.count(" after ") <= 1, f"an outage is said once: {text[-900:]}")
        check(metrics("cloud")[-1]["step"] == 14 and restorable("cloud")[0][1] == 14, "an outage: trained to its end")
        down.clear()
        train("cloud", 2, "--steps=15", *more, env=env)
        here, there = restorable("cloud"), restorable(place, env)
        check(there and there[0][1] == 15 and set(here) <= set(there), f"after the outage: {here} here, {there} there")
        code, out, err = ckpt("gc", place, "--keep=1", env=env)
        check(code == 0 and f"{len(there) - 1} checkpoints" in out, f"gc: {code} {out} {err}")
        check(restorable(place, env) == there[:1], f"gc: {restorable(place, env)}")
        check(ckpt("verify", place, env=env)[0] == 0, "gc: what stays is whole")
    finally:
        proxy.close()
        server.close()


def mounted(folder, megabytes):
    os.mkdir(folder)
    return os.geteuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder],
                                                    capture_output=True).returncode


def fill(path):
    """A file of all that the disk has left."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass


def test_full_disk():
    if not mounted("small", 16):
        print("ckpt_train: without root, a full disk is not tried")
        return
    try:
        # Segments are there before the first step: what fills the disk behind them does no harm.
        run = Run("full", 1, "--steps=60", "--checkpoint-every=1", "--staging=small", "--keep=1")
        wait_for(lambda: not run.running() or committed("small") > (0, 0))
        fill("small/filler")
        codes, text = run.wait()
        check(codes == [0] and restorable("small")[0][1] == 60, f"a full disk: {codes} {text[-500:]}")
        # A store that takes nothing fills the segments: training goes on; that the last state cannot be saved is an error.
        # The disk has room for a start's segments and log of marks, and no more.
        os.remove("small/filler")
        segments = glob.glob("small/seg/*")
        with open("small/filler", "wb", buffering=0) as file:
            space = os.statvfs("small")
            file.write(bytes(space.f_bavail * space.f_frsize - 3 * os.path.getsize(segments[0]) - (2 << 20)))
        more = ["--staging=small", "--keep=1", "--checkpoint-every=1", "--remote=s3://bucket/run", "--drain-seconds=0"]
        text = train("full", 1, "--steps=90", *more, code=1, env=NOWHERE)
        check(text.count("was not saved") == 1 and "training goes on" in text, f"said once: {text[-900:]}")
        check("step 90 could not be saved" in text and text.count("error: ") == 1, f"the last save: {text[-500:]}")
        check(metrics("full")[-1]["step"] == 90, f"trained to its end: {metrics('full')[-1]}")
        newest = restorable("small")[0][1]
        check(newest > 60, f"the newest restorable: {restorable('small')}")
        fill("small/last")
        text = train("full", 1, "--steps=91", "--staging=small", "--keep=1", "--remote=text.txt", code=1)
        check("cannot be uploaded first" in text and text.count("error: ") == 1, f"no room, no store: {text[-500:]}")
        check(restorable("small")[0][1] == newest, f"no room, no store: {restorable('small')}")
        before = restorable("small")
        text = train("full", 1, "--steps=91", "--staging=small", "--keep=1", "--remote=room", "--drain-seconds=60")
        check("is uploaded first" in text and f"at step {newest}," in text, f"a store makes room: {text[-500:]}")
        check(set(before) <= set(restorable("room")) and restorable("room")[0][1] == 91, f"room: {restorable('room')}")
        newest = 91
        code, out, err = ckpt("gc", "small", "--keep=1")  # none of them was ever uploaded, and no store is named
        check(code == 0 and restorable("small")[0][1] == newest, f"gc: {code} {out} {err}")
        text = train("full", 1, "--steps=92", "--staging=small", "--keep=1")
        check(f"at step {newest}," in text and restorable("small")[0][1] == 92, f"goes on: {text[-500:]}")
        train("unfilled", 1, "--steps=92")
        check(metrics("full") == metrics("unfilled") and weights("small") == weights("unfilled"), "through two full disks: other bits")
    finally:
        subprocess.run(["umount", "small"], check=True)


def test_term_with_remote():
    run = Run("term", 2, "--steps=100000", "--checkpoint-every=1", "--keep=2", "--remote=far", "--drain-seconds=60", "--log-every=1000")
    wait_for(lambda: not run.running() or committed("term/checkpoints")[1] >= 5)
    run.jobs[1].send_signal(signal.SIGTERM)
    codes, text = run.wait()
    check(codes == [STOPPED] * 2, f"SIGTERM: {codes} {text[-500:]}")
    here, there = restorable("term"), restorable("far")
    check(here and set(here) <= set(there), f"SIGTERM: {here} are here, {there} in the remote store")
    check("not everything" not in run.all_text, f"SIGTERM: {text[-500:]}")
    check(there[0] == committed("term/checkpoints"), f"SIGTERM: committed {committed('term/checkpoints')}, uploaded {there[0]}")
    check(ckpt("verify", "far", "--deep")[0] == 0, "SIGTERM: what was uploaded")


def test_every():
    text = train("auto", 1, "--steps=6", "--checkpoint-every=auto")
    check(restorable("auto")[0][1] == 6, f"auto: {text[-300:]}")
    text = train("timed", 1, "--steps=60", "--checkpoint-every=0.01s", "--keep=50")
    check(len(restorable("timed")) > 2, f"every hundredth of a second: {restorable('timed')} {text[-300:]}")
    for bad in ("x", "-1", "5x", "nan", "1.5", "0s", "auto1", ""):
        text = train("bad", 1, "--steps=2", f"--checkpoint-every={bad}", code=2)
        check(text.count("error: ") == 1 and not os.path.exists("bad"), f"--checkpoint-every={bad}: {text}")


def main():
    if not os.path.exists(PROGRAM):
        print(f"skipped: {PROGRAM} is not built (make)")
        return 77
    for name in [key for key in os.environ if key.startswith("TOROID_")]:
        del os.environ[name]
    sizes = (1, 2, 3, 4, 8)
    tests = [test_killed, test_resume, test_next_losses, test_unreachable, test_s3_outage, test_full_disk, test_term_with_remote, test_every]
    if os.environ.get("KILLS"):
        tests = [lambda: test_killed(int(os.environ["KILLS"]))]
    elif os.environ.get("ALL"):
        tests = [lambda: test_resume([(n, m) for n in sizes for m in sizes])]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("text.txt", "w", encoding="utf-8") as file:
            file.write("".join(f"{i} bottles of {chr(97 + i % 26)}eer on the wall, take {i % 7} down.\n" for i in range(2000)))
        subprocess.run([PROGRAM, "tokenize", "text.txt", "--output=t", "--quiet"], check=True, capture_output=True)
        for test in tests:
            begin = time.monotonic()
            test()
            if os.environ.get("VERBOSE"):
                print(f"{test.__name__}: {time.monotonic() - begin:.1f} s", flush=True)
        os.chdir("/")
    print(f"ckpt_train: {checks} checks, {failures} failed")
    return 1 if failures or not checks else 0


if __name__ == "__main__":
    sys.exit(main())
