#!/usr/bin/env python3
"""Several ranks on the CUDA kernels, run by the shim on the CPU with device memory out of the host's reach: two ranks train
as one does, by every backend; with --reduce=exact the same bits; a checkpoint of two ranks, read from the device, is
restored there by one and by two.

    python3 dev/test/cuda_ranks.py [BUILD]       (default: build; the programs are made by `make build-cuda-shim`)
"""
import json
import os
import random
import subprocess
import sys
import tempfile

from lab import check, report

BUILD = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build")
CPU, FP32, BF16, NCCL = (os.path.join(BUILD, p, "train_gpt2") for p in ("", "shim-fp32", "shim-bf16", "shim-nccl"))
BASE = ["train", "--train-data=tok_train_*.bin", "--layers=2", "--heads=2", "--channels=16", "--context=16",
        "--batch-size=2", "--total-batch=64", "--warmup=2", "--learning-rate=2e-3", "--schedule=constant"]
STEPS = 4
TOLERANCE_FP32, TOLERANCE_BF16 = 1e-5, 2e-3


def launch(program, ranks, *args, **environment):
    """Exit codes and the text of all ranks."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TOROID_", "SHIM_"))}
    env.update(SHIM_GUARD="1", OMP_NUM_THREADS="1", TOROID_JOB=f"{os.getpid()}", **environment)
    if ranks > 1:
        env["TOROID_SIZE"] = str(ranks)
    started = []
    for rank in range(ranks):
        if ranks > 1:
            env["TOROID_RANK"] = str(rank)
        started.append(subprocess.Popen([program, *args], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    texts = [p.communicate(timeout=200)[0] for p in started]
    return [p.returncode for p in started], "\n".join(texts)


def train(program, ranks, folder, steps, *more, **environment):
    """[(loss, norm)] of every step."""
    codes, text = launch(program, ranks, *BASE, f"--run={folder}", f"--steps={steps}", *more, **environment)
    if not check(not any(codes), f"{folder}: exit {codes}: {text[-800:]}"):
        return []
    with open(f"{folder}/metrics.jsonl") as f:
        rows = [json.loads(line) for line in f]
    return [(r["loss"], r["norm"]) for r in rows if "loss" in r]


def off(a, b):
    if len(a) != len(b) or not a:
        return float("inf")
    return max(abs(x - y) / abs(y) for row_a, row_b in zip(a, b) for x, y in zip(row_a, row_b))


def test_two_like_one(program, name, tolerance, backends):
    one = train(program, 1, f"{name}-1", STEPS)
    exact = train(program, 1, f"{name}-1e", STEPS, "--reduce=exact")
    for backend in backends:
        two = train(program, 2, f"{name}-{backend}", STEPS, f"--comm={backend}")
        check(off(two, one) <= tolerance, f"{name}, {backend}: off by {off(two, one):.2e}: {two}, not {one}")
        two = train(program, 2, f"{name}-{backend}-e", STEPS, f"--comm={backend}", "--reduce=exact")
        check(two == exact and len(two) == STEPS, f"{name}, {backend}, exact: {two}, not {exact}")
    two = train(program, 2, f"{name}-b", STEPS, f"--comm={backends[0]}", "--reduce=bf16", SHIM_ASYNC="1", SHIM_DEVICES="2")
    check(off(two, one) <= 2e-2, f"{name}, bf16 sums: off by {off(two, one):.2e}")


def test_restored(program, name, backend):
    """exact: so that any number of ranks goes on with the same bits."""
    more = ["--reduce=exact", f"--comm={backend}"]
    for policy in "lazy", "snapshot":
        for ranks in 1, 2:
            folder = f"{name}-{policy}-{ranks}"
            train(program, 2, folder, STEPS - 2, *more, f"--checkpoint-policy={policy}")
            resumed = train(program, ranks, folder, STEPS, *(more if ranks > 1 else more[:1]))
            with open(f"{name}-1e/metrics.jsonl") as f:
                rows = [json.loads(line) for line in f]
            whole = [(r["loss"], r["norm"]) for r in rows if "loss" in r]
            check(resumed == whole, f"{folder}: {resumed}, not {whole}")


def main():
    missing = [p for p in (CPU, FP32, BF16, NCCL) if not os.access(p, os.X_OK)]
    if missing:
        print(f"{missing[0]} is not built (make build-cuda-shim)")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        words = random.Random(1)
        with open("text.txt", "w") as f:
            for _ in range(200):
                f.write(" ".join(words.choice("the cat sat on a mat and ran to big red houses".split()) for _ in range(12)) + "\n")
        p = subprocess.run([CPU, "tokenize", "text.txt", "--output=tok"], capture_output=True, text=True)
        if not check(p.returncode == 0, f"tokenize: exit {p.returncode}: {p.stderr[-300:]}"):
            return 1
        test_two_like_one(FP32, "fp32", TOLERANCE_FP32, ["shm", "torus"])
        test_two_like_one(BF16, "bf16", TOLERANCE_BF16, ["shm"])
        test_two_like_one(NCCL, "nccl", TOLERANCE_FP32, ["nccl"])
        codes, text = launch(NCCL, 2, *BASE, "--run=", "--steps=1")
        check(not any(codes) and "comm        nccl, 2 ranks" in text, f"auto does not take nccl: {text[-500:]}")
        test_restored(FP32, "fp32", "shm")
        test_restored(BF16, "bf16", "shm")
        os.chdir("/")
    return report("cuda_ranks")


if __name__ == "__main__":
    sys.exit(main())
