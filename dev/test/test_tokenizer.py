#!/usr/bin/env python3
"""The tokenizer against tiktoken and transformers, all made from the same merges: the ids must be equal.

usage: python3 dev/test/test_tokenizer.py [ROUNDS]
GPT-2's own merges are compared if gpt2_vocab.bpe is in data/ (data/gpt2_bpe.sh fetches it) or in $TOROID_DATA; merges
trained here on this repository's text always are. Exits 77 without tiktoken and transformers."""
import os
import random
import sys
import tempfile

import lab
import tokenizer_lib as lib
from lab import check

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000\x1c\x1d\x1e\x1f\u200b\u180e\ufeff"
SCRIPTS = ((0x41, 0x5a), (0xc0, 0x24f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x52f), (0x590, 0x6ff),
           (0x900, 0xdff), (0xe00, 0xe7f), (0x1100, 0x11ff), (0x2000, 0x206f), (0x2100, 0x218f), (0x2460, 0x24ff),
           (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xfe00, 0xfe0f), (0x1d7c0, 0x1d7ff),
           (0x1f300, 0x1f6ff), (0x1f900, 0x1f9ff), (0x20000, 0x2a6df), (0xe0100, 0xe01ef))
SNIPPETS = ("'s", "'t", "'re", "'ve", "'ll", "'d", "'m", "'S", "''", "' s", "'r", "'v", "'l", "'lx", "don't", "\r\n",
            "\r\n\r\n", "  ", "\n\n\n", " \n ", "👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "a\u0308\u0323", "½", "²", "Ⅷ", "१२३", "<|endoftext|>",
            "http://x.y/z?a=1&b=2", "0x1F", "3.14159", "____", "=====", "\\n", "\0", "\x7f", "ﬁ", "ß", "İ", "𝔘𝔫𝔦", "한국어", "日本語",
            " the", "the", "Hello, world!", "\t\tif (x) {\n")


def random_piece(r):
    kind = r.randrange(10)
    if kind < 3:
        return r.choice(SNIPPETS)
    if kind == 3:
        return "".join(r.choice(SPACES) for _ in range(r.randrange(1, 6)))
    if kind == 4:
        return r.choice(SPACES) * r.randrange(1, 90)
    if kind == 5:
        low, high = r.choice(SCRIPTS)
        return "".join(chr(r.randint(low, high)) for _ in range(r.randrange(1, 12)))
    if kind == 6:  # all planes
        codes = (r.randrange(0x110000) for _ in range(r.randrange(1, 6)))
        return "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
    if kind == 7:  # a long run of one class
        return "".join(r.choice(r.choice(("ab", "xyz", "0123456789", "-=_", "éü"))) for _ in range(r.randrange(1, 200)))
    return "".join(chr(r.randint(32, 126)) for _ in range(r.randrange(1, 12)))


def random_text(r):
    return "".join(random_piece(r) for _ in range(r.randrange(0, 30)))


def cut(r, data):
    """The bytes in random pieces, cut also inside of characters."""
    pieces = []
    while data:
        n = r.choice((1, 1, 2, 3, 7, 50, 1000))
        pieces.append(data[:n])
        data = data[n:]
    return pieces


def test_random_unicode(ours, tik, hf, rounds):
    r = random.Random(1)
    for i in range(rounds):
        text = random_text(r)
        data = text.encode()
        ids = ours.encode(data)
        check(ids == tik.encode_ordinary(text), f"tiktoken on {text!r}")
        check(ours.decode(ids) == data, f"round trip of {text!r}")
        if i % 4 == 0:
            check(ours.encode_pieces(cut(r, data)) == ids, f"pieces of {text!r}")
            # its special tokens are looked for in the text, so a text that holds one is not comparable
            plain = text.replace("<|endoftext|>", "")
            check(ours.encode(plain.encode()) == hf.encode(plain), f"transformers on {plain!r}")


