#!/usr/bin/env python3
"""Checkpoints as their user meets them: `train_gpt2 ckpt ...`, its exit codes, and training with --remote, --keep and too
little room.

usage: python3 dev/test/test_ckpt_command.py [path of train_gpt2]"""
import fcntl
import glob
import json
import os
import shutil
import subprocess
import sys
import time

import lab
from lab import check, run

BASE = ["--train-data=t_train_*.bin", "--val-data=t_val_*.bin", "--layers=2", "--heads=2", "--channels=48", "--context=32",
        "--batch-size=2", "--eval-every=4", "--eval-batches=2", "--color=never", "--threads=1"]
CORRUPT, INCOMPLETE, ABSENT = 3, 4, 5


def train(run_, steps, *more, code=0):
    got, out, err = run(*BASE, f"--run={run_}", f"--steps={steps}", *more)
    check(got == code, f"train {run_} {more}: exit {got}: {err[-400:]}")
    return out, err


def train_to(run_, ends, *more):
    """A run that is stopped and goes on at each of these steps, which are saved: a save is never left out at the end."""
    for end in ends:
        result = train(run_, end, *more)
    return result


def ckpt(*args, code=0, says=()):
    """What it printed; failures must be one line on stderr."""
    got, out, err = run("ckpt", *args)
    check(got == code, f"ckpt {args}: exit {got}, wanted {code}: {out[-200:]} {err[-300:]}")
    if code not in (0, 1) and code != ABSENT:
        check(err.count("error: ") == 1, f"ckpt {args}: {err[-300:]}")
    for part in [says] if isinstance(says, str) else says:
        check(part in out + err, f"ckpt {args}: {part!r} is not in {(out + err)[-400:]!r}")
    return out


def steps(place):
    """The steps that can be restored, newest first."""
    return [int(line.split()[0]) for line in ckpt("ls", place).split("\n")[1:] if " restorable " in line]


def segment_of(place, step):
    return next((path for at, path in lab.segments(place) if at == step), None)


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_look():
    _, err = train_to("a", (2, 4, 6, 8), "--keep=3", "--checkpoint-every=1000")
    check("1 saved" in err, f"what saving cost: {err[-300:]}")
    found = steps("a")
    check(found[0] == 8 and 3 <= len(found) <= 4, f"kept: {found}")  # three, and the best by validation loss
    check(steps("a/checkpoints") == found, "a staging folder is a place too")
    ckpt("verify", "a", says="step 8: all records")
    ckpt("verify", "a", "--deep", says="every byte")
    ckpt("verify", f"a@{found[1]}", says=f"step {found[1]}:")
    ckpt("ls", "nowhere", code=ABSENT)
    ckpt("verify", "nowhere", code=ABSENT)
    ckpt("verify", "a@7777", code=ABSENT, says="7777")
    ckpt("help", says="PLACE")
    for bad in (("look", "a"), ("ls",), ("diff", "a"), ("pin", "a", "b"), ("drain", "a")):
        ckpt(*bad, code=2)


def test_copy():
    found = steps("a")
    ckpt("diff", "a", "a", says="the same")
    ckpt("diff", "a", f"a@{found[1]}", code=1, says=("params/wte", "elements differ"))
    ckpt("restore", f"a@{found[1]}", "b")
    check(steps("b") == [found[1]], "restored")
    ckpt("diff", f"a@{found[1]}", "b", says="the same")
    ckpt("restore", "a", "b", code=1, says="already")
    ckpt("export", "a", "a.bin")
    check(run("convert", "a", "a2.bin")[0] == 0, "convert")
    with open("a.bin", "rb") as one, open("a2.bin", "rb") as two:
        check(one.read() == two.read(), "export is not convert")
    ckpt("export", f"a@{found[1]}", "older.safetensors")
    check(run("sample", "a", "--tokens=5")[0] == 0, "sample of a run")
    out, err = train("b", 9)
    check(f"at step {found[1]}," in err, f"goes on from what was restored: {err[-300:]}")


def test_pin():
    train("p", 2)
    ckpt("pin", "p@2")
    train_to("p", (3, 5, 7, 9), "--keep=1", "--eval-every=0")
    found = steps("p")
    check(found[0] == 9 and 2 in found and len(found) <= 4, f"pinned: {found}")
    ckpt("unpin", "p@2")
    train_to("p", (11, 12, 14), "--keep=1", "--eval-every=0")
    check(2 not in steps("p"), f"unpinned: {steps('p')}")


