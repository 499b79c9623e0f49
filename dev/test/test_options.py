#!/usr/bin/env python3
"""bash completes with the completion that the option table makes; zsh parses its own; groff sets the man page."""
import os
import shutil
import subprocess
import sys

CASES = [  # words of the command line, what completion must offer, what it must not
    (["tok"], ["tokenize"], ["train"]),
    (["--sched"], ["--schedule"], ["--steps"]),
    (["--schedule", ""], ["cosine", "linear", "constant", "wsd"], []),
    (["--schedule", "=", "co"], ["cosine", "constant"], ["wsd"]),
    (["--schedule", "="], ["cosine", "wsd"], []),
    (["sample", "--t"], ["--temperature", "--top-k", "--tokens"], ["--train-data"]),
    (["plot", "--x", "s"], ["step", "seconds"], ["tokens"]),
    (["train", "--init", "Makef"], ["Makefile"], []),
    (["train", "--steps", ""], [], ["train"]),
]


def main():
    program = os.path.join(os.environ.get("BUILD", "build"), "test", "test_options")
    if not os.path.exists(program):
        print(f"skipped: {program} is not built (make tests)")
        return 77

    def run(*command, text=None):
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True)

    completion = run(program, "--help=bash").stdout
    for words, offered, withheld in CASES:
        line = " ".join(f"'{word}'" for word in ["train_gpt2"] + words)
        script = (f"{completion}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words)}\n_train_gpt2\n"
                  "printf '%s\\n' \"${COMPREPLY[@]}\"\n")
        found = run("bash", "-c", script).stdout.split()
        assert set(offered) <= set(found), (words, found)
        assert not set(withheld) & set(found), (words, found)
    checked = ["bash"]
    if shutil.which("zsh"):
        run("zsh", "-n", text=run(program, "--help=zsh").stdout)
        checked.append("zsh")
    if shutil.which("groff"):
        page = run("groff", "-man", "-Tascii", "-ww", "-P-cbou", text=run(program, "--help=man").stdout)
        assert not page.stderr, page.stderr
        assert "TOROID_BATCH_SIZE" in page.stdout and "--total-batch N" in page.stdout
        checked.append("groff")
    print("options: " + ", ".join(checked) + " take what the table makes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
