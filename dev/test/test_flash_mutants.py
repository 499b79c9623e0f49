#!/usr/bin/env python3
"""test_flash_mutants.py: would the attention test see a missing barrier? Takes each barrier, each wait and each end of a
group of asynchronous copies out of llmc/cuda/attention*.cuh, one at a time, and loosens each wait and each mask; builds
test_cuda_attention on the shim, and demands that it fails. The kernels as they are must pass.

What held for the same files is remembered in BUILD/flash-mutants. Exit 77: there is no C++ compiler."""
import concurrent.futures
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

HEADERS = sorted(glob.glob("llmc/cuda/attention*.cuh"))
FLAGS = ["-std=c++17", "-O1", "-w", "-DFLOATX_BF16", "-Illmc", "-Idev/test", "-Idev/cuda_shim"]
TEST = "dev/test/test_cuda_attention.cu"
TIMEOUT_S = 120

# What is looked for, and what is put in its place: NAME, regular expression, replacement.
KINDS = [
    ("without the barrier", r"__syncthreads\(\);", ";"),
    ("without the barrier of the warp", r"__syncwarp\(\);", ";"),
    ("without the wait", r"copy_async_wait<0>\(\);", ";"),
    ("waiting for one group less", r"copy_async_wait<0>\(\);", "copy_async_wait<1>();"),
    ("without the end of the group", r"copy_async_commit\(\);", ";"),
    ("a key too far", r"\(unsigned\)\(query - key\) < \(unsigned\)window", "(unsigned)(query - key) <= (unsigned)window"),
    ("masks a tile too late", r"return k1 <= q0 && k0 > q1 - window;", "return k1 <= q0 + 31 && k0 > q1 - window;"),
    ("masks the window a tile too late", r"return k1 <= q0 && k0 > q1 - window;", "return k1 <= q0 && k0 > q1 - window - 40;"),
    ("skips a tile too early", r"return k0 <= q1 && k1 > q0 - window;", "return k0 <= q0 && k1 > q0 - window;"),
    ("a row too many", r"first \+ row \+ i \* STEP < T\)", "first + row + i * STEP <= T)"),
    ("follows the maximum of one lane", r"quad_max\(top\[i\]\[r\]\)", "top[i][r]"),
    ("does not scale what it has", r"rows\.sum\[i\]\[r\] \*= factor;", ";"),
]


def mutants():
    """(name, header, text) of each mutant."""
    for header in HEADERS:
        text = open(header, encoding="utf-8").read()
        for name, pattern, replacement in KINDS:
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                mutant = text[: match.start()] + replacement + text[match.end() :]
                yield f"{header}:{line} {name}", header, mutant


def compiler():
    for candidate in (os.environ.get("CXX"), "g++", "clang++"):
        if candidate and shutil.which(candidate):
            return candidate
    return None


def build_objects(cxx, folder):
    """What does not change: the shim and the rest of the test program."""
    jobs, objects = [], []
    for source in sorted(glob.glob("dev/cuda_shim/*.cpp")) + ["dev/test/cuda_test.cu", "llmc/base/rng.c"]:
        objects.append(os.path.join(folder, os.path.basename(source) + ".o"))
        language = "c" if source.endswith(".c") else "c++"
        flags = [f for f in FLAGS if language == "c++" or not f.startswith("-std")]
        jobs.append(subprocess.Popen([cxx.replace("++", "cc") if cxx == "g++" and language == "c" else cxx]
                                     + flags + ["-x", language, "-c", source, "-o", objects[-1]]))
    if any(job.wait() for job in jobs):
        sys.exit("the shim does not build")
    return objects


def run(cxx, folder, objects, number, header=None, text=None):
    """Does the test pass? Also what it said last."""
    include = os.path.join(folder, f"m{number}")
    program = os.path.join(include, "test")
    os.makedirs(os.path.join(include, "cuda"))
    if header:
        with open(os.path.join(include, "cuda", os.path.basename(header)), "w", encoding="utf-8") as file:
            file.write(text)
    build = subprocess.run([cxx, "-I" + include] + FLAGS + ["-x", "c++", TEST, "-x", "none"] + objects + ["-o", program],
                           capture_output=True, text=True, check=False)
    if build.returncode:
        sys.exit(f"does not build:\n{build.stderr[-2000:]}")
    try:
        done = subprocess.run([program, "quick"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False, "ran for ever"
    shutil.rmtree(include)
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode == 0, said[-1] if said else ""


def digest(cxx):
    sources = HEADERS + sorted(filter(os.path.isfile, glob.glob("dev/cuda_shim/*") + glob.glob("dev/test/cuda_test.*")))
    sources += [TEST, "dev/test/naive.h", "dev/test/test.h", "llmc/cuda/gpu.h", __file__]
    total = hashlib.sha256(subprocess.run([cxx, "--version"], capture_output=True, check=True).stdout)
    for source in sources:
        total.update(open(source, "rb").read())
    return total.hexdigest()


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    cxx = compiler()
    if not cxx:
        print("no C++ compiler")
        return 77
    record = os.path.join(os.environ.get("BUILD", "build"), "flash-mutants")
    now = digest(cxx)
    if os.path.exists(record) and open(record, encoding="utf-8").read() == now:
        print("flash mutants: as they were when this was last run")
        return 0
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = build_objects(cxx, folder)
        todo = list(mutants())
        passes = pool.submit(run, cxx, folder, objects, 0)
        jobs = [pool.submit(run, cxx, folder, objects, i + 1, header, text) for i, (_, header, text) in enumerate(todo)]
        ok, said = passes.result()
        if not ok:
            print(f"the kernels as they are fail: {said}")
            return 1
        survivors = 0
        for (name, _, _), job in zip(todo, jobs):
            passed, said = job.result()
            survivors += passed
            print(f"{'SURVIVED' if passed else 'found   '} {name}{'' if passed else ': ' + said[:100]}")
    missing = [name for name, _, _ in KINDS if not any(name in mutant for mutant, _, _ in todo)]
    for name in missing:
        print(f"no place for: {name}")
    print(f"flash mutants: {len(todo)} mutants, {survivors} survived")
    if survivors or missing or len(todo) < 30:
        return 1
    os.makedirs(os.path.dirname(record), exist_ok=True)
    with open(record, "w", encoding="utf-8") as file:
        file.write(now)
    return 0


if __name__ == "__main__":
    sys.exit(main())
