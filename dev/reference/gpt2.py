"""GPT-2 in PyTorch, for reference: what test_gpt2 is checked against.

    python3 dev/reference/gpt2.py [folder]      makes the golden files (default: dev/reference)

Everything is computed in float64, so that a difference is the C code's rounding (or its mistake), not this file's.
A golden file is a pair in llm.c's formats, which llm.c's own test can read too:

  NAME.bin              the weights: llm.c's model file, version 3 (llmc/run/model_file.h)
  NAME_debug_state.bin  256 int32: magic 20240327, version 2, B, T; then x (B,T) and y (B,T) int32, logits (B,T,V),
                        loss and all gradients (as in the model file) fp32.

Ours say more, in header places that llm.c leaves zero and behind the gradients: header[4] attention window,
header[5] steps, header[6] 1: the weights after the steps follow, header[7] bits of the reference's arithmetic. Then
5 float64 (learning rate, beta1, beta2, epsilon, weight decay), `steps` float64 losses before each AdamW step, and, if
header[6], the weights after the last step as in the model file.
"""
import math
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

MODEL_MAGIC, STATE_MAGIC = 20240326, 20240327


@dataclass
class Config:
    context: int
    vocab: int
    layers: int
    heads: int
    channels: int
    window: int = 0

    @property
    def vocab_padded(self):
        return (self.vocab + 127) // 128 * 128


def shapes(c):
    """Name -> (is it per layer, shape), in the order of llm.c's files; matrices are (out, in)."""
    C = c.channels
    return {
        "wte": (False, (c.vocab, C)), "wpe": (False, (c.context, C)),
        "ln1w": (True, (C,)), "ln1b": (True, (C,)),
        "qkvw": (True, (3 * C, C)), "qkvb": (True, (3 * C,)),
        "attprojw": (True, (C, C)), "attprojb": (True, (C,)),
        "ln2w": (True, (C,)), "ln2b": (True, (C,)),
        "fcw": (True, (4 * C, C)), "fcb": (True, (4 * C,)),
        "fcprojw": (True, (C, 4 * C)), "fcprojb": (True, (C,)),
        "lnfw": (False, (C,)), "lnfb": (False, (C,)),
    }


