#!/usr/bin/env python3
"""The CUDA attention kernels, forward and backward, against PyTorch's scaled_dot_product_attention in float64, beside
PyTorch's own in the type that the kernels store: ours may be off by no more than twice as much, or a few roundings.

    python3 dev/test/cuda_attention_torch.py TEST_CUDA_ATTENTION bf16|fp32 [--large]
Exit 77: no PyTorch here."""
import os
import subprocess
import sys
import tempfile

from lab import check, report

try:
    import numpy as np
    import torch
    from torch.nn.functional import scaled_dot_product_attention
except ImportError as error:
    print(f"skipped: no {error.name} here")
    sys.exit(77)

# B, T, NH, HS, window (0: all)
SMALL = [(1, 64, 2, 64, 0), (2, 77, 1, 64, 20), (1, 70, 1, 128, 0), (1, 33, 3, 20, 0)]
LARGE = [(4, 1024, 12, 64, 0), (2, 2048, 5, 64, 256), (2, 1000, 4, 128, 0), (1, 4096, 2, 64, 0)]
FLOOR = {"bf16": 4e-3, "fp32": 2e-6}


def attend(qkv, dout, window):
    """out (B,T,C) and dqkv (B,T,3,NH,HS), in the type of qkv."""
    qkv = qkv.detach().requires_grad_()
    B, T = qkv.shape[:2]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    rows = torch.arange(T, device=qkv.device)
    mask = rows[:, None] >= rows[None, :]
    if window:
        mask &= rows[:, None] - rows[None, :] < window
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, T, -1)
    out.backward(dout)
    return out.detach(), qkv.grad


def distance(got, want):
    got, want = got.double(), want.double()
    r = (torch.linalg.norm(got - want) / torch.linalg.norm(want)).item()
    return r if r == r else float("inf")


def check_shape(program, kind, device, B, T, NH, HS, window):
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    C = NH * HS
    torch.manual_seed(T)
    qkv = torch.randn(B, T, 3, NH, HS).to(dtype)
    dout = torch.randn(B, T, C).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        into, outof = os.path.join(folder, "in"), os.path.join(folder, "out")
        with open(into, "wb") as f:
            f.write(qkv.float().numpy().tobytes() + dout.float().numpy().tobytes())
        run = subprocess.run([program, "file", into, outof, *map(str, (B, T, NH, HS, window))], capture_output=True,
                             text=True, check=False)
        if not check(run.returncode == 0, f"exit {run.returncode}: {(run.stdout + run.stderr)[-500:]}"):
            return
        values = torch.from_numpy(np.fromfile(outof, np.float32))
    out, dqkv = values[:B * T * C].view(B, T, C), values[B * T * C:].view(B, T, 3, NH, HS)
    qkv, dout = qkv.to(device), dout.to(device)
    want_out, want_dqkv = (x.cpu() for x in attend(qkv.double(), dout.double(), window))
    torch_out, torch_dqkv = (x.cpu() for x in attend(qkv, dout, window))
    line = []
    for name, ours, theirs, want in [("out", out, torch_out, want_out)] + [
            (name, dqkv[:, :, i], torch_dqkv[:, :, i], want_dqkv[:, :, i]) for i, name in enumerate(["dq", "dk", "dv"])]:
        off, their_off = distance(ours, want), distance(theirs, want)
        line.append(f"{name} {off:.1e} (PyTorch {their_off:.1e})")
        check(off <= max(2 * their_off, FLOOR[kind]), f"B {B} T {T} NH {NH} HS {HS} window {window}: {line[-1]}")
    print(f"B {B} T {T} NH {NH} HS {HS} window {window}, {kind}: " + "  ".join(line), flush=True)


def main(program, kind, *more):
    on_gpu = "--large" in more and torch.cuda.is_available()
    for shape in LARGE if on_gpu else SMALL:
        check_shape(program, kind, "cuda" if on_gpu else "cpu", *shape)
    return report("cuda attention beside PyTorch")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
