#!/usr/bin/env python3
"""The matmuls of GPT-2 124M: bench_gemm and PyTorch (oneDNN, MKL) in turn, minute by minute, as ratios.

  dev/bench/bench_gemm_peers.py [--M 256,1024] [--precision fp32|bf16] [--rounds 5] [--bench build/bench/bench_gemm]

A round runs bench_gemm once and then PyTorch once over the same shapes with cold weights, so that both see the same
clocks and neighbours. PyTorch does the bare products: forward with bias, dX, dW added in place. bench_gemm also does
residual, GELU, its derivative and the bias gradient inside. In bf16 PyTorch is timed twice: on tensors that are bf16
already, and from fp32 tensors (what bench_gemm has to do), whose conversion then counts. Ratio > 1: ours is faster.
"""
import argparse
import re
import statistics
import subprocess
import sys
import time

SHAPES = [("qkv", 768, 2304, 12), ("attn", 768, 768, 12), ("fc", 768, 3072, 12), ("proj", 3072, 768, 12),
          ("head", 768, 50304, 1)]
HEAD_ROWS = 1024


def run_ours(arguments, rows):
    command = [arguments.bench, f"--M={rows}", f"--precision={arguments.precision}", "--rounds=1", "--layers=3",
               f"--threads={arguments.threads}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^M +\d+ (\w+) .*?(forward|backward) +([\d.]+) ms", text, re.M)
    return {(name, direction): float(ms) * 1e-3 for name, direction, ms in found}


def run_torch(torch, rows, dtype, convert):
    """Seconds per (name, direction); two sets of tensors, the first call only warms up."""
    seconds = {}
    for name, width, out_width, _ in SHAPES:
        n = min(rows, HEAD_ROWS) if name == "head" else rows
        kept = torch.float32 if convert else dtype
        copies = 2 if name == "head" else 4
        sets = [(torch.rand(n, width).to(kept) - 0.5, torch.rand(out_width, width).to(kept) - 0.5,
                 torch.rand(out_width).to(kept), torch.rand(n, out_width).to(kept) - 0.5,
                 torch.zeros(out_width, width, dtype=dtype)) for _ in range(copies)]
        times = {"forward": [], "backward": []}
        for x, w, bias, dout, dw in sets:
            start = time.perf_counter()
            torch.nn.functional.linear(x.to(dtype), w.to(dtype), bias.to(dtype))
            times["forward"].append(time.perf_counter() - start)
        for x, w, bias, dout, dw in sets:
            start = time.perf_counter()
            d = dout.to(dtype)
            torch.mm(d, w.to(dtype))
            dw.addmm_(d.t(), x.to(dtype))
            times["backward"].append(time.perf_counter() - start)
        for direction, values in times.items():
            seconds[name, direction] = statistics.median(values[1:])
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--M", default="256,1024")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bench", default="build/bench/bench_gemm")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("skipped: no PyTorch here")
        return 77
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    peers = {"torch fp32": (torch.float32, False)}
    if arguments.precision == "bf16":
        peers = {"torch bf16": (torch.bfloat16, False), "torch from fp32": (torch.bfloat16, True)}
    for rows in map(int, arguments.M.split(",")):
        results = {who: [] for who in ["ours", *peers]}
        with torch.no_grad():
            for _ in range(arguments.rounds):
                results["ours"].append(run_ours(arguments, rows))
                for who, (dtype, convert) in peers.items():
                    results[who].append(run_torch(torch, rows, dtype, convert))
        totals = dict.fromkeys(results, 0.0)
        for name, width, out_width, per_step in SHAPES:
            n = min(rows, HEAD_ROWS) if name == "head" else rows
            for direction, products in (("forward", 1), ("backward", 2)):
                medians = {who: statistics.median(r[name, direction] for r in rounds) for who, rounds in results.items()}
                for who in totals:
                    totals[who] += medians[who] * per_step * rows / n
                flops = 2.0 * n * width * out_width * products
                line = "  ".join(f"{who} {flops / t * 1e-9:7.1f}" for who, t in medians.items())
                ratios = "  ".join(f"x{medians[who] / medians['ours']:.3f}" for who in peers)
                print(f"M {rows:4} {name:5} {direction:8} GFLOP/s: {line}  ratio {ratios}")
        line = "  ".join(f"{who} {t * 1e3:.1f}" for who, t in totals.items())
        ratios = "  ".join(f"x{totals[who] / totals['ours']:.3f}" for who in peers)
        print(f"M {rows:4} step           ms: {line}  ratio {ratios}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
