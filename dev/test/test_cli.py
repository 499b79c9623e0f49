#!/usr/bin/env python3
"""The whole program from outside: each command at work on a tiny model, and everything a user can get wrong.

    python3 dev/test/test_cli.py [path of train_gpt2]

Whatever is wrong with flags, files, memory or disk, there is one line on stderr that begins with `error: ` and names
what is wrong, the exit code is 2 for flags and 1 for the rest, and no file is made, changed or left half-written.
"""
import functools
import glob
import hashlib
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

import lab
from lab import ENVIRONMENT, PROGRAM, check

TABLE = os.path.join(lab.ROOT, "llmc/base/option_table.h")
COMMANDS = ["train", "sample", "tokenize", "eval", "convert", "plot", "doctor"]
MODEL = ["--layers=1", "--heads=2", "--channels=32", "--context=32"]
TRAIN = ["train", *MODEL, "--batch-size=4", "--steps=3", "--train-data=tok_train_*.bin"]


def run(*args, stdin=b"", stdout=subprocess.PIPE, env=None, before=None, timeout=60):
    """code, stdout (bytes), stderr (text)"""
    try:
        p = subprocess.run([PROGRAM, *args], input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout,
                           env={**ENVIRONMENT, **(env or {})}, preexec_fn=before)
    except subprocess.TimeoutExpired as late:
        return "no end", b"", (late.stderr or b"").decode("utf-8", "replace")
    return p.returncode, p.stdout or b"", p.stderr.decode("utf-8", "replace")


def shown(args):
    words = [a if isinstance(a, str) else repr(a) for a in args]
    return " ".join(w if len(w) < 60 else w[:57] + "..." for w in words)


def works(*args, **more):
    """Runs a command that must succeed; its stdout."""
    code, out, err = run(*args, **more)
    check(code == 0, f"{shown(args)}: exit {code}: {err[-300:]}")
    return out


@functools.lru_cache(None)
def digest(path, *_):
    with open(path, "rb") as f:
        return hashlib.md5(f.read()).hexdigest()


def snapshot(folder="."):
    """name -> contents of all files. One that has not been touched is not read again, unless it is so new that the clock
    of files might not tell."""
    files = {}
    for base, _, names in os.walk(folder):
        files[base] = "folder"
        for name in names:
            path = os.path.join(base, name)
            s = os.stat(path)
            again = time.time() if time.time() - s.st_ctime < 1 else 0
            files[path] = digest(path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, again)
    return files


def is_one_error(code, err, expected_code):
    lines = err.split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    return (code == expected_code and len(errors) == 1 and lines[-1] == "" and lines[-2] == errors[0] and
            len(errors[0]) > 20 and "Sanitizer" not in err and "runtime error" not in err)


def fails(*args, says=(), code=1, leaves=(), unchecked_files=False, **more):
    """Runs a command that must fail as documented, with all of `says` in its error line. Files whose path contains one
    of `leaves` may appear or change. The error line."""
    before = None if unchecked_files else snapshot()
    got, _, err = run(*args, **more)
    name = shown(args)
    check(is_one_error(got, err, code), f"{name}: exit {got}, wanted {code} and one error line: {err[-400:]!r}")
    line = err.strip("\n").split("\n")[-1]
    for part in [says] if isinstance(says, str) else says:
        check(part.lower() in line.lower(), f"{name}: {part!r} is not in {line!r}")
    if before is not None:
        after = snapshot()
        for path in sorted(set(before) | set(after)):
            if "/checkpoints/lock/" in path:  # readers' locks, empty
                continue
            if before.get(path) != after.get(path) and not any(part in path for part in leaves):
                state = "changed" if path in before and path in after else "left" if path in after else "removed"
                check(False, f"{name}: failed, but {state} {path}")
    return line


def segment(run):
    """The file that holds the newest checkpoint of a run; None: it has none."""
    files = sorted(glob.glob(f"{run}/checkpoints/seg/*.seg"), key=os.path.getmtime)
    return files[-1] if files else None


def used_bytes(path):
    """Of a segment, which is preallocated: up to and with its footer, the last block that begins like a record."""
    with open(path, "rb") as f:
        data = f.read()
    return max(at for at in range(0, len(data), 4096) if data[at:at + 8] == b"toroidck") + 4096


def copy_damaged(source, target, change):
    """source, a file or folder, with its bytes or those of its model file changed by change(bytearray)."""
    if os.path.isdir(source):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        path = segment(target) or os.path.join(target, "model.safetensors")
        copy_damaged(path, path, change)
        return
    with open(source, "rb") as f:
        data = bytearray(f.read())
    change(data)
    with open(target, "wb") as f:
        f.write(data)


def truncated_to(size):
    def change(data):
        del data[size:]
    return change


