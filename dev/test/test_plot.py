#!/usr/bin/env python3
"""Every plot that test_plot draws is well-formed XML with the names, curves and points that it should have."""
import glob
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def main():
    program = os.path.join(os.environ.get("BUILD", "build"), "test", "test_plot")
    if not os.path.exists(program):
        print(f"skipped: {program} is not built (make tests)")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, "write", folder], check=True, stdout=subprocess.DEVNULL)
        plots = {os.path.basename(p): ElementTree.parse(p).getroot() for p in glob.glob(folder + "/*.svg")}
    assert len(plots) >= 8, sorted(plots)
    for name, root in plots.items():
        assert root.tag == SVG + "svg", name
        for path in root.iter(SVG + "path"):
            assert not set(path.get("d")) - set("MLVhmvl0123456789.- "), (name, path.get("d"))
    first = plots["1.svg"]
    texts = [t.text for t in first.iter(SVG + "text")]
    assert "a & <b>" in texts and "step" in texts and "3.1800" in texts, texts
    styles = [p.get("class") for p in first.iter(SVG + "path")]
    assert styles.count("raw s0") == 1 and styles.count("val s0") == 1 and styles.count("nan") == 1, styles
    assert len(list(first.iter(SVG + "circle"))) == 10 + 1, "validation points and the legend's"
    print(f"plot: {len(plots)} plots are well-formed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
