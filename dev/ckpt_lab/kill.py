#!/usr/bin/env python3
"""kill.py: SIGKILLs a writer of checkpoints at random times, many times over on one folder, and checks after each what it
left: no checkpoint that the writer acknowledged may be lost, nothing that differs from what was saved may be accepted.

    kill.py [--kills=30] [--seed=1] [--longest=0.15] [--keep=2] --check 'COMMAND' --write 'COMMAND'

The writer prints a line "ack ATTEMPT STEP" for each checkpoint that it promises; the check prints "restorable ATTEMPT STEP"
for each that is there, and fails if something that it read is wrong. The driver beside this file does both; a trainer
needs a check of its own. Every line of other output of the check is shown when it fails."""
import argparse
import os
import random
import re
import select
import shlex
import signal
import subprocess
import sys
import time


def read_acks(pipe, until):
    """What the writer says until the time is over or it ends."""
    text = b""
    while (left := until - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            part = os.read(pipe.fileno(), 65536)
            if not part:
                break
            text += part
    return text


def ids(word, text):
    return [(int(a), int(s)) for a, s in re.findall(rf"^{word} (\d+) (\d+)$", text, re.M)]


def run_killed(command, seconds):
    """The acknowledgements of one writer, and whether it ended by itself, which it should not."""
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    text = read_acks(writer.stdout, time.monotonic() + seconds)
    ended = writer.poll() is not None
    try:
        os.killpg(writer.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    rest, errors = writer.communicate()
    return ids("ack", (text + rest).decode()), errors.decode() if ended else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=0.15, help="seconds until the latest kill")
    parser.add_argument("--keep", type=int, default=2, help="the writer's")
    parser.add_argument("--write", required=True)
    parser.add_argument("--check", required=True)
    options = parser.parse_args()
    write, check = shlex.split(options.write), shlex.split(options.check)
    rng = random.Random(options.seed)
    acknowledged, lost, bad, failed = [], 0, 0, 0
    for kill in range(options.kills):
        acks, errors = run_killed(write, rng.uniform(0, options.longest))
        acknowledged += acks
        if errors:
            failed += 1
            print(f"kill {kill}: the writer ended by itself: {errors.strip()}")
        result = subprocess.run(check, capture_output=True, text=True)
        if result.returncode != 0:
            bad += 1
            print(f"kill {kill}: the check failed: {result.stdout.strip()} {result.stderr.strip()}")
        there = ids("restorable", result.stdout)
        for ack in acknowledged:
            if ack not in there and sum(other > ack for other in there) < options.keep:
                lost += 1
                print(f"kill {kill}: {ack} is lost; there are {there}")
        del acknowledged[:-64]
        last = acknowledged[-1] if acknowledged else None
    print(f"{options.kills} kills, the last of the acknowledged checkpoints is {last}: lost {lost}, bad {bad}, "
          f"writers that failed {failed}")
    return 1 if lost or bad or failed or not acknowledged else 0


sys.exit(main())
