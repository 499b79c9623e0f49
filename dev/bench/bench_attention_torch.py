"""bench_attention_torch.py: causal attention in PyTorch, forward and backward, bf16: each kernel that
scaled_dot_product_attention has here, counted as bench_cuda.cu does. A line each, of medians.

  python3 dev/bench/bench_attention_torch.py [--B 16] [--NH 12] [--HS 64] [--T 1024,4096] [--runs 20]
"""
import argparse
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def median_seconds(work, runs):
    seconds = []
    for i in range(-3, runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        if i >= 0:
            seconds.append(1e-3 * start.elapsed_time(end))
    return statistics.median(seconds)


def bench(backend, B, T, NH, HS, runs):
    # (B,T,3,NH,HS), seen as (B,NH,T,HS), as a model has it
    qkv = torch.randn(B, T, 3, NH, HS, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).detach().unbind(0))
    dout = torch.randn(B, T, NH, HS, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    with sdpa_kernel(backend):
        forward = median_seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True), runs)
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        backward = median_seconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), runs)
    flop = 4 * HS * B * NH * T * (T + 1) / 2
    print(f"SDPA {backend.name} B {B} T {T} NH {NH} HS {HS}: forward {1e-12 * flop / forward:.1f} TFLOP/s "
          f"({1e3 * forward:.3f} ms), backward {2.5e-12 * flop / backward:.1f} TFLOP/s ({1e3 * backward:.3f} ms)", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--B", type=int, default=16)
    parser.add_argument("--NH", type=int, default=12)
    parser.add_argument("--HS", type=int, default=64)
    parser.add_argument("--T", default="1024,4096")
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    for T in map(int, args.T.split(",")):
        for backend in SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION:
            try:
                bench(backend, max(args.B * 1024 // T, 1), T, args.NH, args.HS, args.runs)
            except RuntimeError as error:
                print(f"SDPA {backend.name} T {T}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
