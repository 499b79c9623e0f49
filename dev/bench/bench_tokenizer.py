#!/usr/bin/env python3
"""GPT-2's tokenizer on tiny Shakespeare, one thread: ours against tiktoken's encode_ordinary, interleaved.

usage: python3 dev/bench/bench_tokenizer.py [ROUNDS]
Prints a line for each and the ratio of the medians; the bar is 3. Both start with what they keep for all texts (the
merges); ours also with an empty cache in each round. tiktoken's second line leaves out the making of Python's list.
Needs gpt2_vocab.bpe and tinyshakespeare.txt in data/ or $TOROID_DATA."""
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test"))
import tokenizer_lib as lib

BAR = 3.0


def main():
    merges_path, text_path = lib.find_data("gpt2_vocab.bpe"), lib.find_data("tinyshakespeare.txt")
    if not merges_path or not text_path:
        print("skipped: no gpt2_vocab.bpe or tinyshakespeare.txt in data/ or $TOROID_DATA")
        return 77
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    with open(text_path, encoding="utf-8", newline="") as file:
        text = file.read()
    data = text.encode()
    with tempfile.TemporaryDirectory() as folder:
        ours = lib.Tokenizer(merges_path, folder)
        tik = lib.tiktoken_encoding(lib.read_merges(merges_path))
        assert ours.encode(data) == tik.encode_ordinary(text)
        runs = {"ours": lambda: ours.encode_raw(data),
                "tiktoken encode_ordinary": lambda: tik.encode_ordinary(text),
                "tiktoken to buffer": lambda: tik._core_bpe.encode_to_tiktoken_buffer(text, set())}
        seconds = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:26} {1e3 * value:7.2f} ms  {1e-6 * len(data) / value:7.1f} MB/s  "
              f"{value / median['ours']:5.2f} x ours")
    ratio = median["tiktoken encode_ordinary"] / median["ours"]
    print(f"ratio {ratio:.2f}, bar {BAR} ({'met' if ratio >= BAR else 'missed'}); medians of {rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
