#!/usr/bin/env python3
"""test_netlab.py: the lab of network namespaces: hosts and wires are there, programs run on all of them, a wire that is
cut is cut, and nothing is left afterwards, also when what ran in it fails. Needs root; else it is skipped."""
import os
import subprocess
import sys

import lab
from lab import check

LAB = f"nt{os.getpid() % 100000}"


def netlab(*arguments, timeout=120):
    return subprocess.run(["dev/netlab/netlab.sh", *arguments], env={**os.environ, "NETLAB": LAB}, timeout=timeout,
                          capture_output=True, text=True)


def hosts():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.startswith(LAB)}


CONNECT = """
import socket, sys
s = socket.socket(); s.settimeout(2); s.bind((sys.argv[1], 0))
try: s.connect((sys.argv[2], 1))
except ConnectionRefusedError: print("reached")
except OSError: print("silence")
"""


def reached(host, here, there):
    r = subprocess.run(["ip", "netns", "exec", f"{LAB}{host}", sys.executable, "-c", CONNECT, here, there],
                       capture_output=True, text=True, timeout=30)
    return r.stdout.strip()


def main():
    up = netlab("up", "torus", "3x2", "50mbit")
    if up.returncode == 77:
        print(up.stderr.strip().splitlines()[-1] if up.stderr.strip() else "skipped")
        return 77
    check(up.returncode == 0, up.stderr)
    check(hosts() == {f"{LAB}{i}" for i in range(6)} | {f"{LAB}-control"}, f"namespaces: {hosts()}")
    check(netlab("up", "torus", "2", "50mbit").returncode == 1 and len(hosts()) == 7, "a second lab of that name")
    with open(netlab("topology").stdout.strip()) as f:
        topology = f.read()
    check(topology.startswith("torus 3x2 wrap 11\n") and topology.count("address") == 18, topology)
    addresses = {tuple(line.split()[1:3]): line.split()[3] for line in topology.splitlines() if "address" in line}
    here, there = addresses["1,1", "+x"], addresses["2,1", "-x"]
    check(reached(4, here, there) == "reached", "neighbours reach each other")
    check(reached(4, "10.99.0.5", "10.99.0.1") == "reached", "others are reached over the wires")
    for way, place in (("+x", "1,1"), ("-x", "2,1")):
        check(netlab("link", place, way, "down").returncode == 0 and reached(4, here, there) == "silence", "cut")
        with open(netlab("topology", "now").stdout.strip()) as f:
            check(f.read() == topology + f"link {place} {way} down\n", "the topology as it is now")
        check(netlab("link", "1,1", "+x", "up").returncode == 0 and reached(4, here, there) == "reached", "mended")
    for bad in (("0,2", "+x", "up"), ("0", "+x", "up"), ("0,0", "+z", "up"), ("0,0", "+x", "fast")):
        check(netlab("link", *bad).returncode == 1, f"link {bad}")
    ran = netlab("run", "hostname")
    if ran.returncode != 77:
        check(sorted(ran.stdout.split()) == [f"{LAB}{i}" for i in range(6)], ran.stdout + ran.stderr)
    check(netlab("down").returncode == 0 and not hosts() and netlab("down").returncode == 0, "down")
    for bad in (("torus", "9x9", "1mbit"), ("torus", "2x", "1mbit"), ("clos", "0", "1mbit"), ("torus", "2x2", "1")):
        check(netlab("up", *bad).returncode == 1 and not hosts(), f"up {bad}")
    ran = netlab("with", "clos", "2", "50mbit", "sh", "-c", "hostname; exit 3")
    check(ran.returncode in (3, 77) and not hosts(), f"with: {ran.returncode}, {hosts()}")
    return lab.report("netlab")


code = 1
try:
    code = main()
finally:
    if code != 77:
        netlab("down")
sys.exit(code)
