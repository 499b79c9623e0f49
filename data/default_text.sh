#!/bin/sh
# Prints the path of a text to try the trainer on, the best that can be had at once, and says on stderr which it is:
# tiny Shakespeare if it is here or comes within seconds; else the King James Bible from Debian's package bible-kjv,
# installed if this is root; else, with no network at all, this repository's own text.
# usage: text=$(data/default_text.sh)
set -eu
cd "$(dirname "$0")/.."
. data/fetch.sh

answer() { # PATH NAME
    echo "text: $2, $(fetch_bytes "$1") bytes ($1)" >&2
    echo "$1"
    exit 0
}

if FETCH_CONNECT_SECONDS=3 timeout 15 sh data/tinyshakespeare.sh 2>/dev/null; then
    answer data/tinyshakespeare.txt "tiny Shakespeare"
fi

if ! command -v bible >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "text: tiny Shakespeare cannot be fetched; trying the package bible-kjv" >&2
    quick="-o Acquire::http::Timeout=5 -o Acquire::https::Timeout=5 -o Acquire::Retries=0 -o DPkg::Lock::Timeout=20"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive timeout 60 apt-get $quick install -y -q bible-kjv >/dev/null 2>&1 ||
        { timeout 60 apt-get $quick update -q >/dev/null 2>&1 &&
            DEBIAN_FRONTEND=noninteractive timeout 60 apt-get $quick install -y -q bible-kjv >/dev/null 2>&1; } || true
fi
if command -v bible >/dev/null && bible -f gen1:1-rev22:21 </dev/null >data/bible.txt.part 2>/dev/null &&
    [ "$(fetch_bytes data/bible.txt.part)" -gt 4000000 ]; then
    mv data/bible.txt.part data/bible.txt
    answer data/bible.txt "the King James Bible"
fi
rm -f data/bible.txt.part

# C, headers, scripts and documents, in the order of their names.
find . -type f \( -name '*.[ch]' -o -name '*.md' -o -name '*.sh' -o -name '*.py' -o -name Makefile \) \
    ! -path './build/*' ! -path './runs/*' ! -path '*/.*/*' ! -name unicode_tables.h | LC_ALL=C sort |
    while IFS= read -r name; do cat "$name"; done >data/repository.txt
[ -s data/repository.txt ] || { fetch_fail "no text found at all"; exit 1; }
answer data/repository.txt "this repository's own text, as there is no network"
