#!/usr/bin/env python3
"""What a checkpoint at every step costs a real run: GPT-2 124M, first with one processor left free, then with none.

  dev/bench/bench_ckpt_steps.py [--steps=80] [--batch=4] [--sequence=64] [--folder=FOLDER] [--build=build]

A run with --checkpoint-every=2: what is saved after an even step is written beside the odd one that follows, and is done before
that ends (what was left out or waited for is printed). Each odd step is compared with the two even ones around it, so that both
see the same clocks and neighbours. A step's time is that between the lines of two steps: all that the loop does. The first eight,
which write new segments, are left out. With a processor free the sequence is half as long, which on two processors gives steps of
the same time. About 8 GB of disk; three minutes where a step takes a second. Prints every step, so that its output is the raw
record."""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEFT_OUT = 8


def make_tokens(path, count):
    """A token file as llm.c's, of 50,257 tokens: it does not matter which, but for the table of embeddings."""
    header = [20240520, 1, count] + 253 * [0]
    with open(path, "wb") as file:
        file.write(b"".join(n.to_bytes(4, "little") for n in header))
        file.write(b"".join((i * 2654435761 % 2**32 % 50257).to_bytes(2, "little") for i in range(count)))


def train(program, arguments, run, threads, sequence):
    """The seconds of its steps, by their numbers."""
    command = [program, "--preset=gpt2", "--train-data=tokens_train_*.bin", f"--batch-size={arguments.batch}",
               f"--sequence={sequence}", f"--threads={threads}", f"--run={run}", f"--steps={arguments.steps}",
               "--checkpoint-every=2", "--keep=1", "--log-every=1", "--schedule=constant", "--color=never"]
    print("$ " + " ".join(command), flush=True)
    ended = {}
    with open(f"{run}.err", "w+", encoding="utf-8") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                step = re.match(r"\s*(?:step\s+)?(\d+)/\d+", line)
                if step:
                    ended[int(step[1])] = time.monotonic()
        errors.seek(0)
        said = errors.read()
    if process.returncode != 0:
        sys.exit(f"{run}: exit {process.returncode}: {said[-500:]}")
    seconds = {n: ended[n] - ended[n - 1] for n in ended if n - 1 in ended}
    print("  ms " + " ".join(f"{1000 * s:.0f}" for s in seconds.values()))
    print("".join(f"  {line}\n" for line in said.split("\n") if re.match(r"checkpoints? .*(saved|left out)", line)), end="")
    return {n: s for n, s in seconds.items() if n > LEFT_OUT}


def compare(name, seconds):
    """Prints how much longer the odd steps took, which a checkpoint is written beside."""
    odd = [n for n in seconds if n % 2 and n - 1 in seconds and n + 1 in seconds]
    more = [100 * (2 * seconds[n] / (seconds[n - 1] + seconds[n + 1]) - 1) for n in odd]
    low, middle, high = statistics.quantiles(more, n=4)
    print(f"{name}: a step takes {1000 * statistics.median(s for n, s in seconds.items() if n % 2 == 0):.0f} ms; with a checkpoint "
          f"beside it {middle:+.2f}% (median of {len(more)}; quartiles {low:+.2f}%, {high:+.2f}%)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80, help="of each run, at least 16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=64)
    parser.add_argument("--folder", help="where the runs are made, and removed again")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    arguments = parser.parse_args()
    program = os.path.join(os.path.abspath(arguments.build), "train_gpt2")
    processors = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.chdir(folder)
        make_tokens("tokens_train_000000.bin", 300000)
        if processors > 1:
            compare("one processor free", train(program, arguments, "free", processors - 1, arguments.sequence // 2))
        compare("no processor free", train(program, arguments, "full", processors, arguments.sequence))
        os.chdir("/")


if __name__ == "__main__":
    main()