def with_bit(bit):
    def change(data):
        data[bit // 8] ^= 1 << bit % 8
    return change


def with_u32(index, value):
    def change(data):
        data[4 * index:4 * index + 4] = struct.pack("<I", value)
    return change


# ---- everything works ----

def make_text():
    rng = random.Random(1)
    words = "the of and to in that it was his he with as had for at by on not be her is but all have from".split()
    lines = [" ".join(rng.choice(words) for _ in range(rng.randint(3, 12))) for _ in range(1500)]
    with open("text.txt", "w") as f:
        f.write("".join(line + (".\n\n" if i % 5 == 4 else ",\n") for i, line in enumerate(lines)) + "café ✓ 漢字\n")


def test_tokenize():
    works("tokenize", "-o", "tok", "text.txt")
    with open("text.txt", "rb") as f:
        text = f.read()
    decoded = works("tokenize", "--decode", "tok_val_000000.bin") + works("tokenize", "--decode", "tok_train_000000.bin")
    check(decoded == text, "tokenize: bytes there and back are not the text")
    works("tokenize", "-o", "piped", "-", stdin=text)
    for part in ("train", "val"):
        with open(f"tok_{part}_000000.bin", "rb") as a, open(f"piped_{part}_000000.bin", "rb") as b:
            check(a.read() == b.read(), f"tokenize: {part} from stdin differs from the file's")
    works("tokenize", "-o", "bpe", "--train-bpe=300", "--documents=blank-line", "--val-tokens=1000", "text.txt")
    with open("bpe_val_000000.bin", "rb") as f:
        check(struct.unpack("<4I", f.read(16))[2:] == (1000, 300), "tokenize: --val-tokens and --train-bpe in the header")
    decoded = works("tokenize", "--decode", "bpe_val_000000.bin", "bpe_train_000000.bin")
    check(decoded == text, "tokenize: own BPE there and back is not the text")
    os.makedirs("folder/below")
    for name in ("folder/b.txt", "folder/below/a.txt"):
        with open(name, "w") as f:
            f.write(name * 100)
    with open("folder/binary", "wb") as f:
        f.write(bytes(1000))
    works("tokenize", "-o", "out/deep/many", "--shard-tokens=1024", "--val-fraction=0", "folder")
    check(sorted(os.listdir("out/deep")) == ["many.tokenizer", "many_train_000000.bin", "many_train_000001.bin",
                                             "many_train_000002.bin"], f"tokenize: shards {os.listdir('out/deep')}")


def test_train():
    out = works(*TRAIN, "--val-data=tok_val_*.bin", "--run=run", "--steps=30", "--eval-every=10", "--sample-every=15",
                "--sample-tokens=10", "--learning-rate=1e-2", "--warmup=5").decode("utf-8", "replace")
    check("step 30/30" in out and "--- sample at step 15 ---" in out, f"train: stdout {out[-300:]!r}")
    with open("run/metrics.jsonl") as f:
        lines = [json.loads(line) for line in f]
    check([line["step"] for line in lines] == list(range(1, 31)), "train: metrics.jsonl has each step once")
    check(lines[-1]["loss"] < lines[0]["loss"] - 1, f"train: loss {lines[0]['loss']} -> {lines[-1]['loss']}")
    check([line["step"] for line in lines if "val_loss" in line] == [10, 20, 30], "train: steps with val_loss")
    check("nothing to do" in run(*TRAIN, "--run=run", "--steps=30")[2], "train: a finished run says so")
    config = open("run/config.txt").read()
    out = works("--config=run/config.txt", "--run=run_again")
    with open("run/metrics.jsonl") as a, open("run_again/metrics.jsonl") as b:
        same = [json.loads(x)["loss"] == json.loads(y)["loss"] for x, y in zip(a, b)]
    check(len(same) == 30 and all(same), f"train: config.txt makes the same run again ({config[:100]!r})")
    shutil.copy("tok_train_000000.bin", "odd [1] na*me.bin")
    works(*TRAIN, "--train-data=odd [1] na*me.bin", "--run=odd \"run\" #é")
    works("--config=odd \"run\" #é/config.txt", "--steps=4")
    return lines[-1]["val_loss"]


def test_convert():
    works("convert", "run", "a.bin")
    works("convert", "run", "hub")
    check(os.path.exists("hub/config.json") and os.path.exists("hub/tokenizer"), "convert: a folder has its files")
    works("convert", "hub", "b.bin")
    works("convert", "a.bin", "c.safetensors")
    works("convert", "c.safetensors", "c.bin")
    works("convert", "--dtype=bf16", "run", "half.bin")
    works("convert", "--dtype=bf16", "half.bin", "half.safetensors")
    works("convert", "--dtype=bf16", "half.safetensors", "half2.bin")
    works("convert", "--format=llmc", "run", "odd.name")
    contents = {name: open(name, "rb").read() for name in ("a.bin", "b.bin", "c.bin", "odd.name", "half.bin", "half2.bin")}
    check(struct.unpack("<8i", contents["a.bin"][:32])[:7] == (20240326, 3, 32, 257, 1, 2, 32), "convert: header, v3")
    check(struct.unpack("<2i", contents["half.bin"][:8]) == (20240326, 5), "convert: header, v5")
    for name in ("b.bin", "c.bin", "odd.name"):
        check(contents[name] == contents["a.bin"], f"convert: {name} is not a.bin")
    check(contents["half.bin"] == contents["half2.bin"], "convert: bf16 there and back")
    works("convert", "a.bin", "a.bin", "--dtype=fp32")
    check(open("a.bin", "rb").read() == contents["a.bin"], "convert: onto itself")


def test_sample():
    greedy = ["sample", "--temperature=0", "--tokens=60", "--prompt=the of"]
    expected = works(*greedy, "run")
    check(expected.startswith(b"the of") and len(expected) > 20, f"sample: {expected!r}")
    for model in ("a.bin", "c.safetensors", "hub", "--model=run"):
        check(works(*greedy, model) == expected, f"sample: {model} writes other text")
    check(works(*greedy, "run", "--threads=1") == expected, "sample: one thread writes other text")
    for weights in ("bf16", "int8"):
        out = works(*greedy, "run", f"--weights={weights}")
        check(out.startswith(b"the of") and len(out) > 20, f"sample: {weights}: {out!r}")
    works(*greedy, "half.bin")
    check(works("sample", "--temperature=0", "--tokens=60", "--prompt=-", "run", stdin=b"the of") == expected,
          "sample: the prompt from stdin")
    out = works("sample", "run", "--count=3", "--tokens=40")
    check(out.count(b"\n---\n") == 2 and len(set(out.split(b"\n---\n"))) == 3, f"sample: --count: {out!r}")
    check(out == works("sample", "run", "--count=3", "--tokens=40"), "sample: the same seed, other text")
    check(out != works("sample", "run", "--count=3", "--tokens=40", "--seed=2"), "sample: another seed, the same text")
    narrow = ["sample", "run", "--tokens=20", "--prompt=a", "--temperature=5"]
    first = works("sample", "run", "--tokens=20", "--prompt=a", "--temperature=0")
    check(works(*narrow, "--top-k=1") == works(*narrow, "--top-p=0.000001") == first, "sample: the likeliest token only")
    works("sample", "run", "--tokens=5", b"--prompt=\xff\xfe\xc3\x28")
    works("sample", "run", "--tokens=5", "--prompt=-", stdin=bytes(range(256)) * 40)
    works("sample", "run", "--window=4", "--tokens=200")


def test_eval(val_loss):
    out = works("eval", "run", "--val-data=tok_val_*.bin", "--batch-size=4").decode()
    found = re.match(r"val loss (\S+)  perplexity (\S+)  tokens (\d+)\n$", out)
    if check(found, f"eval: {out!r}"):
        check(abs(float(found[1]) - val_loss) < 2e-6, f"eval: {found[1]}, the trainer had {val_loss}")
    whole = works("eval", "a.bin", "--val-data=tok_val_*.bin", "--eval-batches=0", "--batch-size=7", "--sequence=16")
    check(b"val loss" in whole, f"eval: {whole!r}")
    works("eval", "run", "--val-data=tok_val_*.bin", "--precision=bf16")
    works("eval", "run", "--val-data=tok_val_*.bin", "--batch-size=4096", "--eval-batches=1")
    questions = [{"ctx": "the of and", "label": i % 4, "endings": ["to in that", "xqz", "was his he with", "é"]}
                 for i in range(5)]
    questions.append({"ctx": "", "label": 0, "endings": ["", "a", "b" * 100, "c"]})
    with open("hellaswag.jsonl", "w") as f:
        f.write("".join(json.dumps(q) + "\n" for q in questions) + "\n")
    out = works("eval", "run", "--hellaswag=hellaswag.jsonl", "--val-data=tok_val_*.bin").decode()
    check(re.search(r"^hellaswag acc_norm 0\.\d{4}  acc 0\.\d{4}  questions 6$", out, re.M), f"hellaswag: {out!r}")
    # A model that has seen only these words tells them from letters that it has never seen.
    with open("easy.jsonl", "w") as f:
        f.write(json.dumps({"ctx": "his he with", "label": 2, "endings": ["ZQXJ", "~~}{|", "the of and", "{}[]"]}) + "\n")
    check(b"acc 1.0000" in works("eval", "run", "--hellaswag=easy.jsonl"), "hellaswag: the easiest question")


def test_plot():
    works("plot", "run", "run_again", "-o", "curves.svg")
    root = ElementTree.parse("curves.svg").getroot()
    check(root.tag.endswith("svg") and len(list(root.iter("{http://www.w3.org/2000/svg}path"))) >= 4, "plot: curves")
    for x in ("step", "tokens", "seconds"):
        works("plot", "run", "-x", x, "--log-x", "--smooth=0.5", "-o", f"{x}.svg")
        ElementTree.parse(f"{x}.svg")


def test_help():
    for command in COMMANDS:
        out = works(command, "--help").decode()
        check(out.startswith("Usage: train_gpt2") and all(len(line) <= 80 for line in out.split("\n")), f"{command} --help")
    for form, start in (("man", '.TH'), ("bash", "#"), ("zsh", "#compdef")):
        out = works(f"--help={form}").decode()
        check(start in out[:200] and "batch" in out, f"--help={form}: {out[:80]!r}")
    out = works("--preset=list").decode()
    check(len(out.split("\n")) == 7 and "1557" in out, f"--preset=list: {out!r}")
    out = works("doctor", "--threads=1").decode()
    check(all(word in out for word in ("device", "peak", "memory", "gpt2-xl")), f"doctor: {out!r}")


# ---- flags ----

def table_rows():
    """(type, flag, default, min, max, commands) of each option, and the commands' numbers of arguments."""
    with open(TABLE) as f:
        text = f.read()
    table = text[text.index("#define OPTION_TABLE"):]
    rows = re.findall(r'X\((\w+), (\w+), (?:0|\'.\'), "([^"]*)", (\S+), (\S+), "[^"]*", ([A-Z| ]+),', table)
    for kind, field, default, low, high, commands in rows:
        names = COMMANDS if commands == "EVERY" else [c.strip().lower() for c in commands.split("|")]
        yield kind, field.replace("_", "-"), default, float(low), float(high), names


def wrong_values(kind, default, low, high):
    if kind in ("INT", "INT64"):
        below = f"{int(low) - 1}"
        return ["", "x", "1.5", "12abc", " 3", "nan", "inf", "0x10", "1e99", "99999999999999999999", below,
                f"{int(high) + 1}", "1e", "--", "3 "]
    if kind == "DOUBLE":
        return ["", "x", "nan", "inf", "-inf", "1e999", "0x1p3", "1,5", " 1", f"{low - 1:.17g}", f"{high * 2 + 1:.17g}", "1e"]
    if kind == "BOOL":
        return ["", "maybe", "2", "y es"]
    if kind == "CHOICE":
        return ["nonsense", " ", "x" * 5000] + ([""] if default else [])
    return ["x" * 4096, "x" * 100000]


def test_wrong_values():
    before = snapshot()
    rows = list(table_rows())
    check(len(rows) > 50, f"only {len(rows)} options found in {TABLE}")
    for kind, flag, default, low, high, commands in rows:
        for i, value in enumerate(wrong_values(kind, default, low, high)):
            command = commands[i % len(commands)]
            fails(command, f"--{flag}={value}", says=f"--{flag}", code=2, unchecked_files=True)
            if not value.startswith("--") and value and i < 3 and kind != "BOOL":
                fails(command, f"--{flag}", value, says=f"--{flag}", code=2, unchecked_files=True)
                if len(value) < 5000:
                    name = "TOROID_" + flag.upper().replace("-", "_")
                    fails(command, "x", "y", env={name: value}, says=name, code=2, unchecked_files=True)
            if "\n" not in value and flag != "config" and i % 3 == 0:
                with open(os.path.join(outside, "config.txt"), "w") as f:
                    f.write(f"# comment\n{flag} = \"{value}\"\n")
                fails(command, f"--config={outside}/config.txt", says=("config.txt:2", flag if len(value) < 4096 else ""), code=2,
                      unchecked_files=True)
        if kind != "BOOL":
            fails(commands[0], f"--{flag}", says=(f"--{flag}", "needs a value"), code=2, unchecked_files=True)
            fails(commands[0], f"--{flag}", "--quiet", says=(f"--{flag}", "needs a value"), code=2, unchecked_files=True)
    check(snapshot() == before, "wrong values of flags: files changed")


def test_wrong_flags():
    cases = [(("--batchsize=3",), "--batch-size"), (("--batch_sise=3",), "--batch-size"), (("--lr", "1"), "--learning-rate"),
             (("--n-layer=2",), "--layers"), (("--stpes", "3"), "--steps"), (("sample", "--temprature=1"), "--temperature"),
             (("tokenize", "--train-bqe=3", "x"), "--train-bpe"), (("--zzzzzzzzzz",), "--help"), (("-Z",), "-Z"),
             (("sample", "--layers=2"), "option of train"), (("trian",), "'train'"), (("smaple",), "'sample'"),
             (("frobnicate",), "--help"), (("--help=html",), "man"), (("--" + "x" * 10000,), "unknown flag"), (("train", "file"), "'file'"),
             (("doctor", "x"), "'x'"), (("sample", "a", "b"), "'b'"), (("eval", "a", "b"), "'b'"), (("convert", "a"), "IN OUT"),
             (("convert",), "IN OUT"), (("convert", "a", "b", "c"), "'c'"), (("tokenize",), "INPUT"), (("plot",), "RUN"),
             (("sample", "run", "--model=a.bin"), "twice"), (("--no-steps",), "unknown flag"), (("--steps=3=4",), "--steps"),
             (("--=3",), "unknown flag"), (("sample", "x" * 5000), "--model")]
    for args, says in cases:
        fails(*args, says=says, code=2, unchecked_files=True)
    with open(f"{outside}/bad.txt", "w") as f:
        f.write("steps 3\n")
    fails(f"--config={outside}/bad.txt", says=("bad.txt:1", "name = value"), code=2)
    for text, says in (("stepz = 3", "steps"), ("config = x", "config"), ('run = "x', "quote"), ("run = a\0b", "NUL")):
        with open(f"{outside}/bad.txt", "w") as f:
            f.write(text + "\n")
        fails(f"--config={outside}/bad.txt", says=("bad.txt:1", says), code=2)
    fails("--config=missing.txt", says="missing.txt", code=2)
    fails("--config=.", says=".", code=2)


# ---- data ----

def test_bad_data():
    fails("train", *MODEL, says="--train-data")
    fails("train", "--train-data", "tok_train_000000.bin", "tok_val_000000.bin", says=("tok_val", "quotes"), code=2)
    fails(*TRAIN, "--train-data=nothing_*.bin", says="nothing_*.bin")
    check("\x1b" not in fails(*TRAIN, "--train-data=no\n\x1b[2J", says="no  [2J"), "control characters of names in an error")
    fails(*TRAIN, "--train-data=folder", says=("folder", "is a folder"))
    fails(*TRAIN, "--train-data=text.txt", says=("text.txt", "text file"))
    fails(*TRAIN, "--train-data=a.bin", says=("a.bin", "model file"))
    fails(*TRAIN, f"--train-data={segment('run')}", says=segment("run"))
    fails(*TRAIN, "--val-data=nothing", says="nothing")
    fails(*TRAIN, "--val-data=bpe_val_*.bin", says="bpe_val_000000.bin")
    fails(*TRAIN, "--train-data=bpe_train_*.bin", "--val-data=tok_val_*.bin", says="tok_val")
    fails(*TRAIN, "--train-data=*_train_000000.bin", says="tokenizer")
    fails(*TRAIN, "--tokenizer=bpe.tokenizer", says=("bpe.tokenizer", "tok_train"))
    fails(*TRAIN, "--tokenizer=text.txt", says="text.txt")
    fails(*TRAIN, "--tokenizer=missing.bpe", says="missing.bpe")
    fails(*TRAIN, "--train-data=bpe_train_*.bin", "--init=a.bin", says=("bpe_train", "a.bin", "300"))
    fails("eval", "run", says="--val-data")
    fails("eval", "run", "--val-data=bpe_val_*.bin", says="bpe_val")
    fails("eval", "run", "--val-data=missing", says="missing")
    fails("eval", "run", "--val-data=tok_val_*.bin", "--sequence=33", says="33")
    fails("eval", "a.bin", "--val-data=bpe_val_*.bin", "--tokenizer=bpe.tokenizer", says=("bpe.tokenizer", "300"))
    # Files of its format that something happened to.
    size = os.path.getsize("tok_train_000000.bin")
    sizes = [0, 1, 3, 4, 100, 1023, 1024, 1025, 1026, size // 2, size - 2, size - 1]
    for at in sizes:
        copy_damaged("tok_train_000000.bin", "bad.bin", truncated_to(at))
        fails(*TRAIN, "--train-data=bad.bin", "--run=new", says="bad.bin")
        fails("tokenize", "--decode", "bad.bin", "--tokenizer=byte", says="bad.bin")
        fails("eval", "run", "--val-data=bad.bin", says="bad.bin")
    copy_damaged("tok_train_000000.bin", "bad.bin", lambda data: data.extend(b"xx"))
    fails(*TRAIN, "--train-data=bad.bin", "--run=new", says="bad.bin")
    for bit in range(96):  # magic, version, number of tokens
        copy_damaged("tok_train_000000.bin", "bad.bin", with_bit(bit))
        fails(*TRAIN, "--train-data=bad.bin", "--run=new", says="bad.bin", unchecked_files=True)
    check(not os.path.exists("new"), "train: bad token files left a run folder")
    for bit in range(96, 160):  # vocabulary and fingerprint: a larger vocabulary is no contradiction in itself
        copy_damaged("tok_train_000000.bin", "bad.bin", with_bit(bit))
        is_clean(*TRAIN, "--train-data=bad.bin", "--tokenizer=byte")
    copy_damaged("tok_train_000000.bin", "bad.bin", lambda data: data.__setitem__(slice(3000, None), b"\xff" * (size - 3000)))
    fails(*TRAIN, "--train-data=bad.bin", says=("bad.bin", "65535", "257"))
    fails("eval", "run", "--val-data=bad.bin", "--eval-batches=0", says=("bad.bin", "65535"))
    fails("tokenize", "--decode", "bad.bin", "--tokenizer=byte", says="bad.bin")
    # One that goes bad at the end: what was learned before is saved, and with a whole file the run goes on.
    copy_damaged("tok_train_000000.bin", "bad.bin", truncated_to(1024 + 2 * 1281))  # 40 sequences of 32, 10 steps
    copy_damaged("bad.bin", "bad.bin", with_u32(2, 1281))
    copy_damaged("bad.bin", "late.bin", lambda data: data.__setitem__(slice(-200, -100), b"\xff" * 100))
    bad_run = [*TRAIN, "--train-data=late.bin", "--run=late", "--steps=10", "--tokenizer=byte"]
    fails(*bad_run, says=("late.bin", "65535"), leaves=["./late"])
    steps = [int(line.split()[0]) for line in works("ckpt", "ls", "late").decode().split("\n")[1:] if line]
    check(len(steps) == 1 and 0 < steps[0] < 10, f"bad data after some steps: saved {steps}")
    os.replace("bad.bin", "late.bin")
    check(f"resumed     late at step {steps[0]}," in run(*bad_run)[2], "bad data after some steps: the run goes on")
    with open("few.bin", "wb") as f:
        f.write(struct.pack("<256I", 20240520, 1, 20, 257, *[0] * 252) + bytes(40))
    fails(*TRAIN, "--train-data=few.bin", says=("few.bin", "20 tokens"))
    os.remove("late.bin")
    os.remove("few.bin")


def is_clean(*args):
    """Success or a documented failure, but neither a crash nor silence."""
    code, _, err = run(*args)
    check(code == 0 or is_one_error(code, err, 1), f"{shown(args)}: exit {code}: {err[-300:]!r}")
    return code


def test_bad_text():
    open("empty.txt", "w").close()
    for name in ("empty.txt", "missing.txt", "folder/binary", "tok_train_000000.bin"):
        fails("tokenize", "-o", "new", name, says=name)
    os.makedirs("hollow")
    fails("tokenize", "-o", "new", "hollow", says="hollow")
    fails("tokenize", "-o", "new", "-", says="no text")
    fails("tokenize", "-o", "new", "text.txt", "missing.txt", says="missing.txt")
    fails("tokenize", "-o", "new", "text.txt", "folder/binary", says="folder/binary")
    fails("tokenize", "-o", "text.txt/new", "text.txt", says="text.txt")
    fails("tokenize", "-o", "new", "--train-bpe=100", "text.txt", says=("100", "257"))
    with open("text.txt", "rb") as f:
        text = f.read()
    fakes = {"text.bpe": text, "empty.bpe": b"", "binary.bpe": bytes(range(256)) * 20, "one.bpe": b"#version: 0.2\na\n",
             "three.bpe": b"#version: 0.2\na b c\n", "twice.bpe": b"#version: 0.2\na b\na b\n", "nul.bpe": b"a b\0\nc d\n",
             "unknown.bpe": b"#version: 0.2\nab cd\n", "long.bpe": b"a " + b"b" * 100000 + b"\n"}
    for name, contents in fakes.items():
        with open(name, "wb") as f:
            f.write(contents)
        fails("tokenize", "-o", "new", "-t", name, "text.txt", says=name)
        fails("sample", "run", "-t", name, says=name)
        os.remove(name)
    fails("tokenize", "-o", "new", "-t", "folder", "text.txt", says="folder")
    fails("tokenize", "--decode", "text.txt", says="text.txt")
    fails("tokenize", "--decode", "missing.bin", says="missing.bin")
    shutil.copy("tok_val_000000.bin", "lonely.bin")
    fails("tokenize", "--decode", "lonely.bin", says="lonely.bin")
    for wrong, says in ((b"", "no questions"), (b"x\n", "line 1"), (b"{}\n", "line 1"), (b'{"ctx": 3}\n', "line 1"), (b"[" * 100000, "line 1"),
                        (b'{"ctx": "a", "label": 4, "endings": ["a", "b", "c", "d"]}\n', "label"),
                        (b'{"ctx": "a", "label": "1", "endings": ["a", "b", "c", "d"]}\n', "label"),
                        (b'{"ctx": "a", "label": 1, "endings": ["a", "b", "c"]}\n', "endings"),
                        (b'{"ctx": "a", "label": 1, "endings": ["a", "b", "c", 4]}\n', "ending"),
                        (bytes(100), "questions"), (b'{"ctx": "' + b"a" * (2 << 20) + b'"}', "line 1")):
        with open("wrong.jsonl", "wb") as f:
            f.write(wrong)
        fails("eval", "run", "--hellaswag=wrong.jsonl", says=("wrong.jsonl", says))
    fails("eval", "run", "--hellaswag=missing.jsonl", says="missing.jsonl")
    fails("eval", "run", "--hellaswag=folder", says="folder")
    for wrong in (b"", b"x\n", b"{}\n", bytes(100), b"[" * 100000, b'{"step": 1e99, "loss": "x"}\n'):
        os.makedirs("noplot", exist_ok=True)
        with open("noplot/metrics.jsonl", "wb") as f:
            f.write(wrong)
        fails("plot", "noplot", says="noplot")
    fails("plot", "missing", says="missing")
    fails("plot", "hollow", says="hollow")
    fails("plot", "run", "-o", "hollow", says="hollow")
    fails("plot", "run", "-o", "text.txt/x.svg", says="text.txt/x.svg")


# ---- models ----

def test_bad_models():
    for name in ("missing.bin", "text.txt", "tok_train_000000.bin", "hollow", "empty.txt", "/dev/null"):
        for args in (("sample", name), ("eval", name, "--val-data=tok_val_*.bin"), ("convert", name, "new.bin"),
                     (*TRAIN, "--run=new", f"--init={name}")):
            fails(*args, says=name)
    fails("sample", says="model")
    sources = {"a.bin": "bad.bin", "half.bin": "bad.bin", "c.safetensors": "bad.safetensors", "hub": "bad_hub", "run": "bad_run"}
    rng = random.Random(2)
    for source, target in sources.items():
        inner = {"hub": "hub/model.safetensors", "run": segment("run")}.get(source, source)
        size = used_bytes(inner) if source == "run" else os.path.getsize(inner)
        sizes = {0, 1, 4, 7, 8, 9, 31, 32, 33, 96, 200, 400, 1023, 1024, 1025, size // 2, size - 4, size - 1}
        sizes |= {rng.randrange(size) for _ in range(20)}
        for at in sorted(sizes):
            copy_damaged(source, target, truncated_to(at))
            fails("sample", target, says=target, unchecked_files=True)
            fails(*TRAIN, "--run=new", f"--init={target}", says=target, unchecked_files=True)
        if source in ("a.bin", "c.safetensors"):  # these have no checksums
            for bit in [*range(32 * 8), *(rng.randrange(8 * min(size, 4000)) for _ in range(150))]:
                copy_damaged(source, target, with_bit(bit))
                is_clean("sample", target, "--tokens=1")
        if source == "run":  # a checksum covers every byte that is read: it fails, or nothing of it has changed
            _, whole, _ = run("sample", "run", "--tokens=20", "--temperature=0")
            for bit in [*range(4096 * 8, 4097 * 8), *(rng.randrange(8 * size) for _ in range(20))]:
                copy_damaged(source, target, with_bit(bit))
                code, out, _ = run("sample", target, "--tokens=20", "--temperature=0")
                check(code == 1 or out == whole, f"bit {bit} of a segment: exit {code}, {out!r}")
                is_clean(*TRAIN, "--steps=4", f"--run={target}")
    for index, value in ((0, 0), (0, 20240520), (1, 1), (1, 4), (2, 0), (2, 1 << 31), (3, 0), (3, 1 << 20), (4, 0), (4, 1 << 30),
                         (5, 0), (5, 3), (6, 0), (6, 33), (6, 1 << 30), (7, 0), (7, 256), (7, 1 << 31), (2, 33), (4, 2)):
        copy_damaged("a.bin", "bad.bin", with_u32(index, value))
        for args in (("sample", "bad.bin"), ("convert", "bad.bin", "new.safetensors"), (*TRAIN, "--init=bad.bin", "--run=new")):
            fails(*args, says="bad.bin", unchecked_files=True)
    for size in (0, 1, 1 << 40, (1 << 64) - 1, (1 << 63), 1 << 31):
        copy_damaged("c.safetensors", "bad.safetensors", lambda data: data.__setitem__(slice(0, 8), struct.pack("<Q", size)))
        fails("sample", "bad.safetensors", says="bad.safetensors")
    check(not any(name.startswith("new") for name in os.listdir()), f"bad models left {os.listdir()}")
    for name in ("bad.bin", "bad.safetensors"):
        os.remove(name)
    for name in ("bad_hub", "bad_run"):
        shutil.rmtree(name)
    fails("convert", "run", "new.unknown", says="new.unknown")
    fails("convert", "run", "hollow/no/new.bin", says="hollow/no/new.bin")
    fails("convert", "run", "text.txt/new.bin", says="text.txt/new.bin")
    fails("convert", "a.bin", "run", says="run")
    fails("convert", "--format=llmc", "a.bin", "hollow", says="hollow")


def test_wrong_sizes():
    fails(*TRAIN, "--run=new", "--sequence=33", says=("--sequence", "33", "32"))
    fails(*TRAIN, "--run=new", "--heads=5", says=("heads", "32"))
    fails(*TRAIN, "--run=new", "--total-batch=100", says=("--total-batch", "128"))
    fails(*TRAIN, "--run=new", "--total-batch=1", says=("--total-batch", "128"))
    fails(*TRAIN, "--run=new", "--total-batch=128000000000", says="--total-batch")
    for size in ("--layers=2", "--heads=4", "--channels=64", "--context=64", "--context=16", "--preset=gpt2"):
        flag = size.split("=")[0] if not size.startswith("--preset") else "gpt2"
        fails("train", "--train-data=tok_train_*.bin", "--run=new", "--init=a.bin", size, says=("--", "a.bin"))
    works("train", "--train-data=tok_train_*.bin", "--init=a.bin", "--steps=1", "--sequence=16")
    works(*TRAIN, "--init=a.bin")
    for size in ("--layers=2", "--heads=4", "--channels=64", "--context=64"):
        fails(*TRAIN, "--run=run", "--steps=40", size, says=("run", "another model", "1 layers"))
    fails(*TRAIN, "--run=run", "--steps=40", "--train-data=bpe_train_*.bin", says=("run", "another model"))
    fails(*TRAIN, "--resume=must", says="--resume=must")
    fails(*TRAIN, "--resume=must", "--run=new", says=("--resume=must", "new"))
    for flag in ("--remote=far", "--staging=fast", "--checkpoint-every=2"):
        fails(*TRAIN, flag, says=(flag.split("=")[0], "--run"))


# ---- memory and disk ----

def test_little_memory():
    with open(PROGRAM, "rb") as f:
        if b"__asan_init" in f.read():
            print("skipped: little memory (a sanitizer takes terabytes of addresses)")
            return
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
    fails(*TRAIN, "--run=new", "--batch-size=65536", "--context=4096", says="memory")
    works(*TRAIN, "--run=wide", "--channels=256", "--context=8192", "--sequence=32", "--steps=1")
    fails("eval", "wide", "--val-data=tok_val_*.bin", "--batch-size=65536", "--sequence=4096", says="memory")
    for args in ((*TRAIN, "--run=new", "--batch-size=16384"), (*TRAIN, "--run=new", "--channels=2048", "--layers=4"),
                 ("eval", "run", "--val-data=tok_val_*.bin", "--batch-size=65536")):
        fails(*args, "--threads=1", before=limit, says="memory")
    for megabytes in range(20, 120, 4):
        def limit_to():
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
        code, _, err = run(*TRAIN, "--threads=1", "--batch-size=64", before=limit_to)
        loader = code == 127 and "shared librar" in err
        check(code == 0 or loader or is_one_error(code, err, 1), f"train in {megabytes} MB: exit {code}: {err[-300:]!r}")


def test_disk():
    fails(*TRAIN, "--run=text.txt", says="text.txt")
    fails(*TRAIN, "--run=text.txt/run", says="text.txt")
    fails(*TRAIN, "--run=/proc/nowhere/run", says="/proc/nowhere")
    fails(*TRAIN, "--run=" + "x" * 300, says="xxx")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    fails(*TRAIN, "--run=new", before=small_files, says=("new", "too large"), leaves=["./new"])
    check(not any("tmp" in name or name.startswith("state") for name in os.listdir("new")), f"train: left {os.listdir('new')}")
    shutil.rmtree("new")
    # .log.new: room for the next manifest, which is made beforehand and never read
    fails(*TRAIN, "--run=run", "--steps=40", before=small_files, says="run", leaves=["tfevents", "config.txt", ".log.new"])
    fails("convert", "run", "new.bin", before=small_files, says="new.bin")
    fails("convert", "run", "a.bin", before=small_files, says="a.bin")
    fails("convert", "run", "new_hub", before=small_files, says="new_hub", leaves=["./new_hub"])
    check(not os.path.isdir("new_hub") or os.listdir("new_hub") == [], "convert: parts of a folder are left")
    fails("tokenize", "-o", "new", "text.txt", before=small_files, says="new_")
    fails("tokenize", "-o", "tok", "text.txt", before=small_files, says="tok_")
    fails("plot", "run", "-o", "new.svg", before=small_files, says="new.svg")

    os.makedirs("mount")
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", "mount"],
                                                   stderr=subprocess.DEVNULL).returncode == 0
    if not mounted:
        print("skipped: full disk, read-only disk (no tmpfs can be mounted here)")
        return
    try:
        line = fails(*TRAIN, "--run=mount/run", leaves=["mount"])
        check("space" in line and "mount/run" in line, f"full disk: {line!r}")
        check(not any("tmp" in name or name.startswith("state") for name in os.listdir("mount/run")), "full disk: half a state")
        shutil.rmtree("mount/run")
        fails("convert", "run", "mount/hub", says=("mount", "space"), leaves=["mount/hub"]) if os.path.getsize("a.bin") > 256 << 10 else None
        subprocess.run(["mount", "-o", "remount,ro", "mount"], check=True)
        for args in ((*TRAIN, "--run=mount/run"), ("convert", "run", "mount/a.bin"), ("convert", "run", "mount/hub"),
                     ("tokenize", "-o", "mount/new", "text.txt"), ("plot", "run", "-o", "mount/x.svg")):
            fails(*args, says=("mount", "read-only"))
    finally:
        subprocess.run(["umount", "mount"], check=True)


def test_stdout():
    for args in (("sample", "run", "--tokens=20"), ("sample", "run", "--tokens=1000000000", "--count=1000000"), ("--help",), ("doctor", "--threads=1"), ("--preset=list",),
                 ("eval", "run", "--val-data=tok_val_*.bin"), ("tokenize", "--decode", "tok_val_000000.bin")):
        with open("/dev/full", "wb") as full:
            fails(*args, stdout=full, says="stdout")
        fails(*args, before=lambda: os.close(1), says="stdout")
    for name, more in (("full", {}), ("closed", {"before": lambda: [os.close(fd) for fd in range(3)]})):
        with open("/dev/full", "wb") as full:
            code, _, err = run(*TRAIN, "--quiet", f"--run=silent_{name}", stdout=full, **more)
        check(code == 0 and "error" not in err, f"train, stdout {name}: exit {code}, {err!r}")
        with open(f"silent_{name}/metrics.jsonl") as f:
            check(len([json.loads(line) for line in f]) == 3, f"train, stdout {name}: metrics.jsonl")
        with open(segment(f"silent_{name}"), "rb") as file:
            check(file.read(8) == b"toroidck", f"train, stdout {name}: the checkpoint")


def test_commands():
    make_text()
    test_tokenize()
    val_loss = test_train()
    test_convert()
    test_sample()
    test_eval(val_loss)
    test_plot()
    test_help()


def main():
    global outside
    with tempfile.TemporaryDirectory() as outside:
        return lab.main("cli", test_commands, test_wrong_values, test_wrong_flags, test_bad_data, test_bad_text,
                        test_bad_models, test_wrong_sizes, test_little_memory, test_disk, test_stdout)


if __name__ == "__main__":
    sys.exit(main())
