#!/usr/bin/env bash
# quickstart.sh: from nothing to samples: installs what is missing, builds, trains a small GPT on text, samples from it.
#
#   ./scripts/quickstart.sh            a few minutes on two CPU cores
#   STEPS=200 ./scripts/quickstart.sh  shorter
#   TEXT=my.txt ./scripts/quickstart.sh  on your own text
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh
run=${RUN:-runs/quickstart}
say() { printf '\n== %s\n' "$*"; }

have gcc make || install_packages gcc make libc6-dev

say "building"
make -j"$(nproc)" train_gpt2

say "finding text"
text=${TEXT:-$(data/default_text.sh)}

say "making tokens (one a byte)"
./train_gpt2 tokenize --output data/quickstart "$text"

say "training (Ctrl-C saves and stops; the same command goes on)"
./train_gpt2 --preset=tiny --train-data='data/quickstart_train_*.bin' --val-data='data/quickstart_val_*.bin' \
    --run="$run" --log-every=20 --sample-every=250 ${STEPS:+--steps="$STEPS"}

say "the loss curve"
./train_gpt2 plot "$run" --output="$run/loss.svg"

say "a sample"
./train_gpt2 sample "$run" --tokens=500

cat <<END

Done. Go on with:
  ./train_gpt2 sample $run --prompt='Once upon a time' --temperature=0.7
  ./train_gpt2 --help
END
