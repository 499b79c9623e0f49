#!/usr/bin/env python3
"""test_drain_s3.py: the drain against a real S3 server through a proxy that breaks things: killed (SIGKILL) anywhere, over
and over, in storms of 503s, resets and lost answers: in the end the store holds every checkpoint, all of it reads as it was
written, no upload is left open, and at no moment was a checkpoint complete there that could not be read."""
import os
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import s3_server  # noqa: E402
from test_store_s3 import BUILD, Lab, TOOL, check, main  # noqa: E402

DRAIN = os.path.join(BUILD, "test", "drain_tool")
SEED = "11"


class DrainLab(Lab):
    def __init__(self, server, folder):
        super().__init__(server, folder)
        self.proxy = s3_server.Proxy(server.port)

    def close(self):
        self.proxy.close()

    def drain_env(self, **extra):
        return self.env(self.proxy.url, STORE_TIMEOUT="2", STORE_BACKOFF="0.01", **extra)

    def run(self, *args, code=0, **extra):
        p = subprocess.run([DRAIN, *map(str, args)], env=self.drain_env(**extra), capture_output=True, text=True, timeout=120)
        check(p.returncode == code, f"{args}: exit {p.returncode}: {p.stdout} {p.stderr}")
        return p.stdout

    def check_all(self, place, steps):
        """Everything that is complete in the store can be read, and all of `steps` is."""
        listed = [line.split() for line in self.run("list", place).splitlines()]
        complete = {line[0]: line[1] for line in listed if line[2] == "1"}
        check(all(state == "restorable" for state in complete.values()), f"complete, but not restorable: {listed}")
        for step in steps:
            check(f"1.{step}" in complete, f"step {step} is missing: {listed}")
            self.run("check", place, SEED, 1, step)
        return complete


def test_plain(lab):
    place, folder = lab.place + "/plain", lab.path("plain")
    lab.run("save", folder, SEED, 1, 1, 3)
    lab.run("drain", folder, place, 60)
    lab.check_all(place, [1, 2, 3])
    lab.run("save", folder, SEED, 2, 4, 6)
    lab.run("drain", folder, place, 60, 2)
    listed = lab.run("list", place).split("\n")
    check([line.split()[0] for line in listed if line] == ["2.6", "2.5"], f"keep 2: {listed}")
    lab.run("check", place, SEED, 2, 6)


def test_killed(lab):
    place, folder = lab.place + "/killed", lab.path("killed")
    lab.run("save", folder, SEED, 1, 1, 3)
    kills = 0
    for attempt in range(60):
        lab.proxy.plan = s3_server.storm(lab.rng.random(), 0.15, ["503", "reset", "lost", "500", "early"])
        p = subprocess.Popen([DRAIN, "drain", folder, place, "60"], env=lab.drain_env(STORE_RATE="20000000"),
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if attempt < 10:
            try:
                p.wait(lab.rng.uniform(0.05, 0.5))
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGKILL)
                kills += 1
        said = p.communicate(timeout=120)[0]
        lab.proxy.plan = None
        if attempt % 3 == 0:
            lab.check_all(place, [])
        if p.returncode == 0:
            break
        check(p.returncode == -signal.SIGKILL, f"exit {p.returncode}: {said}")
    print(f"killed {kills} times")
    check(kills > 0, "never killed")
    complete = lab.check_all(place, [1, 2, 3])
    check(len(complete) == 3, f"{complete}")
    p = lab.tool("orphans", "", 0, place=place)
    check(p.stdout.strip() == "0", f"uploads are left open: {p.stdout}")
    left = os.listdir(os.path.join(folder, "upload"))
    check(not left, f"files of uploads are left: {left}")


def test_down(lab):
    """The store says 503 to everything: the drain reports it, nothing is lost; then it comes back."""
    place, folder = lab.place + "/down", lab.path("down")
    lab.run("save", folder, SEED, 1, 1, 2)
    lab.proxy.plan = lambda r: "503"
    said = lab.run("drain", folder, place, 1, code=1, STORE_ATTEMPTS="2")
    check("behind 2" in said and "503" in said, said)
    lab.run("save", folder, SEED, 2, 3, 3)  # saves go on
    lab.proxy.plan = None
    lab.run("drain", folder, place, 60)
    lab.check_all(place, [1, 2])
    lab.run("check", place, SEED, 2, 3)


if __name__ == "__main__":
    sys.exit(main([TOOL, DRAIN], DrainLab, (test_plain, test_killed, test_down)))