def test_remote():
    train_to("r", (2, 4, 6), "--remote=far")
    check(steps("far") == [6, 4, 2], f"remote: {steps('far')}")
    ckpt("verify", "far", "--deep", says="step 2: every byte")
    shutil.rmtree("r/checkpoints")
    _, err = train("r", 8, "--remote=far")
    check("at step 6," in err, f"goes on from the remote store: {err[-300:]}")
    check(steps("far")[0] == 8, f"remote: {steps('far')}")
    train("whole", 8)
    train("again", 8)
    ckpt("diff", "whole", "again", code=1, says="1 tensors differ")  # state/progress holds seconds
    ckpt("export", "far", "far.bin")
    ckpt("export", "whole", "whole.bin")
    with open("far.bin", "rb") as one, open("whole.bin", "rb") as two:
        check(one.read() == two.read(), "a run that lost its disk is another run")
    ckpt("drain", "r", "--remote=far9", says="1 checkpoints uploaded")
    check(steps("far9") == [8], f"a second store gets what it lacks: {steps('far9')}")
    train("q", 2)
    ckpt("drain", "q", "--remote=far2", says="1 checkpoints uploaded")
    check(steps("far2") == [2], "drained by hand")
    flip(segment_of("q", 2), 20000)
    os.remove("q/checkpoints/manifest/marks.log")
    ckpt("drain", "q", "--remote=far3", code=CORRUPT, says="corrupt")
    _, err = train("whole", 9, "--remote=far", code=1)
    check("another run" in err, f"a store that holds another run: {err[-300:]}")


def test_damage():
    train_to("d", (2, 4), "--eval-every=0")
    check(steps("d") == [4, 2], f"two: {steps('d')}")
    flip(segment_of("d", 4), 20000)
    ckpt("verify", "d")
    ckpt("verify", "d", "--deep", code=CORRUPT, says="000000000004")
    _, err = train("d", 5, "--eval-every=0")
    check("step 4" in err and "at step 2," in err, f"falls back: {err[-500:]}")
    train_to("e", (2, 4), "--eval-every=0")
    with open(segment_of("e", 4), "r+b") as file:
        file.truncate(8192)
    ckpt("verify", "e@4", code=CORRUPT)
    check(run("sample", "e", "--tokens=5")[0] == 0, "samples from the one before")


def test_staging_elsewhere():
    train("t", 2, "--staging=fast")
    check(steps("t") == [2] == steps("fast") and os.path.isabs(os.readlink("t/checkpoints")), "the run leads to its staging folder")
    check(run("sample", "t", "--tokens=5")[0] == 0, "samples from there")
    ckpt("restore", "fast", "t", code=1, says="already")
    _, err = train("t", 4)
    check("at step 2," in err and steps("fast")[0] == 4, f"goes on there: {err[-300:]}")
    _, err = train("t", 6, "--staging=other", code=1)
    check(err.count("error: ") == 1 and "t/checkpoints holds" in err and steps("t")[0] == 4, f"another folder: {err[-300:]}")
    os.rename("fast", "moved")
    _, err = train("t", 6, code=1)
    check(err.count("error: ") == 1 and "which is not there" in err and not os.path.exists("fast"), f"gone: {err[-300:]}")
    _, err = train("t", 6, "--staging=moved")
    check("at step 4," in err and steps("t")[0] == 6, f"found again: {err[-300:]}")
    train("t", 2, "--staging=new", "--resume=never")
    check(steps("t") == [2] and steps("moved")[0] == 6, f"anew: {steps('t')}")
    train("v", 2)
    _, err = train("v", 2, "--staging=new2", "--resume=never")
    check(err.count("cannot be made a link") == 1 and steps("v") == [2] == steps("new2"), f"a folder in the way: {err[-300:]}")


