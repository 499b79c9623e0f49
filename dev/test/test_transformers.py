"""Models go to Hugging Face's transformers and come back: `train_gpt2 convert` and test_gpt2 against GPT2LMHeadModel.

For a byte-sized and a BPE-sized vocabulary: our reference (dev/reference/gpt2.py) computes what transformers computes;
its folder, its shards and a bare GPT2Model convert to exactly the weights; test_gpt2 then finds transformers' logits,
loss and gradients; and what we write loads there with equal logits, fp32 and bf16.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


for program in ("train_gpt2", "test_gpt2"):
    if not os.path.exists(program):
        skip(f"no ./{program} here (make train_gpt2 test_gpt2)")
try:
    import torch
    import safetensors
    import transformers
except ImportError as e:
    skip(f"{e.name} is not installed")
sys.path.insert(0, "dev/reference")
import gpt2  # noqa: E402

transformers.utils.logging.disable_progress_bar()
failures = 0


def check(ok, what):
    global failures
    failures += not ok
    print(f"{what}: {'OK' if ok else 'NOT OK'}")


def run(*arguments):
    return subprocess.run(arguments, capture_output=True, text=True)


def convert(source, target, *options):
    result = run("./train_gpt2", "convert", source, target, *options)
    check(result.returncode == 0, f"convert {os.path.basename(source)} -> {os.path.basename(target)}")
    if result.returncode:
        print(result.stderr)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def hugging_face(model):
    """A GPT2LMHeadModel with the weights of a gpt2.GPT2."""
    c = model.config
    config = transformers.GPT2Config(vocab_size=c.vocab, n_positions=c.context, n_embd=c.channels, n_layer=c.layers,
                                     n_head=c.heads, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
                                     bos_token_id=c.vocab - 1, eos_token_id=c.vocab - 1)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    names = {"wte": "wte", "wpe": "wpe", "ln1": "ln_1", "qkv": "attn.c_attn", "attproj": "attn.c_proj", "ln2": "ln_2",
             "fc": "mlp.c_fc", "fcproj": "mlp.c_proj", "lnf": "ln_f"}
    weights = dict(theirs.transformer.named_parameters())
    with torch.no_grad():
        for name, (per_layer, _) in gpt2.shapes(c).items():
            plain = name in ("wte", "wpe")
            part = names[name if plain else name[:-1]] + (".bias" if name.endswith("b") else ".weight")
            for l, tensor in enumerate(model.p[name]):
                target = weights[f"h.{l}.{part}" if per_layer else part]
                conv1d = per_layer and tensor.dim() == 2
                target.copy_(tensor.T if conv1d else tensor)
    return theirs


def logits_of(theirs, x):
    with torch.no_grad():
        return theirs(x).logits


def read(path):
    with open(path, "rb") as f:
        return f.read()


def test_reference(model, theirs, x, y):
    """gpt2.py is GPT-2: the same logits and gradients as transformers, in float64."""
    theirs = theirs.double()
    model = model.double()
    ours, other = model(x), theirs(x).logits
    check(relative(ours, other) <= 1e-12, "gpt2.py against transformers, logits in float64")
    for logits in (ours, other):
        model.loss(logits, y).backward()
    pairs = ((model.p["wte"][0].grad, theirs.transformer.wte.weight.grad),
             (model.p["qkvw"][0].grad, theirs.transformer.h[0].attn.c_attn.weight.grad.T),
             (model.p["fcprojw"][1].grad, theirs.transformer.h[1].mlp.c_proj.weight.grad.T))
    check(all(relative(a, b) <= 1e-12 for a, b in pairs), "gpt2.py against transformers, gradients in float64")
    model.zero_grad(), theirs.zero_grad()
    model.float(), theirs.float()


def test_in(folder, model, theirs, x, y):
    """From transformers to us."""
    path = lambda name: os.path.join(folder, name)
    gpt2.write_model(model, path("expected.bin"))
    expected = read(path("expected.bin"))
    theirs.save_pretrained(path("theirs"))
    theirs.save_pretrained(path("shards"), max_shard_size="60KB")
    theirs.transformer.save_pretrained(path("bare"))
    check(len([f for f in os.listdir(path("shards")) if f.startswith("model-")]) > 1, "several shards")
    for name in ("theirs", "shards", "bare"):
        convert(path(name), path(name + ".bin"))
        check(read(path(name + ".bin")) == expected, f"weights of {name}, every bit")
    convert(path("theirs/model.safetensors"), path("file.bin"))
    check(read(path("file.bin")) == expected, "weights of the file alone, every bit")
    gpt2.write_state(model.double(), x, y, path("theirs_debug_state.bin"), 0, lr=0, weight_decay=0, with_final=False)
    model.float()
    result = run("./test_gpt2", path("theirs_debug_state.bin"))
    check(result.returncode == 0, "test_gpt2 with the converted weights")
    if result.returncode:
        print(result.stdout, result.stderr)


def test_out(folder, theirs, x):
    """From us to transformers."""
    path = lambda name: os.path.join(folder, name)
    before = logits_of(theirs, x)
    convert(path("expected.bin"), path("ours"))
    back, info = transformers.GPT2LMHeadModel.from_pretrained(path("ours"), output_loading_info=True)
    check(not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), "no key missing or left over")
    error = relative(logits_of(back.eval(), x), before)
    check(error <= 1e-4, f"logits of what we wrote, relative difference {error:.1e}")
    same = all(torch.equal(a, b) for a, b in zip(theirs.parameters(), back.parameters()))
    check(same, "weights of what we wrote, every bit")

    convert(path("ours"), path("ours_bf16"), "--dtype=bf16")
    half = transformers.GPT2LMHeadModel.from_pretrained(path("ours_bf16"), dtype=torch.bfloat16)
    same = all(torch.equal(a.bfloat16(), b) for a, b in zip(theirs.parameters(), half.parameters()))
    check(same, "bf16 weights, every bit")
    convert(path("ours_bf16"), path("half.bin"), "--dtype=bf16")
    convert(path("half.bin"), path("half.safetensors"), "--dtype=bf16")
    with safetensors.safe_open(path("half.safetensors"), "pt") as f:
        wte = f.get_tensor("transformer.wte.weight")
    check(torch.equal(wte, theirs.transformer.wte.weight.bfloat16()), "the safetensors library reads the file alone")


def test_refusals(folder, theirs):
    """What computes otherwise is refused, in one line."""
    source, target = os.path.join(folder, "theirs"), os.path.join(folder, "refused")
    shutil.copytree(source, target)
    config = os.path.join(target, "config.json")
    with open(config) as f:
        original = json.load(f)
    for key, value in (("activation_function", "relu"), ("layer_norm_epsilon", 1e-6), ("n_head", 7),
                       ("model_type", "gpt_neo")):
        with open(config, "w") as f:
            json.dump(original | {key: value}, f)
        result = run("./train_gpt2", "convert", target, os.path.join(folder, "x.bin"))
        lines = [line for line in result.stderr.splitlines() if not line.startswith("device ")]
        check(result.returncode == 1 and len(lines) == 1, f"refused: {lines[0] if lines else key}")
    untied = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(theirs.config.to_dict() | {"tie_word_embeddings": False})))
    untied.save_pretrained(target)
    result = run("./train_gpt2", "convert", target, os.path.join(folder, "x.bin"))
    check(result.returncode == 1 and "lm_head" in result.stderr, "refused: a head of its own")


def main(folder):
    torch.manual_seed(0)
    for name, vocab, channels, heads in (("bytes", 257, 48, 3), ("bpe", 50257, 32, 2)):
        print(f"-- {name}: vocabulary {vocab}")
        config = gpt2.Config(context=40, vocab=vocab, layers=3, heads=heads, channels=channels)
        model = gpt2.GPT2(config, seed=3, spread=6)
        theirs = hugging_face(model)
        x, y = gpt2.batch(config, 2, 33, seed=4)
        below = os.path.join(folder, name)
        os.mkdir(below)
        test_reference(model, theirs, x, y)
        test_in(below, model, theirs, x, y)
        test_out(below, theirs, x)
        if name == "bytes":
            test_refusals(below, theirs)
    print(f"transformers: {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    temporary = tempfile.mkdtemp(prefix="toroid_test_")
    try:
        code = main(temporary)
    finally:
        shutil.rmtree(temporary)
    sys.exit(code)
