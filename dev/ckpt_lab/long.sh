#!/usr/bin/env bash
# long.sh: the crash tests of the checkpoint store at full length, raw results on stdout (dev/records/ckpt_crash.txt).
#
#   nice dev/ckpt_lab/long.sh [PART...]     parts: states kills images mutants flips; all of them takes about two hours
#
# STATES=10000000 KILLS=1000 IMAGES=20000 SEED=1 JOBS=(cores) BUILD=build
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${BUILD:-build} seed=${SEED:-1} jobs=${JOBS:-$(nproc)}
[ $# -gt 0 ] || set -- states kills images mutants flips
make -s BUILD="$build" tests || exit 1
echo "commit $(git rev-parse --short HEAD), $(uname -sr), $jobs jobs"
failed=0
part() { # part COMMAND...: says what it runs and how long it took; what the store says about injected faults is left out
    local start=$SECONDS
    echo "\$ $*"
    "$@" 2>&1 | grep -v '^warning: ' || failed=1
    echo "($((SECONDS - start)) s)"
}
for name in "$@"; do
    case $name in
    states) part "$build/test/test_ckpt_crash" "--states=${STATES:-10000000}" "--seed=$seed" "--jobs=$jobs" ;;
    kills)
        folder=$(mktemp -d)
        part dev/ckpt_lab/kill.py "--kills=${KILLS:-1000}" "--seed=$seed" --longest=0.3 \
            --write "$build/ckpt_lab/driver write $folder/staging" --check "$build/ckpt_lab/driver check $folder/staging"
        rm -rf "$folder"
        ;;
    images) part dev/ckpt_lab/ext4.sh "${IMAGES:-20000}" "$seed" ;;
    mutants) part python3 dev/test/test_ckpt_mutants.py ;;
    flips) part "$build/test/test_ckpt_flips" --bytes=1494000000 ;;
    *) echo "long.sh: $name: no such part" && exit 2 ;;
    esac
done
exit $failed
