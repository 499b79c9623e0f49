"""test_gpt2 at the shape of GPT-2 124M (B=4, T=64) against PyTorch run here and now: random weights, no download.

The reference is float64. Next to our errors stand those of PyTorch's own fp32 and bf16 autocast. Verdict: fp32 within
5e-6 per tensor, bf16 within 1e-2 and, over all gradients together, no worse than autocast. Takes 8 GB of memory, 2 GB
of disk under $TMPDIR and some minutes; TOROID_TORCH=0 skips it.
"""
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


if os.environ.get("TOROID_TORCH") == "0":
    skip("TOROID_TORCH=0")
if not os.path.exists("test_gpt2"):
    skip("no ./test_gpt2 here (make test_gpt2)")
try:
    import numpy as np
    import torch
except ImportError as e:
    skip(f"{e.name} is not installed")
sys.path.insert(0, "dev/reference")
import gpt2  # noqa: E402

B, T, STEPS = 4, 64, 10


def enough(folder):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if pages < 7.5e9:
        skip(f"{pages / 1e9:.1f} GB of memory, needs 8")
    free = shutil.disk_usage(folder).free
    if free < 2.5e9:
        skip(f"{free / 1e9:.1f} GB of disk free in {folder}, needs 2.5")


def reference_grads(path, config):
    """Name -> fp32 gradients of all layers, flat, mapped from the state file."""
    offset = 1024 + 8 * B * T + 4 * B * T * config.vocab + 4
    grads = {}
    for name, (per_layer, shape) in gpt2.shapes(config).items():
        count = math.prod(shape) * (config.layers if per_layer else 1)
        grads[name] = np.memmap(path, np.float32, "r", offset, (count,))
        padding = (config.vocab_padded - config.vocab) * config.channels if name == "wte" else 0
        offset += 4 * (count + padding)
    return grads


def torch_errors(config, seed, reference, autocast):
    """Relative L2 of PyTorch's own gradients, per tensor."""
    model = gpt2.GPT2(config, seed)
    x, y = gpt2.batch(config, B, T, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model.loss(model(x).float(), y)
    loss.backward()
    errors = {}
    for name, expected in reference.items():
        ours = np.concatenate([t.grad.numpy().ravel() for t in model.p[name]]).astype(np.float64)
        errors[name] = np.linalg.norm(ours - expected) / np.linalg.norm(expected.astype(np.float64))
    return errors


def our_errors(state, precision):
    """Relative L2 per gradient as test_gpt2 prints it, and its own verdict."""
    run = subprocess.run(["./test_gpt2", "--precision", precision, state], capture_output=True, text=True)
    if "overall okay" not in run.stdout:
        print(run.stdout, run.stderr)
        sys.exit(1)
    print("\n".join(line for line in run.stdout.splitlines() if "step" in line or "logits" in line or "kernels" in line))
    errors = {name: float(error) for name, error in re.findall(r"^  d(\w+) +\d+ +(\S+)", run.stdout, re.M)}
    return errors, "overall okay: 1" in run.stdout


def overall(errors, reference):
    norms = {name: np.linalg.norm(g.astype(np.float64)) for name, g in reference.items()}
    return math.sqrt(sum((errors[n] * norms[n]) ** 2 for n in norms) / sum(v * v for v in norms.values()))


def main(folder):
    enough(folder)
    config, seed = gpt2.Config(context=1024, vocab=50257, layers=12, heads=12, channels=768), 1
    path = os.path.join(folder, "gpt2_124M_random")
    model = gpt2.GPT2(config, seed)
    gpt2.write_model(model, path + ".bin")
    x, y = gpt2.batch(config, B, T, seed=2)
    gpt2.write_state(model.double(), x, y, path + "_debug_state.bin", STEPS, lr=1e-4, weight_decay=0.1, with_final=False)
    del model
    reference = reference_grads(path + "_debug_state.bin", config)
    columns = {}
    columns["ours fp32"], fp32_ok = our_errors(path + "_debug_state.bin", "fp32")
    columns["torch fp32"] = torch_errors(config, seed, reference, autocast=False)
    columns["ours bf16"], bf16_ok = our_errors(path + "_debug_state.bin", "bf16")
    columns["torch bf16"] = torch_errors(config, seed, reference, autocast=True)
    print(f"{'relative L2':12}" + "".join(f"{name:>12}" for name in columns))
    for name in reference:
        print(f"d{name:11}" + "".join(f"{column[name]:12.2e}" for column in columns.values()))
    total = {name: overall(column, reference) for name, column in columns.items()}
    print(f"{'all':12}" + "".join(f"{value:12.2e}" for value in total.values()))
    checks = {
        "test_gpt2 --precision fp32": fp32_ok,
        "test_gpt2 --precision bf16": bf16_ok,
        "fp32 within 5e-6": max(columns["ours fp32"].values()) <= 5e-6,
        "bf16 within 1e-2": max(columns["ours bf16"].values()) <= 1e-2,
        "bf16 no worse than autocast": total["ours bf16"] <= total["torch bf16"],
    }
    for name, ok in checks.items():
        print(f"{name}: {'OK' if ok else 'NOT OK'}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    temporary = tempfile.mkdtemp(prefix="toroid_test_")
    try:
        code = main(temporary)
    finally:
        shutil.rmtree(temporary)
    sys.exit(code)
