#!/bin/sh
# Fetches the first SHARDS of FineWeb's sample of 10 billion tokens, tokenized with GPT-2's tokenizer: files of 100
# million tokens, 200 MB each, in the format of llm.c, and one for validation. Run it again to go on or to get more.
#
# usage: data/fineweb.sh [SHARDS (1 to 103)] [FOLDER (data/fineweb)]
# then:  train_gpt2 --train-data='data/fineweb/fineweb_train_*.bin' --val-data='data/fineweb/fineweb_val_*.bin'
#
# Source: the tokens of HuggingFaceFW/fineweb (sample-10BT) as published at huggingface.co/datasets/kjj0/fineweb10B-gpt2.
# Each file is checked with the SHA-256 that the server states for it, and that its size is what its header says.
set -eu
shards=${1:-1}
case $shards in
'' | *[!0-9]*) echo "fineweb.sh: '$shards' is not a number of shards (1 to 103)" >&2; exit 2 ;;
esac
if [ "$shards" -lt 1 ] || [ "$shards" -gt 103 ]; then
    echo "fineweb.sh: there are 1 to 103 shards, not $shards" >&2
    exit 2
fi
folder=${2:-$(dirname "$0")/fineweb}
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/fetch.sh"
base=${FINEWEB_URL:-https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main}

# Whether the file is a token file of the size that its header says: magic 20240520, version 1, number of tokens.
is_token_file() { # FILE
    # shellcheck disable=SC2046
    set -- "$1" $(od -A n -t u1 -N 12 "$1")
    [ $# = 13 ] && [ "$2 $3 $4 $5 $6 $7 $8 $9" = "136 216 52 1 1 0 0 0" ] || return 1
    [ "$(fetch_bytes "$1")" = $((1024 + 2 * (${10} + 256 * (${11} + 256 * (${12} + 256 * ${13}))))) ]
}

# The SHA-256 of URL as the server states it; '-' if it does not.
stated_sha256() { # URL
    sha=$(curl --head --silent --connect-timeout 5 --max-time 20 "$1" | tr -d '\r"' |
        sed -n 's/^[Xx]-[Ll]inked-[Ee][Tt]ag: *\([0-9a-f]\{64\}\)$/\1/p' | head -n 1)
    echo "${sha:--}"
}

get() { # NAME
    if [ -f "$folder/$1" ] && is_token_file "$folder/$1"; then return 0; fi
    echo "fetching $1 ($2 of $((shards + 1)), up to 200 MB)" >&2
    for try in 1 2 3; do
        failed=0
        fetch "$base/$1" "$folder/$1" "$(stated_sha256 "$base/$1")" is_token_file || failed=$?
        if [ $failed = 0 ]; then
            is_token_file "$folder/$1" && return 0
            rm -f "$folder/$1"
            fetch_fail "$1: not a token file, removed"
            return 1
        fi
        [ $failed = 2 ] && return 1
        [ -f "$folder/$1.part" ] || return 1 # nothing came at all: trying again at once is no use
        echo "trying again to go on ($try of 3)" >&2
    done
    return 1
}

get fineweb_val_000000.bin 1
for i in $(seq 1 "$shards"); do
    get "$(printf 'fineweb_train_%06d.bin' "$i")" $((i + 1))
done
echo "$folder: $shards shards for training and one for validation" >&2
