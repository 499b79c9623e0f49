#!/usr/bin/env bash
# check_includes.sh: do the includes point one way? Layers, from the bottom: base; model, data, comm, ckpt; run; the
# programs. A kernel set (cpu, cuda) implements model/kernels.h and model/device.h and may include model and base.
# Prints every include that breaks this, and exits 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

allowed() { # allowed FROM TO: may a file of folder FROM include one of folder TO?
    case "$1:$2" in
    "$1:$1" | *:base) return 0 ;;
    cpu:model | cuda:model) return 0 ;;
    run:model | run:data | run:comm | run:ckpt) return 0 ;;
    *) return 1 ;;
    esac
}

bad=0
while IFS=: read -r file line text; do
    from=${file#llmc/}
    from=${from%%/*}
    to=$(sed -E 's/^[^"]*"([^"]*)".*/\1/' <<<"$text")
    if [ ! -e "llmc/$to" ]; then
        echo "$file:$line: \"$to\" is not llmc/$to (includes are written from llmc/)"
        bad=1
    elif ! allowed "$from" "${to%%/*}"; then
        echo "$file:$line: $from must not include $to"
        bad=1
    fi
done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' -r llmc)
[ "$bad" = 0 ] && echo "includes: all arrows point one way"
exit "$bad"
