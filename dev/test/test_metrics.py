#!/usr/bin/env python3
"""TensorBoard's own reader opens the event files of a run that was stopped and resumed: same values as metrics.jsonl."""
import json
import math
import os
import subprocess
import sys
import tempfile

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("skipped: the Python package tensorboard is not installed")
    sys.exit(77)
import struct

TAGS = {"loss/train": "loss", "loss/val": "val_loss", "norm": "norm", "lr": "lr",
        "tokens_per_second": "tokens_per_second", "mfu": "mfu"}


def as_float32(value):
    return math.nan if value is None else struct.unpack("f", struct.pack("f", value))[0]


def main():
    program = os.path.join(os.environ.get("BUILD", "build"), "test", "test_metrics")
    if not os.path.exists(program):
        print(f"skipped: {program} is not built (make tests)")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, "write", folder], check=True)
        with open(os.path.join(folder, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        assert [line["step"] for line in lines] == list(range(31)), "each step stands once"
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        assert set(events.Tags()["scalars"]) == set(TAGS), events.Tags()["scalars"]
        values = 0
        for tag, key in TAGS.items():
            expected = [(line["step"], as_float32(line[key])) for line in lines if key in line]
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            assert found == expected, f"{tag}: {found} is not {expected}"
            values += len(found)
    print(f"metrics: TensorBoard reads {values} values of {len(TAGS)} curves as written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
