#!/usr/bin/env python3
"""test_gpt2 of the CUDA kernels at a shape that their fast forms take (heads of 64, whole vectors), against PyTorch in
float64 run here and now: logits, loss, every gradient, ten steps of AdamW; with and without a window.

    python3 dev/test/cuda_parity_torch.py TEST_GPT2 [--precision=bf16|fp32]
Exit 77: no PyTorch here."""
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "dev", "reference"))
try:
    import gpt2
except ImportError as error:
    print(f"skipped: no {error.name} here")
    sys.exit(77)

B, T, STEPS = 2, 200, 10


def main(program, *options):
    with tempfile.TemporaryDirectory() as folder:
        for window in 0, 70:
            config = gpt2.Config(context=T, vocab=500, layers=2, heads=2, channels=128, window=window)
            model = gpt2.GPT2(config, seed=1 + window, spread=3).double()
            path = os.path.join(folder, f"fast_window_{window}")
            gpt2.write_model(model, path + ".bin")
            x, y = gpt2.batch(config, B, T, seed=2)
            gpt2.write_state(model, x, y, path + "_debug_state.bin", STEPS, lr=1e-3, weight_decay=0.1, eps=1e-4,
                             with_final=False)
        return subprocess.run([program, *options, folder], check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
