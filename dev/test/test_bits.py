#!/usr/bin/env python3
"""The same bits: a run that was stopped, killed or damaged and resumed is the run that was not; threads change nothing.

    python3 dev/test/test_bits.py [path of train_gpt2]

Runs are compared by their final weights, byte by byte, and by the losses, norms and learning rates of every step in
metrics.jsonl, digit by digit. What may differ by rounding (gradient accumulation, instruction sets, bf16) has bounds.
"""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import lab
from lab import ENVIRONMENT, PROGRAM, STOPPED, check, checkpoints, metrics, run, weights

# Large enough steps for signals to arrive between two of them: some 50 ms.
BASE = ["train", "--train-data=tok_train_*.bin", "--val-data=tok_val_*.bin", "--layers=2", "--heads=2", "--channels=64",
        "--context=64", "--batch-size=8", "--total-batch=8192", "--steps=8", "--warmup=3", "--learning-rate=2e-3",
        "--eval-every=4", "--eval-batches=2"]


def train(folder, *more):
    code, out, err = run(*BASE, f"--run={folder}", *more)
    check(code == 0, f"{folder} {more}: exit {code}: {err[-300:]}")
    return out, err


def train_and_signal(folder, number, after_step, *more):
    """Sends the signal when the line of that step is out; exit code and stderr. A run that was through before the signal
    could reach it (on a busy machine) says nothing: the folder is put back as it was, and it is tried again."""
    before = folder + ".before"
    if os.path.exists(folder):
        shutil.copytree(folder, before)
    for _ in range(20):
        code, text, sent = try_signal(folder, number, after_step, *more)
        if number == signal.SIGUSR1 or code != 0:
            break
        shutil.rmtree(folder)
        if os.path.exists(before):
            shutil.copytree(before, folder)
    shutil.rmtree(before, ignore_errors=True)
    check(sent, f"{folder}: no line of step {after_step} was seen: {text[-300:]}")
    return code, text


def try_signal(folder, number, after_step, *more):
    with tempfile.TemporaryFile() as err:
        p = subprocess.Popen([PROGRAM, *BASE, f"--run={folder}", "--threads=1", *more], stdout=subprocess.PIPE, stderr=err, env=ENVIRONMENT)
        sent = False
        for line in p.stdout:
            if not sent and re.match(rb" *step +%d/" % after_step, line):
                p.send_signal(number)
                sent = True
        code = p.wait(timeout=120)
        p.stdout.close()
        err.seek(0)
        return code, err.read().decode("utf-8", "replace"), sent


def steps_done(folder):
    return metrics(folder)[-1]["step"]


def same(folder, reference, steps=8):
    """Are the two finished runs the same, to the bit?"""
    ours, theirs = metrics(folder), metrics(reference)
    check([line["step"] for line in ours] == list(range(1, steps + 1)),
          f"{folder}: steps in metrics.jsonl: {[line['step'] for line in ours]}")
    for key in ("loss", "val_loss", "norm", "lr", "tokens", "skipped"):
        a, b = [line.get(key) for line in ours], [line.get(key) for line in theirs]
        check(a == b, f"{folder} is not {reference}: {key}: {a} {b}")
    check(weights(folder) == weights(reference), f"{folder} is not {reference}: weights")


def close(folder, reference, bound):
    ours, theirs = metrics(folder), metrics(reference)
    far = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs))
    check(len(ours) == len(theirs) and far <= bound, f"{folder}: losses are {far:.2e} from {reference}'s, bound {bound:.0e}")
    return far


def make_data():
    rng = random.Random(1)
    words = "the of and to in that it was his he with as had for at by on not be her is but all have from".split()
    with open("text.txt", "w") as f:
        for _ in range(8000):
            f.write(" ".join(rng.choice(words) for _ in range(rng.randint(3, 12))) + ".\n")
    code, _, err = run("tokenize", "-o", "tok", "--shard-tokens=100000", "text.txt")
    check(code == 0, f"tokenize: {err}")


def test_threads_and_seeds():
    train("straight")
    train("again")
    same("again", "straight")
    for threads in (1, 2, 3):
        train(f"threads{threads}", f"--threads={threads}")
        same(f"threads{threads}", "straight")
    train("reports", "--log-every=3", "--checkpoint-every=3", "--sample-every=2", "--sample-tokens=3")
    same("reports", "straight")
    train("seed", "--seed=2")
    check(metrics("seed")[-1]["loss"] != metrics("straight")[-1]["loss"], "another seed, the same loss")
    check(weights("seed") != weights("straight"), "another seed, the same weights")


