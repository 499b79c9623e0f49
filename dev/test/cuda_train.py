#!/usr/bin/env python3
"""The whole trainer on the CUDA kernels, run by the shim on the CPU: the losses of the CPU's kernels to rounding; the same
bits in any order of threads, with work done as late as possible and device memory out of the host's reach; a resumed run
equals one that never stopped, also where parameters are bf16.

    python3 dev/test/cuda_train.py [BUILD]       (default: build; the programs are made by `make build-cuda-shim`)
"""
import json
import os
import random
import re
import subprocess
import sys
import tempfile

from lab import check, report

BUILD = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build")
CPU, FP32, BF16 = (os.path.join(BUILD, p) for p in ("train_gpt2", "shim-fp32/train_gpt2", "shim-bf16/train_gpt2"))
# 3 heads of 8; 3 x 33 = 99 rows of a batch; a window; two batches a step.
BASE = ["train", "--train-data=tok_train_*.bin", "--val-data=tok_val_*.bin", "--layers=2", "--heads=3", "--channels=24",
        "--context=33", "--window=20", "--batch-size=3", "--total-batch=198", "--warmup=3", "--learning-rate=2e-3",
        "--eval-every=10", "--eval-batches=2"]
# What a run of 20 steps (of 6, the short ones) has to agree in.
TOLERANCE_FP32, TOLERANCE_BF16 = 1e-5, 5e-3


def run(program, *args, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TOROID_", "SHIM_"))}
    p = subprocess.run([program, *args], capture_output=True, env={**env, **environment}, timeout=300)
    return p.returncode, p.stdout.decode("utf-8", "replace") + p.stderr.decode("utf-8", "replace")


def train(program, folder, steps, *more, expect=0, **environment):
    """[(loss, norm)] of every step, as they were written."""
    code, text = run(program, *BASE, f"--run={folder}", f"--steps={steps}", *more, **environment)
    check(code == expect, f"{folder}: exit {code}: {text[-500:]}")
    losses = {}
    with open(f"{folder}/metrics.jsonl") as f:
        for line in f:
            row = json.loads(line)
            if "loss" in row:
                losses[row["step"]] = (row["loss"], row["norm"])
    return [losses[s] for s in sorted(losses)]


def worst(a, b):
    if len(a) != len(b) or not a:
        return float("inf")
    return max(abs(x - y) / abs(y) for row_a, row_b in zip(a, b) for x, y in zip(row_a, row_b))


def test_against_cpu():
    cpu, cuda = train(CPU, "cpu", 20), train(FP32, "cuda", 20)
    check(len(cuda) == 20, f"{len(cuda)} steps")
    off = worst(cuda, cpu)
    check(off <= TOLERANCE_FP32, f"fp32: off by {off:.2e}: {list(zip(cuda, cpu))}")
    print(f"fp32: 20 steps within {off:.1e} of the CPU's losses and norms, {cpu[0][0]:.4f} to {cpu[-1][0]:.4f}")


def test_same_bits():
    """A short run, and what must not change it."""
    plain = train(FP32, "plain", 6)
    for name, environment in {
        "reverse": {"SHIM_ORDER": "reverse"},
        "random": {"SHIM_ORDER": "random:5", "SHIM_SMS": "7"},
        "late": {"SHIM_ASYNC": "1"},
    }.items():
        check(train(FP32, name, 6, **environment) == plain, f"{name}: other losses")
    # Training itself keeps to device_read and device_write; nothing is saved.
    code, text = run(FP32, *BASE, "--run=", "--steps=6", SHIM_GUARD="1")
    shown = re.findall(r"step +\d+/6 .*?loss ([0-9.]+)", text)
    check(code == 0, f"guarded: exit {code}: {text[-500:]}")
    check(shown == [f"{loss:.4f}" for loss, _ in plain], f"guarded: {shown}, not {plain}")


def test_bf16():
    cpu, whole = train(CPU, "cpu6", 6), train(BF16, "bf16", 6)
    off = worst([(loss,) for loss, _ in whole], [(loss,) for loss, _ in cpu])
    check(0 < off <= TOLERANCE_BF16, f"bf16: off by {off:.2e}")
    print(f"bf16: 6 steps within {off:.1e} of the CPU's losses")
    check(train(BF16, "bf16r", 6, SHIM_ORDER="random:9") == whole, "bf16, random: other losses")
    # A schedule that does not know how many steps there will be.
    straight = train(BF16, "straight", 6, "--schedule=constant")
    train(BF16, "halves", 3, "--schedule=constant")
    resumed = train(BF16, "halves", 6, "--schedule=constant")
    check(resumed == straight, f"bf16: a resumed run differs: {resumed}, not {straight}")


def waits(batches, steps):
    """How often the host waited for the device in all, and for events, in a run of so many batches a step."""
    code, text = run(FP32, *BASE, "--run=", f"--steps={steps}", f"--total-batch={99 * batches}", "--eval-every=0",
                     "--val-data=", SHIM_STATS="1")
    found = re.search(r"(\d+) waits, (\d+) waits for events", text)
    check(code == 0 and found, f"waits: exit {code}: {text[-300:]}")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def test_waits():
    """A step waits for the device where it needs the norm (a copy, and the stream it is in), and not for its batches: their
    losses and places are waited for by events, when the next batch has been launched."""
    for batches in 1, 4:
        few, more = waits(batches, 2), waits(batches, 4)
        streams, events = (more[0] - few[0]) / 2, (more[1] - few[1]) / 2
        check(streams <= 2, f"{batches} batches: {streams} waits a step")
        check(0 < events <= 2 * batches, f"{batches} batches: {events} waits for events a step")
        print(f"{batches} batches a step: {streams:g} waits, {events:g} for events")


def test_sample():
    for program in FP32, CPU:
        code, text = run(program, "sample", "cuda", "--tokens=20", "--seed=3")
        check(code == 0, f"{program} sample: exit {code}: {text[-300:]}")


def main():
    missing = [p for p in (CPU, FP32, BF16) if not os.access(p, os.X_OK)]
    if missing:
        print(f"{missing[0]} is not built (make build-cuda-shim)")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        words = random.Random(1)
        with open("text.txt", "w") as f:
            for _ in range(400):
                f.write(" ".join(words.choice("the cat sat on a mat and ran to big red houses".split()) for _ in range(12)) + "\n")
        code, text = run(CPU, "tokenize", "text.txt", "--output=tok")
        if not check(code == 0, f"tokenize: exit {code}: {text[-300:]}"):
            return 1
        test_against_cpu()
        test_same_bits()
        test_bf16()
        test_waits()
        test_sample()
        os.chdir("/")
    return report("cuda_train")


if __name__ == "__main__":
    sys.exit(main())
