#!/bin/sh
# Fetches tiny Shakespeare (1.1 MB of text, Andrej Karpathy's char-rnn) to data/tinyshakespeare.txt.
# usage: data/tinyshakespeare.sh
set -eu
cd "$(dirname "$0")/.."
. data/fetch.sh
file=data/tinyshakespeare.txt
fetch "${TINYSHAKESPEARE_URL:-https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt}" \
    "$file" 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
echo "$file: $(fetch_bytes "$file") bytes, checksum right" >&2
