#!/usr/bin/env bash
# cuda_registers.sh LOG BUDGET [--write]: what ptxas -v said in LOG as a table: kernel, registers and bytes of static
# shared memory for each architecture. Compares with the committed table BUDGET, so that a change that costs occupancy is
# seen without a GPU; --write replaces it. Exits 1 if a kernel spills, is in only one of the two, or uses more registers
# (in the units of 8 that a GPU hands out) or shared memory than BUDGET says; architectures that BUDGET lacks are printed
# and not judged.
set -euo pipefail
log=$1 budget=$2

table() {
    c++filt <"$log" | awk '
        /Compiling entry function/ {
            split($0, quoted, "\047"); arch = quoted[4]; name = quoted[2]
            sub(/^void /, "", name); gsub(/\(anonymous namespace\)::/, "", name); sub(/\(.*/, "", name)
            gsub(/\((int|bool|unsigned int)\)/, "", name); gsub(/, /, ",", name)
        }
        /bytes spill stores/ && !/ 0 bytes spill stores, 0 bytes spill loads/ { print "spills " name " " arch " " $0; next }
        /Used [0-9]+ registers/ {
            match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5); shared = 0
            if (match($0, /[0-9]+ bytes smem/)) { shared = substr($0, RSTART, RLENGTH); sub(/ .*/, "", shared) }
            printf "%-58s %-7s %4d %7d\n", name, arch, registers, shared
        }' | LC_ALL=C sort
}

current=$(table)
if grep '^spills' <<<"$current"; then
    exit 1
fi
if [ "${3:-}" = --write ]; then
    {
        echo "# Registers per thread and bytes of static shared memory per block, as ptxas $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') reports them."
        echo "# Made and checked by dev/cuda_registers.sh (make cuda_registers)."
        printf '%s\n' "$current"
    } >"$budget"
fi
awk '
    FNR == NR { if ($0 !~ /^#/) { budget[$1 " " $2] = $3; shared[$1 " " $2] = $4; judged[$2] = 1 } next }
    { key = $1 " " $2; seen[key] = 1; here[$2] = 1; note = "" }
    judged[$2] && !(key in budget) { note = "  not in the table"; bad = 1 }
    key in budget && int(($3 + 7) / 8) > int((budget[key] + 7) / 8) { note = "  more than " budget[key] " registers"; bad = 1 }
    key in budget && $4 > shared[key] { note = note "  more than " shared[key] " bytes"; bad = 1 }
    { print $0 note }
    END {
        for (key in budget) { split(key, part, " "); if (here[part[2]] && !(key in seen)) { print key ": in the table, not in the build"; bad = 1 } }
        if (bad) print "registers: not as committed (make cuda_registers_write, if that is meant)"
        exit bad
    }' "$budget" - <<<"$current"
