#!/usr/bin/env python3
"""Writes llmc/data/unicode_tables.h: which code points are letters, numbers and white space.

usage: python3 dev/reference/make_unicode_tables.py > llmc/data/unicode_tables.h

What counts is not the newest Unicode but the one of the reference encoder, so the classes are asked of tiktoken
itself: an encoding whose pattern matches only the class gives a token for a character of it and none for any other.
(The tokenizers library of Hugging Face agrees on every code point; Python's own unicodedata is older.)
"""
import sys

import tiktoken


def ranges_of(pattern):
    """The code points that the pattern matches, as [first, last] ranges."""
    probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks={bytes([i]): i for i in range(256)},
                              special_tokens={})
    ranges = []
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000 or not probe.encode_ordinary(chr(code)):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return ranges


def unicode_version(letters):
    """Told by letters that a version was the first to have."""
    newest = "14.0 or older"
    for version, code in (("15.0", 0x1E4D0), ("15.1", 0x2EBF0), ("16.0", 0x1C89), ("17.0", 0x323B0)):
        if any(first <= code <= last for first, last in letters):
            newest = version
    return newest


def print_table(name, ranges):
    print(f"\nstatic const uint32_t {name}[][2] = {{")
    line = "   "
    for first, last in ranges:
        item = f" {{{first:#x}, {last:#x}}},"
        if len(line) + len(item) > 110:
            print(line)
            line = "   "
        line += item
    print(line)
    print("};")


def main():
    letters, numbers, spaces = ranges_of(r"\p{L}"), ranges_of(r"\p{N}"), ranges_of(r"\s")
    print(f"""/* unicode_tables.h: the code points of the classes \\p{{L}}, \\p{{N}} and \\s of Unicode {unicode_version(letters)}
 * as ranges [first, last], rising; all other code points are of no class. Written by
 * dev/reference/make_unicode_tables.py from the classes of tiktoken {tiktoken.__version__}; do not edit. */
/* clang-format off */
#ifndef LLMC_UNICODE_TABLES_H
#define LLMC_UNICODE_TABLES_H
#include <stdint.h>""")
    print_table("unicode_letters", letters)
    print_table("unicode_numbers", numbers)
    print_table("unicode_spaces", spaces)
    print("#endif")
    print(f"{len(letters)} letter, {len(numbers)} number, {len(spaces)} space ranges", file=sys.stderr)


if __name__ == "__main__":
    main()
