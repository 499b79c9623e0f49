#!/bin/sh
# Fetches the merges of GPT-2's tokenizer (456 KB, published by OpenAI) to data/gpt2_vocab.bpe.
# usage: data/gpt2_bpe.sh; then: train_gpt2 tokenize --tokenizer=gpt2 ...
set -eu
cd "$(dirname "$0")/.."
. data/fetch.sh
file=data/gpt2_vocab.bpe
fetch "${GPT2_BPE_URL:-https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe}" \
    "$file" 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
echo "$file: $(fetch_bytes "$file") bytes, checksum right" >&2
