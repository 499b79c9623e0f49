"""bench_step_torch.py: the same training step of GPT-2 124M in PyTorch at its best, on a CPU or a GPU.

SDPA, fused AdamW, clipping; fp32 or autocast to bf16; eager or torch.compile. Padded vocabulary and tied head as ours.
Prints one line per step and a line of medians.

  python3 dev/bench/bench_step_torch.py --T 256 --precision bf16 --compile
"""
import argparse
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.att_proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.fc, self.fc_proj = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.att_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.fc_proj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, context=1024, vocab=50304, layers=12, heads=12, channels=768):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, channels), nn.Embedding(context, channels)
        self.blocks = nn.ModuleList(Block(channels, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(channels)
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--B", type=int, default=4)
    parser.add_argument("--T", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = GPT2().to(args.device)
    run = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, 50257, (2, args.B, args.T)).to(args.device)
    times = []
    for step in range(-2, args.steps):  # the first steps compile and touch memory
        start = time.perf_counter()
        for _ in range(args.accumulate):
            with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
                loss = run(tokens[0], tokens[1]) / args.accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if args.device == "cuda":
            torch.cuda.synchronize()
        took = 1e3 * (time.perf_counter() - start)
        if step >= 0:
            times.append(took)
            print(f"step {step}  loss {loss.item() * args.accumulate:.6f}  {took:.1f} ms", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024e-9
    if args.device == "cuda":
        memory = 1e-9 * torch.cuda.max_memory_allocated()
    median = statistics.median(times)
    print(f"median {median:.1f} ms  best {min(times):.1f} ms  {1e3 * args.B * args.T * args.accumulate / median:.1f} tok/s  "
          f"peak memory {memory:.2f} GB")


if __name__ == "__main__":
    main()
