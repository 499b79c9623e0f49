#!/usr/bin/env python3
"""Saving a checkpoint, beside PyTorch: torch.save + fsync, and torch.distributed.checkpoint's save and async_save, of the
same bytes on the same disk, one after the other in each round.

    make benches && python3 dev/bench/bench_ckpt_peers.py [layers] [rounds] [folder]     (12 3 build/bench_ckpt)

Prints what a round measured, and the ratios of medians. Needs torch (pip install torch==2.13.0).
"""
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

LAYERS = int(sys.argv[1]) if len(sys.argv) > 1 else 12
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 3
FOLDER = os.path.abspath(sys.argv[3] if len(sys.argv) > 3 else "build/bench_ckpt")
BENCH = os.path.join(os.environ.get("BUILD", "build"), "bench", "bench_ckpt")
CHANNELS = 768
SIZES = [50304 * CHANNELS, 1024 * CHANNELS, CHANNELS, CHANNELS] + LAYERS * [
    CHANNELS, CHANNELS, 3 * CHANNELS**2, 3 * CHANNELS, CHANNELS**2, CHANNELS, CHANNELS, CHANNELS, 4 * CHANNELS**2, 4 * CHANNELS,
    4 * CHANNELS**2, CHANNELS]


def ours():
    out = subprocess.run([BENCH, f"--layers={LAYERS}", f"--directory={FOLDER}", "--rounds=1", "--steps=10"],
                         capture_output=True, text=True, check=True).stdout
    stall = re.search(r"waits ([\d.]+) ms \(median\), ([\d.]+) ms \(p99\)", out)
    return {"save": float(re.search(r"save +([\d.]+)", out)[1]), "stall": float(stall[1]) / 1e3, "stall p99": float(stall[2]) / 1e3}


def torch_save(state):
    path = os.path.join(FOLDER, "torch.pt")
    if os.path.exists(path):
        os.remove(path)
    start = time.perf_counter()
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def dcp_save(state):
    path = os.path.join(FOLDER, "dcp")
    shutil.rmtree(path, ignore_errors=True)
    start = time.perf_counter()
    dcp.save(state, checkpoint_id=path)
    return time.perf_counter() - start


def dcp_async(state):
    """How long the caller waits, and how long until it is all written."""
    path = os.path.join(FOLDER, "dcp_async")
    shutil.rmtree(path, ignore_errors=True)
    start = time.perf_counter()
    future = dcp.async_save(state, checkpoint_id=path)
    stall = time.perf_counter() - start
    future.result()
    return stall, time.perf_counter() - start


def main():
    os.makedirs(FOLDER, exist_ok=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    state = {f"{kind}.{i}": torch.rand(n) for kind in ("params", "m", "v") for i, n in enumerate(SIZES)}
    rows = []
    for round_ in range(ROUNDS):
        row = ours()
        row["torch.save"] = torch_save(state)
        row["DCP save"] = dcp_save(state)
        row["DCP async stall"], row["DCP async"] = dcp_async(state)
        rows.append(row)
        print(f"round {round_}: " + ", ".join(f"{key} {value:.4f} s" for key, value in row.items()), flush=True)
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(f"save: {median['torch.save'] / median['save']:.2f}x torch.save + fsync, {median['DCP save'] / median['save']:.2f}x DCP save; "
          f"training waits {median['DCP async stall'] / max(median['stall'], 1e-6):.0f}x less than with DCP async_save "
          f"({1e3 * median['stall']:.2f} ms against {1e3 * median['DCP async stall']:.0f} ms)")
    for name in ("torch.pt", "dcp", "dcp_async"):
        path = os.path.join(FOLDER, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