def held(path, kind, action):
    """Does it while somebody holds this lock."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, kind)
        return action()


def size_of(folder):
    return sum(os.path.getsize(path) for path in glob.glob(f"{folder}/*/*"))


def test_gc():
    train_to("g", (2, 4, 6, 8), "--keep=4", "--eval-every=0")
    ckpt("pin", "g@2")
    before, here = size_of("g/checkpoints"), "g/checkpoints"
    ckpt("gc", "g", "--keep=1", "--dry-run", says=("step 6 (", "step 4 (", "would go"))
    check(steps("g") == [8, 6, 4, 2] and size_of(here) == before, f"a dry run changes nothing: {steps('g')}")
    writer = glob.glob(here + "/lock/writer.*")[0]
    held(writer, fcntl.LOCK_EX, lambda: ckpt("gc", "g", "--keep=1", code=1, says="a run writes checkpoints there"))
    check(steps("g") == [8, 6, 4, 2], f"while a run writes there: {steps('g')}")
    for name in ("gone.7.0.seg", "gone.7.1.seg"):  # of a writer whose manifest is no more
        shutil.copy(segment_of("g", 4), f"{here}/seg/{name}")
    lock = f"{here}/lock/000003.000000000006"
    held(lock, fcntl.LOCK_SH, lambda: ckpt("gc", "g", "--keep=1", says=("2 checkpoints", "1 files stay while")))
    check(steps("g") == [8, 2] and segment_of("g", 6) and not segment_of("g", 4), f"newest and pinned: {steps('g')}")
    ckpt("gc", "g", "--keep=1", says="0 checkpoints")
    check(len(glob.glob(here + "/seg/*")) == 2 and len(glob.glob(here + "/table/*")) == 2, f"files: {os.listdir(here + '/seg')}")
    ckpt("verify", "g", "--deep", says=("step 8: every byte", "step 2: every byte"))
    ckpt("unpin", "g@2")
    _, err = train("g", 9, "--eval-every=0")
    check("at step 8," in err, f"goes on after gc: {err[-300:]}")
    train_to("g", (10, 12), "--keep=3", "--eval-every=0")
    flip(segment_of("g", 12), 4096 * 3)
    with open(segment_of("g", 12), "r+b") as file:
        file.truncate(8192)  # corrupt: does not count, and goes
    ckpt("gc", "g", "--keep=1", says="corrupt")
    check(steps("g") == [10], f"the newest that is whole: {steps('g')}")
    ckpt("gc", "g@10", code=2)
    ckpt("gc", "nowhere", code=ABSENT)
    train_to("u", (2, 4), "--eval-every=0")
    ckpt("drain", "u", "--remote=far4")
    train_to("u", (6, 8), "--eval-every=0", "--keep=9")
    ckpt("gc", "u", "--keep=1", says="1 checkpoints" if steps("u") == [8, 6, 4] else "2 checkpoints")
    check(steps("u") == [8, 6], f"what was not uploaded stays: {steps('u')}")


def test_gc_store():
    train_to("s", (2,), "--remote=far5", "--eval-every=2", "--learning-rate=1e-3")
    train_to("s", (4, 6, 8, 10), "--remote=far5", "--eval-every=2", "--learning-rate=1", "--schedule=constant")  # worse
    with open("s/metrics.jsonl", encoding="utf-8") as file:
        best = min(map(json.loads, file), key=lambda line: line.get("val_loss") or 1e9)["step"]
    check(best in (2, 4), f"the best is an early one: {best}")
    check(steps("far5") == [10, 8, 6, 4, 2], f"remote: {steps('far5')}")
    shutil.copytree("far5/ckpt/000001.000000000002", "far5/ckpt/000001.000000000001")  # an incomplete one
    os.remove("far5/ckpt/000001.000000000001/COMMIT")
    for name, age in ((".77.1.aside", 5 * 86400), (".78.1.aside", 60)):
        path = f"far5/ckpt/000004.000000000008/{name}"
        with open(path, "w", encoding="utf-8") as file:
            os.utime(file.fileno(), (time.time() - age,) * 2)
    ckpt("pin", "far5@6", says="step 6 is pinned")
    check(" pinned" in next(line for line in ckpt("ls", "far5").split("\n") if " 6 " in line), "ls shows the pin")
    ckpt("gc", "far5", "--keep=2", "--dry-run", says="2 checkpoints")
    ckpt("unpin", "far5@6", says="not pinned in far5")
    ckpt("gc", "far5", "--keep=2", "--dry-run", says=("step 6 (", "step 1 (", "would go"))
    check(steps("far5") == [10, 8, 6, 4, 2], f"a dry run changes nothing: {steps('far5')}")
    ckpt("gc", "far5", "--keep=2", says=("3 checkpoints", "1 unfinished uploads"))
    check(steps("far5") == [10, 8, best] and os.path.exists(path), f"the newest two and the best: {steps('far5')}")
    ckpt("verify", "far5", "--deep", says="step 8: every byte")
    os.remove("far5/ckpt/000005.000000000010/COMMIT")
    os.remove("far5/ckpt/000005.000000000010/table")
    os.remove(glob.glob("far5/ckpt/000005.000000000010/*.seg")[0])
    ckpt("gc", "far5", "--keep=1", says="0 checkpoints")
    check(steps("far5") == [8, best], f"what is not whole does not count: {steps('far5')}")


def test_no_room():
    os.mkdir("small")
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", "small"],
                                           capture_output=True).returncode:
        print("ckpt_command: without root, too little room is not tried")
        return
    try:
        _, err = train("n", 4, "--staging=small", code=1)
        check(err.count("error: ") == 1 and "small: checkpoints need" in err and "free" in err, f"no room: {err[-300:]}")
        check(not os.path.exists("n/metrics.jsonl"), "no room: it trained all the same")
        for second, code, steps_done in (("small", 1, 0), ("roomy", 0, 4)):
            processes = []
            for rank, staging in enumerate(("roomy", second)):
                command = [lab.PROGRAM, *BASE, "--run=nn", "--steps=4", "--comm-timeout=20", f"--staging={staging}"]
                processes += lab.start(command, 2, only=rank)
            codes, outputs = lab.finish(processes)
            said = all("error: " in text and "small" in text and "free some space" in text for text in outputs)
            check(codes == [code, code] and (said or code == 0),
                  f"two ranks, the second in {second}: {codes} {[text[-300:] for text in outputs]}")
            check(len(lab.metrics("nn")) == steps_done, f"two ranks, the second in {second}: {len(lab.metrics('nn'))} steps")
    finally:
        subprocess.run(["umount", "small"], check=True)


if __name__ == "__main__":
    sys.exit(lab.main("ckpt_command", lab.make_tokens, test_look, test_copy, test_pin, test_remote, test_staging_elsewhere, test_damage,
                      test_gc, test_gc_store, test_no_room))
