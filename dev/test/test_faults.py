#!/usr/bin/env python3
"""test_faults.py: a few rounds of dev/netlab/faults.py on this host: a rank killed, stopped, in another operation, or
killed while another is busy, over each backend."""
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, os.environ.get("BUILD", "build"), "train_gpt2")
# what a busy machine may add: times are not what is tested here
SLACK = "--slack=20"


def faults(*arguments):
    r = subprocess.run([sys.executable, os.path.join(ROOT, "dev/netlab/faults.py"), "--local", "--ranks=3", SLACK,
                        "--timeout=3", f"--program={PROGRAM}", *arguments], capture_output=True, text=True, timeout=500)
    return r.returncode, r.stdout + r.stderr


def main():
    failed = 0
    for backend in ("shm", "torus", *(["mpi"] if shutil.which("mpirun") else [])):
        for fault in ("kill", "stop", "mismatch", "busy"):
            if (backend, fault) in (("mpi", "busy"), ("torus", "stop"), ("shm", "mismatch")):
                continue  # the same as elsewhere
            code, output = faults("1", "3", f"--backends={backend}", f"--faults={fault}")
            print(output.splitlines()[0] if output else "nothing was printed")
            if code != 0 or ", good" not in output:
                failed += 1
                print(output)
    print(f"faults: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
