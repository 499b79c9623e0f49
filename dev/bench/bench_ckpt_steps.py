#!/usr/bin/env python3
"""What a checkpoint at every step costs a real run: GPT-2 124M, trained with and without --checkpoint-every=1, in turns.

  dev/bench/bench_ckpt_steps.py [--rounds=4] [--steps=12] [--batch=4] [--sequence=64] [--folder=FOLDER] [--build=build]

Each round goes on with both runs for `steps` steps, first without, then with checkpoints, so that both see the same clocks and
neighbours. A step's time is that between the lines of two steps: all that the loop does. The first four of a round, which write
new segments or follow a restart, are left out. About 16 GB of disk; three minutes where a step takes a second. Prints every
step, so that its output is the raw record."""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEFT_OUT = 4


def make_tokens(path, count):
    """A token file as llm.c's, of 50,257 tokens: it does not matter which, but for the table of embeddings."""
    header = [20240520, 1, count] + 253 * [0]
    with open(path, "wb") as file:
        file.write(b"".join(n.to_bytes(4, "little") for n in header))
        file.write(b"".join((i * 2654435761 % 2**32 % 50257).to_bytes(2, "little") for i in range(count)))


def go_on(program, arguments, run, end, *more):
    """The seconds of its steps."""
    command = [program, "--preset=gpt2", "--train-data=tokens_train_*.bin", f"--batch-size={arguments.batch}",
               f"--sequence={arguments.sequence}", f"--run={run}", f"--steps={end}", "--keep=1", "--log-every=1",
               "--schedule=constant", "--color=never", *more]
    print("$ " + " ".join(command), flush=True)
    seconds, before = [], None
    with open(f"{run}.err", "w+", encoding="utf-8") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                now = time.monotonic()
                if not re.match(r"\s*(step\s+)?\d+/\d+", line):
                    continue
                if before is not None:
                    seconds.append(now - before)
                before = now
        errors.seek(0)
        said = errors.read()
    if process.returncode != 0:
        sys.exit(f"{run}: exit {process.returncode}: {said[-500:]}")
    print("  ms " + " ".join(f"{1000 * s:.0f}" for s in seconds))
    print("".join(f"  {line}\n" for line in said.split("\n") if re.match(r"checkpoints? .*(saved|left out)", line)), end="", flush=True)
    return seconds[LEFT_OUT - 1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="of a round, more than five")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=64)
    parser.add_argument("--folder", help="where the runs are made, and removed again")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    arguments = parser.parse_args()
    program = os.path.join(os.path.abspath(arguments.build), "train_gpt2")
    without, with_ckpt, ratios = [], [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.chdir(folder)
        make_tokens("tokens_train_000000.bin", 300000)
        for i in range(arguments.rounds):
            end = (i + 1) * arguments.steps
            a = go_on(program, arguments, "without", end)
            b = go_on(program, arguments, "with", end, "--checkpoint-every=1")
            without, with_ckpt = without + a, with_ckpt + b
            ratios.append(statistics.median(b) / statistics.median(a))
        os.chdir("/")
    a, b = statistics.median(without), statistics.median(with_ckpt)
    print(f"a step takes {1000 * a:.1f} ms without and {1000 * b:.1f} ms with a checkpoint in each (medians of {len(without)}): "
          f"{100 * (b / a - 1):+.2f}%; round by round {', '.join(f'{100 * (r - 1):+.2f}%' for r in ratios)}")


if __name__ == "__main__":
    main()
