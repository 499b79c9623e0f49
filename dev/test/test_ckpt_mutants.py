#!/usr/bin/env python3
"""test_ckpt_mutants.py: can the crash test of the checkpoint store fail? Breaks the store in one place at a time, such as a
sync that is left out, and expects test_ckpt_crash (of reading: test_ckpt_flips, test_ckpt_read_all) to find each. Breakages that
show only after a second failure, such as a disk that fails while a killed run recovers, take millions of states and are left to
long runs.

    test_ckpt_mutants.py [--states=N] [NAME...]"""
import os
import subprocess
import sys
import tempfile
import time

BUILD = os.environ.get("BUILD", "build")
CC = os.environ.get("CC", "cc")
SOURCE = "llmc/ckpt"

# name: file, what is there, what is there instead
MUTANTS = {
    "segment-not-synced": (
        "ckpt_shard_write.c", "           io->body->sync(io, file, err);", "           io->body->wait(io, 0, err);"),
    "record-not-synced": (
        "ckpt_log.c", "    if (!log->io->body->sync(log->io, log->file, err)) return false;\n    log->count += count;",
        "    log->count += count;"),
    "record-before-data": (
        "ckpt.c", "    if (file) {\n        ok =",
        "    if (file) {\n        c->shard.record.segment = segment->n;\n"
        "        ckpt_log_append(&c->ring.log, &c->shard.record, 1, err);\n        ok ="),
    "chunk-not-checked": (
        "ckpt_read.c", "    return crc32c(seed, data, bytes) == p->table->crcs[chunk];",
        "    return crc32c(seed, data, bytes) | 1;"),
    "segment-name-not-synced": (
        "ckpt_ring.c", 'ok = ok && body->sync_directory(ring->io, path_of(ring, "seg"), err);', ""),
    "manifest-name-not-synced": (
        "ckpt_log.c", "read_records(log, err) && io->body->sync(io, log->file, err) &&\n"
        "        io->body->sync_directory(io, folder, err))", "read_records(log, err))"),
    "rewritten-not-synced": (
        "ckpt_log.c", "ok = ok && body->sync(log->io, file, err) && body->rename", "ok = ok && body->rename"),
    "rewritten-name-not-synced": (
        "ckpt_log.c", "body->rename(log->io, aside, log->path, err) &&\n"
        "         body->sync_directory(log->io, log->folder, err);",
        "body->rename(log->io, aside, log->path, err);"),
    "drop-not-written": (
        "ckpt_ring.c", "    if (!ckpt_log_append(&ring->log, drops, count, err)) return false;\n", ""),
    "live-segment-taken": ("ckpt_ring.c", "if (ring->segments[at].live || is_read(", "if (is_read("),
    "one-too-few-kept": (
        "ckpt_retain.c", ">= ring->config->keep && ckpt_id_compare", ">= ring->config->keep - 1 && ckpt_id_compare"),
    "pin-ignored": ("ckpt_retain.c", "    if (m && m->pinned) return true;\n", ""),
    "best-ignored": ("ckpt_retain.c", " && ckpt_id_compare(id, best) != 0 &&", " &&"),
    "upload-ignored": (
        "ckpt_retain.c", "    return ring->config->keep_until_uploaded && !(m && m->uploaded);", "    return false;"),
    "agreed-not-committed": ("ckpt_ring.c", "    if (newest && !newest->committed) {", "    if (0) {"),
    "last-record-overwritten": (
        "ckpt_log.c", "log->blocks = at / CKPT_BLOCK + last + 1;", "log->blocks = at / CKPT_BLOCK + last;"),
    "memory-released-early": (
        "ckpt_shard_write.c", "    bool ok = submit(&s, w->header", "    released(ctx);\n    bool ok = submit(&s, w->header"),
    "only-first-of-row-checked": (
        "ckpt_read.c", "        if (!check_chunks(&p, part->data,", "        if (i == 0 && !check_chunks(&p, part->data,"),
    "row-not-in-memory": (
        "ckpt_read_all.c", "(char *)b->wanted.data == (char *)a->wanted.data + a->bytes", "true"),
    "row-not-in-file": ("ckpt_read_all.c", "b->offset == a->offset + a->bytes", "true"),
}
READING = {"chunk-not-checked": "test_ckpt_flips", "only-first-of-row-checked": "test_ckpt_read_all",
           "row-not-in-memory": "test_ckpt_read_all", "row-not-in-file": "test_ckpt_read_all"}


def build(folder, name, file, text):
    source, program = f"{folder}/{name}.c", f"{folder}/{name}"
    with open(source, "w") as f:
        f.write(text)
    parts = [READING[name]] if name in READING else ["test_ckpt_crash", "ckpt_io_sim", "ckpt_sim_disk"]
    objects = [f"{BUILD}/dev/test/{part}.o" for part in parts]
    subprocess.run([CC, "-std=c11", "-O1", "-fopenmp", "-Illmc", "-w", "-o", program, source, *objects,
                    f"{BUILD}/libtoroid.a", *libraries(), "-lm", "-lpthread"], check=True)
    return program


def libraries():
    with open(f"{BUILD}/config.mk") as f:
        return [word for line in f if "_LIBS :=" in line for word in line.split(":=")[1].split()]


def main():
    wanted = [a for a in sys.argv[1:] if not a.startswith("--")]
    states = next((a for a in sys.argv[1:] if a.startswith("--states=")), "--states=60000")
    subprocess.run(["make", "-s", f"BUILD={BUILD}", f"CC={CC}",
                    *(f"{BUILD}/test/{test}" for test in {"test_ckpt_crash", *READING.values()})], check=True)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, there, instead) in MUTANTS.items():
            if wanted and name not in wanted:
                continue
            with open(f"{SOURCE}/{file}") as f:
                text = f.read()
            if text.count(there) != 1:
                print(f"{name}: {file} has {text.count(there)} times, not once: {there}")
                failures += 1
                continue
            program = build(folder, name, file, text.replace(there, instead))
            start = time.monotonic()
            try:
                result = subprocess.run([program] if name in READING else [program, states], capture_output=True, text=True, timeout=120)
                said = next((line for line in (result.stdout + result.stderr).splitlines() if line), "")
                caught = result.returncode != 0
            except subprocess.TimeoutExpired:
                caught, said = True, "hangs"
            failures += not caught
            print(f"{'caught' if caught else 'NOT CAUGHT'} {name} ({time.monotonic() - start:.1f} s): {said[:200]}", flush=True)
    print(f"{len(MUTANTS)} mutants, {failures} not caught")
    return 1 if failures else 0


sys.exit(main())
