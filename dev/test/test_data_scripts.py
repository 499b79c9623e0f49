#!/usr/bin/env python3
"""The download scripts of data/ against a server on this machine: whole files, resuming, wrong content, no network."""
import hashlib
import http.server
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading

import lab
from lab import ROOT, check

files, asked = {}, []


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        content = files.get(os.path.basename(self.path))
        asked.append((self.command, os.path.basename(self.path), self.headers.get("Range")))
        if content is None:
            self.send_error(404)
            return
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content[first:])

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *_):
        pass


def run(folder, script, *arguments, **environment):
    """Runs a script of the copy in `folder`; its exit status and stderr."""
    done = subprocess.run(["sh", os.path.join(folder, "data", script), *arguments], capture_output=True, text=True,
                          env={**os.environ, "no_proxy": "*", **environment}, timeout=120)
    return done.returncode, done.stderr.strip(), done.stdout.strip()


def token_file(tokens):
    return struct.pack("<256i", 20240520, 1, tokens, *[0] * 253) + b"\1\0" * tokens


def test_fetch(folder, server):
    """fetch itself, through a script with a checksum of our choice."""
    content, path = b"some text\n" * 1000, os.path.join(folder, "data", "file")
    with open(os.path.join(folder, "data", "get.sh"), "w") as file:
        file.write('. "$(dirname "$0")/fetch.sh"\nfetch "$1" "$2" "$3"\n')
    files["file"] = content
    sha = hashlib.sha256(content).hexdigest()
    code, error, _ = run(folder, "get.sh", f"{server}/file", path, sha)
    check(code == 0 and open(path, "rb").read() == content, f"whole file: {error}")
    asked.clear()
    code, error, _ = run(folder, "get.sh", f"{server}/file", path, sha)
    check(code == 0 and not asked, f"a good file is fetched again: {asked}")
    os.remove(path)
    with open(path + ".part", "wb") as file:
        file.write(content[:1234])
    code, error, _ = run(folder, "get.sh", f"{server}/file", path, sha)
    check(code == 0 and open(path, "rb").read() == content and asked[0][2] == "bytes=1234-", f"resume: {error} {asked}")
    code, error, _ = run(folder, "get.sh", f"{server}/file", path + "2", "0" * 64)
    check(code == 1 and "not the expected content" in error and error.count("\n") == 0, f"wrong content: {error}")
    check(not os.path.exists(path + "2") and not os.path.exists(path + "2.part"), "wrong content is left")
    code, error, _ = run(folder, "get.sh", f"{server}/none", path + "2", sha)
    check(code == 1 and "refuses" in error and error.count("\n") == 0, f"not there: {error}")
    for url in ("http://127.0.0.1:9/file", "http://host.invalid/file"):
        code, error, _ = run(folder, "get.sh", url, path + "2", sha)
        check(code == 2 and "no network?" in error and error.count("\n") == 0, f"no network: {code} {error}")


def test_fineweb(folder, server):
    for name, tokens in (("fineweb_val_000000.bin", 70000), ("fineweb_train_000001.bin", 3), ("fineweb_train_000002.bin", 300)):
        files[name] = token_file(tokens)
    target = os.path.join(folder, "fineweb")
    code, error, _ = run(folder, "fineweb.sh", "2", target, FINEWEB_URL=server)
    names = ("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin")
    check(code == 0 and sorted(os.listdir(target)) == list(names), f"fineweb: {code} {error}")
    asked.clear()
    code, error, _ = run(folder, "fineweb.sh", "2", target, FINEWEB_URL=server)
    check(code == 0 and not asked, "good files are fetched again")
    files["fineweb_train_000003.bin"] = token_file(300)[:-2]
    code, error, _ = run(folder, "fineweb.sh", "3", target, FINEWEB_URL=server)
    check(code == 1 and "not a token file" in error, f"a file shorter than its header says: {error}")
    check(not os.path.exists(os.path.join(target, "fineweb_train_000003.bin")), "it is left")
    for shards in ("0", "104", "x", "-1"):
        code, error, _ = run(folder, "fineweb.sh", shards, target, FINEWEB_URL=server)
        check(code == 2 and error.count("\n") == 0, f"{shards} shards: {error}")
    code, error, _ = run(folder, "fineweb.sh", "4", target, FINEWEB_URL="http://127.0.0.1:9")
    check(code == 1 and "no network?" in error, f"fineweb without network: {error}")


def test_default_text(folder):
    """Without tiny Shakespeare, without network: the Bible where it is installed, else the repository's own text."""
    closed = {"TINYSHAKESPEARE_URL": "http://127.0.0.1:9/x"}
    tools = os.path.join(folder, "tools")
    os.mkdir(tools)
    for tool in ("sh", "dirname", "basename", "cut", "wc", "tr", "find", "sort", "cat", "timeout", "curl", "sha256sum",
                 "env", "mkdir", "rm", "mv"):
        os.symlink(shutil.which(tool), os.path.join(tools, tool))
    with open(os.path.join(tools, "id"), "w") as file: # not root, so that nothing is installed
        file.write("#!/bin/sh\necho 1000\n")
    os.chmod(os.path.join(tools, "id"), 0o755)
    code, error, path = run(folder, "default_text.sh", PATH=tools, **closed)
    check(code == 0 and path == "data/repository.txt" and "repository" in error, f"repository: {code} {error}")
    check("tokens" in open(os.path.join(folder, path)).read(), "the text of the repository")
    if shutil.which("bible"):
        os.symlink(shutil.which("bible"), os.path.join(tools, "bible"))
        code, error, path = run(folder, "default_text.sh", PATH=tools, **closed)
        check(code == 0 and path == "data/bible.txt" and "King James" in error, f"Bible: {code} {error}")


def main():
    for tool in ("curl", "timeout"):
        if not shutil.which(tool):
            print(f"skipped: {tool} is missing")
            return 77
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "data"))
        for name in os.listdir(os.path.join(ROOT, "data")):
            if name.endswith(".sh"):
                shutil.copy(os.path.join(ROOT, "data", name), os.path.join(folder, "data"))
        shutil.copytree(os.path.join(ROOT, "llmc", "data"), os.path.join(folder, "llmc", "data"))
        test_fetch(folder, address)
        test_fineweb(folder, address)
        test_default_text(folder)
    return lab.report("data_scripts")


if __name__ == "__main__":
    sys.exit(main())