def test_stop_and_resume():
    code, err = train_and_signal("term", signal.SIGTERM, 1)
    check(code == STOPPED and "SIGTERM" in err, f"SIGTERM: exit {code}: {err[-200:]}")
    check(1 <= steps_done("term") <= 8, f"SIGTERM: stopped after step {steps_done('term')}")
    for number in (signal.SIGHUP, signal.SIGINT):
        if steps_done("term") >= 7:  # a late stop left no step to stop after
            break
        code, err = train_and_signal("term", number, steps_done("term") + 1)
        check(code == STOPPED and number.name in err and "resumed" in err, f"{number.name}: exit {code}: {err[-200:]}")
    _, err = train("term", "--resume=must")
    check("resumed     term at step" in err, f"resume: {err[-300:]}")
    same("term", "straight")


def test_kill():
    code, _ = train_and_signal("kill", signal.SIGKILL, 5, "--checkpoint-every=2")
    check(code == -signal.SIGKILL, f"SIGKILL: exit {code}")
    check(steps_done("kill") >= 4, "SIGKILL: metrics end before the last step seen")
    _, err = train("kill", "--checkpoint-every=2")
    at = re.search(r"resumed     kill at step (\d+)", err)
    check(at and int(at[1]) in (2, 4, 6), f"SIGKILL: {err[-300:]}")
    same("kill", "straight")
    # Killed anywhere, over and over, with a save after each step: always resumes, always the same run.
    rng = random.Random(3)
    kills = 0
    for _ in range(20):
        p = subprocess.Popen([PROGRAM, *BASE, "--run=kills", "--checkpoint-every=1", "--threads=1"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=ENVIRONMENT)
        for _ in range(rng.randint(1, 3)):
            p.stdout.readline()
        time.sleep(rng.random() * 0.03)
        p.kill()
        err = p.communicate()[1].decode("utf-8", "replace")
        kills += p.returncode != 0
        before_first_save = "of an earlier run, which this one does not go on with" in err
        check("error" not in err and ("warning" not in err or before_first_save), f"killed run: {err[-300:]}")
        if p.returncode == 0:
            break
    check(kills >= 2, f"only {kills} kills before the run was done")
    train("kills", "--checkpoint-every=1")
    same("kills", "straight")
    left = [name for name in os.listdir("kills") if "tmp" in name or "new" in name]
    check(not left, f"killed runs left {left}")


def test_ask_to_save():
    code, err = train_and_signal("usr1", signal.SIGUSR1, 3)
    check(code == 0, f"SIGUSR1: exit {code}: {err[-300:]}")
    same("usr1", "straight")
    saved = checkpoints("usr1")
    if not check(len(saved) == 2 and saved[0] == 8 and saved[1] in (3, 4, 5), f"SIGUSR1: checkpoints of steps {saved}"):
        return
    code, _, err = run("ckpt", "restore", f"usr1@{saved[1]}", "back")
    check(code == 0, f"SIGUSR1: restore: exit {code}: {err[-300:]}")
    shutil.rmtree("usr1/checkpoints")
    os.rename("back/checkpoints", "usr1/checkpoints")
    _, err = train("usr1")
    check(f"resumed     usr1 at step {saved[1]}," in err, f"SIGUSR1: {err[-300:]}")
    same("usr1", "straight")


def test_damaged_state():
    for name, change in (("flipped", lambda data: data.__setitem__(100000, data[100000] ^ 4)),
                         ("cut", lambda data: data.__delitem__(slice(len(data) // 3, None))), ("empty", bytearray.clear)):
        train(name, "--checkpoint-every=5")
        with open(lab.segments(name)[0][1], "r+b") as f:
            data = bytearray(f.read())
            change(data)
            f.seek(0)
            f.truncate()
            f.write(data)
        _, err = train(name)
        warned = [line for line in err.split("\n") if line.startswith("warning: ") and "step 8" in line]
        check((warned or name != "flipped") and f"resumed     {name} at step 5" in err, f"{name} state: {err[-400:]}")
        same(name, "straight")
    # All damaged: an error, and the files stay for whoever can repair them.
    for _, path in lab.segments("cut"):
        with open(path, "r+b") as f:
            f.truncate(5000)
    code, _, err = run(*BASE, "--run=cut")
    check(code == 1 and err.count("error: ") == 1 and "cut/checkpoints" in err, f"all damaged: exit {code}: {err[-300:]}")
    check(all(os.path.getsize(path) == 5000 for _, path in lab.segments("cut")), "all damaged: overwritten")
    check(len(metrics("cut")) == 8, "all damaged: metrics.jsonl changed")


def resumed_like_straight(name, *options):
    """Straight, and with a stop in the middle and a kill: the same."""
    train(f"{name}_straight", *options)
    code, err = train_and_signal(f"{name}_stopped", signal.SIGTERM, 2, *options)
    check(code == STOPPED, f"{name}: exit {code}: {err[-300:]}")
    code, _ = train_and_signal(f"{name}_stopped", signal.SIGKILL, 6, "--checkpoint-every=1", *options)
    train(f"{name}_stopped", *options)
    steps = len(metrics(f"{name}_straight"))
    same(f"{name}_stopped", f"{name}_straight", steps)
    check(metrics(f"{name}_straight")[0]["loss"] > 0, name)


def test_options_across_a_resume():
    resumed_like_straight("window", "--window=16")
    resumed_like_straight("wsd", "--schedule=wsd", "--decay-fraction=0.5", "--grad-clip=0.5", "--weight-decay=0.3", "--precision=bf16")
    resumed_like_straight("short", "--sequence=32", "--total-batch=4096", "--eval-every=1", "--schedule=linear")
    # Scores need 128 steps of history; a low bound then skips many of those behind them, across two resumes.
    small = ["--layers=1", "--channels=32", "--total-batch=0", "--batch-size=4", "--steps=220", "--eval-every=0",
             "--skip-grad-z=0.5", "--skip-loss-z=1"]
    train("skip_straight", *small)
    skipped = [line["step"] for line in metrics("skip_straight") if line.get("skipped")]
    check(len(skipped) > 3 and skipped[0] > 128, f"skips: {skipped}")
    for number in (signal.SIGTERM, signal.SIGKILL):
        code, err = train_and_signal("skip_stopped", number, 60 if number == signal.SIGTERM else 150, "--checkpoint-every=7", *small)
        check(code in (STOPPED, -signal.SIGKILL), f"skips: exit {code}: {err[-300:]}")
    train("skip_stopped", *small)
    same("skip_stopped", "skip_straight", 220)
    check(f'"skipped": true' in open("skip_stopped/metrics.jsonl").read(), "skips: none after the resume")


def test_rounding():
    one = [*"--total-batch=0 --batch-size=8".split()]
    train("whole", *one)
    train("halves", "--batch-size=4", "--total-batch=512")
    close("halves", "whole", 1e-6)
    train("portable", "--isa=portable")
    tried = []
    for isa in ("avx2", "avx512", "avx512bf16", "neon", "auto"):
        code, _, err = run(*BASE, f"--run=isa_{isa}", f"--isa={isa}")
        if code == 0:
            tried.append(isa)
            close(f"isa_{isa}", "portable", 1e-4)
        else:
            check(code == 1 and "error: " in err and isa in err, f"--isa={isa}: exit {code}: {err[-200:]}")
    check("auto" in tried, f"instruction sets: {tried}")
    for isa in ["portable"] + tried:
        train(f"bf16_{isa}", f"--isa={isa}", "--precision=bf16")
        far = close(f"bf16_{isa}", "portable", 2e-2)
        check(far > 0, f"--isa={isa}: bf16 is fp32")
    train("bf16_threads", "--precision=bf16", "--threads=1")
    same("bf16_threads", "bf16_auto")


def test_new_start():
    shutil.copytree("straight", "never")
    train("never", "--resume=never")
    same("never", "straight")
    # More steps are another schedule, but the data goes on where it was.
    train("longer", "--schedule=constant", "--steps=6")
    train("longer", "--schedule=constant")
    train("constant", "--schedule=constant", "--eval-every=2")
    check(weights("longer") == weights("constant"), "longer is not constant")
    train("from", "--init=straight", "--steps=2")
    check(metrics("from")[0]["loss"] < metrics("straight")[0]["loss"], "--init=RUN does not start from the run's weights")


def test_two_at_once():
    first = subprocess.Popen([PROGRAM, *BASE, "--run=shared", "--checkpoint-every=1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             env=ENVIRONMENT)
    first.stdout.readline()
    code, _, err = run(*BASE, "--run=shared")
    check(code == 1 and err.count("error: ") == 1 and "shared" in err and "another process" in err, f"two at once: {code} {err[-300:]}")
    first.stdout.read()
    check(first.wait() == 0, "two at once: the first one failed")
    same("shared", "straight")


if __name__ == "__main__":
    sys.exit(lab.main("bits", make_data, test_threads_and_seeds, test_stop_and_resume, test_kill, test_ask_to_save,
                      test_damaged_state, test_options_across_a_resume, test_rounding, test_new_start, test_two_at_once))
