#!/usr/bin/env python3
"""test_cuda_build.py: builds the GPU programs where nvcc and cuBLASLt are, for every architecture: nothing spills, registers
and shared memory are as dev/cuda_registers.txt says, the program is small, and without a GPU it says so in one line.
Exit 77: this machine cannot build them."""
import os
import re
import subprocess
import sys

import lab
from lab import check

PROGRAM_BYTES_MAX = 6 << 20
BUILD = os.environ.get("BUILD", "build")


def run(*command, **environment):
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def check_probe():
    """What is where CUDA_HOME says is not looked for elsewhere; nothing at all is one line, and no variables."""
    nothing = run("dev/probe.sh", "false", "cuda", NVCC="/nonexistent", CUDA_HOME="/nonexistent")
    check(nothing.stderr.count("\n") == 1, f"the probe says more than a line: {nothing.stderr}")
    check("cuBLASLt" in nothing.stderr or "nvcc not found" in nothing.stderr, f"the probe says: {nothing.stderr}")
    check("CUBLASLT_LIBS" not in nothing.stdout, "a library that cannot be linked was found")


def check_registers():
    """The committed table is of one version of ptxas."""
    build = run("make", f"BUILD={BUILD}", "cuda_registers")
    table = open("dev/cuda_registers.txt", encoding="utf-8").read()
    version = re.search(r"as ptxas ([\d.]+)", table)
    check(version, "dev/cuda_registers.txt does not name its ptxas")
    here = re.search(r"NVCC_VERSION := ([\d.]+)", open(f"{BUILD}/cuda.mk", encoding="utf-8").read())
    if version and here and version[1] == here[1]:
        check(build.returncode == 0, f"registers:\n{build.stdout[-3000:]}{build.stderr[-500:]}")
    else:
        print("another ptxas than that of the table: registers are not compared")
        check("spills" not in build.stdout, f"registers:\n{build.stdout[-3000:]}")


def main():
    os.chdir(lab.ROOT)
    probe = run("dev/probe.sh", "gcc", "cuda")
    if "CUBLASLT_LIBS" not in probe.stdout:
        print("no nvcc and cuBLASLt here:", probe.stderr.strip())
        return 77
    check_probe()
    programs = [f"{BUILD}/train_gpt2cu", f"{BUILD}/test_gpt2cu"]
    build = run("make", f"-j{os.cpu_count()}", f"BUILD={BUILD}", *programs)
    check(build.returncode == 0, f"the build fails:\n{build.stdout[-3000:]}{build.stderr[-3000:]}")
    if build.returncode:
        return 1
    for program in programs:
        check(os.path.getsize(program) <= PROGRAM_BYTES_MAX, f"{program}: {os.path.getsize(program)} bytes")
    check_registers()
    alone = run(programs[1], CUDA_VISIBLE_DEVICES="")
    check(alone.returncode == 2 and alone.stderr.startswith("error: GPU: ") and alone.stderr.count("\n") == 1,
          f"without a GPU: exit {alone.returncode}: {alone.stderr}")
    return lab.report("cuda build")


if __name__ == "__main__":
    sys.exit(main())
