#!/usr/bin/env python3
"""A training step of GPT-2 124M: ours and PyTorch's (eager and compiled), interleaved, as ratios of medians.

  dev/bench/bench_step_peers.py [--T 64,256] [--precision fp32,bf16] [--rounds 3] [--steps 4] [--other 'T=256:COMMAND']

A round runs every contender once, in turn, so that all see the same clocks and neighbours; the medians are over all
steps of all rounds. --other adds a program that prints its steps as "... 1234.5 ms" (such as another trainer), for one
T, as fp32. Ratio > 1: ours is faster. Prints every step, so that its output is the raw record.
"""
import argparse
import re
import statistics
import subprocess
import sys


def times_of(command):
    print("$ " + " ".join(command), flush=True)
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(text, flush=True)
    return ([float(ms) for ms in re.findall(r"^step .*?([\d.]+) ms", text, re.M)],
            [float(mfu) for mfu in re.findall(r"^step .*mfu ([\d.]+)%", text, re.M)],
            [float(gb) for gb in re.findall(r"peak memory ([\d.]+) GB", text)])


def contenders(arguments, T, precision):
    ours = [arguments.bench, "--B=4", f"--T={T}", f"--precision={precision}", f"--steps={arguments.steps}"]
    torch = [sys.executable, "dev/bench/bench_step_torch.py", "--T", str(T), "--precision", precision, "--steps",
             str(arguments.steps)]
    yield "ours", ours
    yield "torch eager", torch
    yield "torch compile", torch + ["--compile"]
    for other in arguments.other:
        at, _, command = other.partition(":")
        if at == f"T={T}" and precision == "fp32":
            yield "other", command.split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--T", default="64,256")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--other", action="append", default=[])
    parser.add_argument("--bench", default="build/bench/bench_step")
    arguments = parser.parse_args()
    ms, mfu, memory = {}, {}, {}
    cases = [(int(T), precision) for T in arguments.T.split(",") for precision in arguments.precision.split(",")]
    for _ in range(arguments.rounds):
        for T, precision in cases:
            for name, command in contenders(arguments, T, precision):
                key = (T, precision, name)
                steps, shares, peaks = times_of(command)
                ms.setdefault(key, []).extend(steps)
                mfu.setdefault(key, []).extend(shares)
                memory.setdefault(key, []).extend(peaks)
    print(f"{'B,T':8s}{'precision':10s}{'who':15s}{'median ms':>10s}{'tok/s':>8s}{'mfu':>7s}{'GB':>6s}{'ours is':>9s}")
    for (T, precision, name), steps in ms.items():
        key, median = (T, precision, name), statistics.median(steps)
        ours = statistics.median(ms[T, precision, "ours"])
        share = f"{statistics.median(mfu[key]):.1f}%" if mfu[key] else ""
        peak = f"{max(memory[key]):.2f}" if memory[key] else ""
        ratio = "" if name == "ours" else f"{median / ours:.2f}x"
        print(f"{f'4,{T}':8s}{precision:10s}{name:15s}{median:10.1f}{4000 * T / median:8.1f}{share:>7s}{peak:>6s}{ratio:>9s}")


if __name__ == "__main__":
    main()
