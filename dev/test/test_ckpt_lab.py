#!/usr/bin/env python3
"""test_ckpt_lab.py: the crash tests of the checkpoint store on real files, in short: a writer that is killed 30 times, with
io_uring and with pwrite, and power cuts of a real ext4 (root, FUSE, loop devices; else only that part is skipped). The long
ones: dev/ckpt_lab/long.sh."""
import os
import subprocess
import sys
import tempfile

BUILD = os.environ.get("BUILD", "build")
DRIVER = f"{BUILD}/ckpt_lab/driver"
failures = 0


def run(name, command):
    global failures
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "BUILD": BUILD})
    said = (result.stdout + result.stderr).strip()
    print(f"{name}: {said}")
    if result.returncode not in (0, 77):
        failures += 1
    return result.returncode


if not os.path.exists(DRIVER):
    subprocess.run(["make", "-s", f"BUILD={BUILD}", DRIVER], check=True)
with tempfile.TemporaryDirectory() as folder:
    for kind in ("uring", "plain"):
        place = f"{folder}/{kind}"
        if kind == "uring" and subprocess.run([DRIVER, "write", place, "--io=uring", "--checkpoints=1"],
                                              capture_output=True).returncode:
            print("uring: skipped, io_uring cannot be used here")
            continue
        run(kind, [sys.executable, "dev/ckpt_lab/kill.py", "--kills=30", "--longest=0.2",
                   "--write", f"{DRIVER} write {place} --io={kind}", "--check", f"{DRIVER} check {place}"])
run("ext4", ["dev/ckpt_lab/ext4.sh", "60", "7"])
sys.exit(1 if failures else 0)