class GPT2(torch.nn.Module):
    """self.p[name]: a list, one tensor per layer (or just one)."""

    def __init__(self, config, seed, spread=1.0):
        """Weights as GPT-2's, but matrices `spread` times as large (a small model would attend to all alike), and
        biases and LayerNorms off 0 and 1, so that every gradient counts."""
        super().__init__()
        self.config = config
        random = np.random.RandomState(seed)
        self.p = torch.nn.ParameterDict()
        for name, (per_layer, shape) in shapes(config).items():
            scale = 0.02 if not name.endswith("projw") else 0.02 / math.sqrt(2 * config.layers)
            tensors = []
            for _ in range(config.layers if per_layer else 1):
                noise = torch.from_numpy(random.standard_normal(shape)).float()
                if len(shape) == 2:
                    value = spread * scale * noise
                else:
                    value = (1.0 if name in ("ln1w", "ln2w", "lnfw") else 0.0) + 0.05 * noise
                tensors.append(torch.nn.Parameter(value))
            self.p[name] = torch.nn.ParameterList(tensors)

    def mask(self, T):
        row, column = torch.arange(T)[:, None], torch.arange(T)[None, :]
        sees = column <= row
        if self.config.window:
            sees &= column > row - self.config.window
        return sees

    def forward(self, x):
        """x (B,T) -> logits (B,T,V)."""
        c, p = self.config, self.p
        B, T = x.shape
        C, NH = c.channels, c.heads
        norm = lambda h, w, b: F.layer_norm(h, (C,), w, b, 1e-5)
        split = lambda t: t.view(B, T, NH, C // NH).transpose(1, 2)
        h = p["wte"][0][x] + p["wpe"][0][:T]
        for l in range(c.layers):
            qkv = F.linear(norm(h, p["ln1w"][l], p["ln1b"][l]), p["qkvw"][l], p["qkvb"][l])
            q, k, v = (split(t) for t in qkv.split(C, dim=2))
            scores = (q @ k.transpose(2, 3) / math.sqrt(C // NH)).masked_fill(~self.mask(T), -math.inf)
            heads = (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(B, T, C)
            h = h + F.linear(heads, p["attprojw"][l], p["attprojb"][l])
            up = F.linear(norm(h, p["ln2w"][l], p["ln2b"][l]), p["fcw"][l], p["fcb"][l])
            h = h + F.linear(F.gelu(up, approximate="tanh"), p["fcprojw"][l], p["fcprojb"][l])
        return F.linear(norm(h, p["lnfw"][0], p["lnfb"][0]), p["wte"][0])

    def loss(self, logits, y):
        return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))


def adamw(model, lr, betas, eps, weight_decay):
    """PyTorch's AdamW, decaying matrices only (tensors.h says the same)."""
    every = list(model.parameters())
    groups = [{"params": [t for t in every if t.dim() == 2], "weight_decay": weight_decay},
              {"params": [t for t in every if t.dim() == 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


def tensor_bytes(model, of=lambda t: t):
    """All tensors in file order, fp32; wte padded with zero rows."""
    out = []
    for name in shapes(model.config):
        for t in model.p[name]:
            value = of(t).detach().to(torch.float32)
            if name == "wte":
                value = F.pad(value, (0, 0, 0, model.config.vocab_padded - model.config.vocab))
            out.append(value.contiguous().numpy().tobytes())
    return b"".join(out)


def write_model(model, path):
    c = model.config
    header = np.zeros(256, np.int32)
    header[:8] = [MODEL_MAGIC, 3, c.context, c.vocab, c.layers, c.heads, c.channels, c.vocab_padded]
    with open(path, "wb") as f:
        f.write(header.tobytes() + tensor_bytes(model))


def write_state(model, x, y, path, steps, lr, weight_decay, with_final, betas=(0.9, 0.999), eps=1e-8):
    """Computes logits, loss, gradients and the AdamW steps, and writes them; the model is trained afterwards."""
    c = model.config
    B, T = x.shape
    bits = 64 if next(model.parameters()).dtype == torch.float64 else 32
    optimizer = adamw(model, lr, betas, eps, weight_decay)
    losses = []
    header = np.zeros(256, np.int32)
    header[:8] = [STATE_MAGIC, 2, B, T, c.window, steps, int(with_final), bits]
    with open(path, "wb") as f:
        f.write(header.tobytes() + x.to(torch.int32).numpy().tobytes() + y.to(torch.int32).numpy().tobytes())
        for step in range(max(steps, 1)):
            logits = model(x)
            loss = model.loss(logits, y)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                f.write(logits.detach().float().numpy().tobytes())
                f.write(np.float32(loss.item()).tobytes())
                f.write(tensor_bytes(model, lambda t: t.grad))
            if step < steps:
                losses.append(loss.item())
                optimizer.step()
        f.write(np.array([lr, *betas, eps, weight_decay] + losses, np.float64).tobytes())
        if with_final:
            f.write(tensor_bytes(model))
    return losses


def batch(config, B, T, seed):
    """Random tokens, the targets being the next ones; some of the vocabulary never appears."""
    random = np.random.RandomState(seed)
    tokens = torch.from_numpy(random.randint(0, config.vocab, B * T + 1))
    return tokens[:-1].view(B, T), tokens[1:].view(B, T)


def main(folder):
    for name, window in (("golden", 0), ("golden_window", 5)):
        config = Config(context=19, vocab=67, layers=2, heads=2, channels=20, window=window)
        model = GPT2(config, seed=1 + window, spread=4)
        path = os.path.join(folder, name)
        write_model(model, path + ".bin")
        x, y = batch(config, 3, 17, seed=2)
        # spread=4: attention is uneven, and bf16 (PyTorch's autocast too) stays within 1e-2.
        # A large epsilon: the gradient of the keys' bias is 0 but for rounding, which AdamW would blow up to lr.
        losses = write_state(model.double(), x, y, path + "_debug_state.bin", 10, lr=1e-3, weight_decay=0.1, eps=1e-4,
                             with_final=window == 0)
        print(path, " ".join(f"{loss:.6f}" for loss in losses))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