def test_every_code_point(ours, tik):
    """Each code point between letters, numbers, blanks and by itself: the classes must be the references'."""
    batch = []
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000:
            c = chr(code)
            batch.append(f"a{c} {c}1{c}{c} \n{c}")
        if len(batch) == 4096 or code == 0x10FFFF:
            text = ".".join(batch)
            check(ours.encode(text.encode()) == tik.encode_ordinary(text), f"code points up to {code:#x}")
            batch = []


def test_long_words(ours, tik):
    """Long pre-tokens go through the heap; some have many equal pairs."""
    r = random.Random(2)
    for text in ("a" * 5000, "ab" * 3000, " " * 4097, "\n" * 3001 + "x", "=" * 2500, "the" * 900,
                 "".join(r.choice("etaoinshrdlu") for _ in range(20000)), "".join(r.choice("01") for _ in range(6000)),
                 "".join(chr(r.randint(0x4E00, 0x9FFF)) for _ in range(5000))):
        check(ours.encode(text.encode()) == tik.encode_ordinary(text), f"long {text[:8]!r} x {len(text)}")
    for n in range(1, 80):
        check(ours.encode(b"x" * n) == tik.encode_ordinary("x" * n), f"x * {n}")


def test_invalid_utf8(ours, tik, rounds):
    """tiktoken takes str; for bytes the pattern is run by `regex` with a character of no class for a bad byte."""
    import regex
    pattern, r = regex.compile(lib.PATTERN), random.Random(3)
    parts = [bytes([b]) for b in range(0x80, 0x100)] + [b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x80",
             b"\xf4\x90\x80\x80", b"\xe0\x80\x80", "é".encode(), "😀".encode(), "中".encode(), b"a", b" ", b"\n", b"1",
             b"'s", b"-"]
    for _ in range(rounds):
        data = b"".join(r.choice(parts) for _ in range(r.randrange(1, 30)))
        text = data.decode("utf-8", errors="surrogateescape")
        expected = []
        for piece in pattern.findall(text):
            expected += tik._core_bpe.encode_single_piece(piece.encode("utf-8", errors="surrogateescape"))
        ids = ours.encode(data)
        check(ids == expected, f"invalid {data!r}")
        check(ours.decode(ids) == data, f"round trip of invalid {data!r}")
        check(ours.encode_pieces(cut(r, data)) == ids, f"pieces of invalid {data!r}")


def test_shakespeare(ours, tik):
    path = lib.find_data("tinyshakespeare.txt")
    if not path:
        return
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    ids = ours.encode(text.encode())
    check(len(ids) == 338025, f"tiny Shakespeare has {len(ids)} tokens")
    check(ids == tik.encode_ordinary(text), "tiny Shakespeare")


def compare(path, rounds, is_gpt2):
    with tempfile.TemporaryDirectory() as folder:
        ours = lib.Tokenizer(path, folder)
        merges = lib.read_merges(path)
        tik = lib.tiktoken_encoding(merges)
        hf = lib.transformers_tokenizer(merges, path, folder)
        test_random_unicode(ours, tik, hf, rounds)
        test_every_code_point(ours, tik)
        test_long_words(ours, tik)
        test_invalid_utf8(ours, tik, rounds)
        if is_gpt2:
            test_shakespeare(ours, tik)
        ours.save(os.path.join(folder, "saved"))
        check(lib.read_merges(os.path.join(folder, "saved")) == merges, "the saved merges")


def main():
    try:
        import regex, tiktoken, transformers  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        return 77
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    path = lib.find_data("gpt2_vocab.bpe")
    with tempfile.TemporaryDirectory() as folder:
        compare(lib.train_merges(os.path.join(folder, "trained"), 5000), rounds, False)
    if path:
        compare(path, rounds, True)
    else:
        print("GPT-2's own merges were not compared: no gpt2_vocab.bpe in data/ or $TOROID_DATA")
    return lab.report("tokenizer")


if __name__ == "__main__":
    sys.exit(main())
