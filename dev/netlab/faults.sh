#!/usr/bin/env bash
# faults.sh [ROUNDS [SEED]]: faults injected at random while a program communicates in a lab of netlab.sh. Every round
# draws a fault, a host and a moment from the seed; the round is good if what must happen happens in time:
#
#   kill    a rank dies (SIGKILL)                   the job ends, not with success; a line names a rank
#   stop    a rank stops (SIGSTOP)                  the same, within the timeout
#   lost    all wires of a host are cut             the same
#   cut     one wire is cut                         the job goes on and succeeds, with right results
#
# and nothing is left running in the lab. Prints a line a round and a summary; exits 1 if a round was bad.
#
#   sudo dev/netlab/faults.sh 200 1
#   BENCH=build/bench/bench_comm
#   COMMAND='./train_gpt2 --preset=tiny ... --comm-timeout=5'   instead of comm_bench; LAB_SHAPE=2x2x2 LAB_RATE=100mbit
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-20} seed=${2:-1}
shape=${LAB_SHAPE:-2x2x2} rate=${LAB_RATE:-100mbit} timeout=${TIMEOUT:-5}
netlab=dev/netlab/netlab.sh
export NETLAB=${NETLAB:-netfault}
$netlab down
$netlab up torus "$shape" "$rate" || exit $?
log=$(mktemp)
trap '$netlab down; rm -f "$log"' EXIT
trap 'exit 1' INT TERM
topology=$($netlab topology)
command=${COMMAND:-${BENCH:-build/bench/bench_comm} --backend=torus --topology=file:$topology -b 256K -e 4M -n 15 -w 1 --timeout=$timeout}
program=$(basename "${command%% *}")
IFS=x read -ra dims <<<"$shape"
axes=(x y z w)
hosts=$(ip netns list | grep -cE "^${NETLAB}[0-9]+( |\$)")
RANDOM=$seed

# Processes of the program on host $1, or on all of them.
processes() {
    local name pid
    for name in $(ip netns list | awk -v lab="$NETLAB" '$1 ~ "^" lab "[0-9]+$" {print $1}'); do
        [ $# = 0 ] || [ "$name" = "$NETLAB$1" ] || continue
        for pid in $(ip netns pids "$name"); do
            if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${program:0:15}" ]; then echo "$pid"; fi
        done
    done
}

place() { # place HOST: its coordinates
    local rest=$1 d text=""
    for d in "${dims[@]}"; do
        text+="${text:+,}$((rest % d))"
        rest=$((rest / d))
    done
    echo "$text"
}

wires() { # wires HOST up|down
    local a
    for ((a = 0; a < ${#dims[@]}; a++)); do
        ((dims[a] == 1)) || $netlab link "$(place "$1")" "+${axes[a]}" "$2"
        ((dims[a] <= 2)) || $netlab link "$(place "$1")" "-${axes[a]}" "$2"
    done
}

inject() { # inject FAULT HOST AXIS
    local pids
    mapfile -t pids < <(processes "$2")
    case $1 in
    kill) kill -9 "${pids[@]}" ;;
    stop) kill -STOP "${pids[@]}" ;;
    lost) wires "$2" down ;;
    cut) $netlab link "$(place "$2")" "+${axes[$3]}" down ;;
    esac
}

bad=0
faults=(kill stop lost cut)
for ((round = 1; round <= rounds; round++)); do
    fault=${faults[RANDOM % 4]} host=$((RANDOM % hosts)) axis=$((RANDOM % ${#dims[@]})) tenths=$((RANDOM % 30))
    # shellcheck disable=SC2086
    timeout -k 5 120 $netlab run $command >"$log" 2>&1 &
    job=$!
    for ((i = 0; i < 100; i++)); do
        [ "$(processes | wc -l)" -lt "$hosts" ] || break
        sleep 0.1
    done
    sleep "$((1 + tenths / 10)).$((tenths % 10))"
    start=$(date +%s%N)
    inject "$fault" "$host" "$axis" || true
    code=0
    wait "$job" || code=$?
    took=$((($(date +%s%N) - start) / 1000000))
    sleep 0.2
    left=$(processes | wc -l)
    verdict=good
    if [ "$fault" = cut ]; then
        [ "$code" = 0 ] || verdict="BAD: it did not go on"
    else
        [ "$code" != 0 ] || verdict="BAD: it ended with success"
        ((took < 1000 * timeout + 5000)) || verdict="BAD: it took too long"
        grep -q "rank [0-9]" "$log" || verdict="BAD: no rank is named"
    fi
    ((took < 100000)) || verdict="BAD: it hung" # 'timeout' ended it
    [ "$left" = 0 ] || verdict="BAD: $left processes are left"
    echo "round $round: $fault, host $host$([ "$fault" != cut ] || echo " +${axes[axis]}"): exit $code after $took ms, $verdict"
    if [ "$verdict" != good ]; then
        bad=$((bad + 1))
        sed 's/^/    /' "$log" | tail -n 12
    fi
    # shellcheck disable=SC2046
    [ "$left" = 0 ] || kill -9 $(processes) || true
    case $fault in
    lost) wires "$host" up ;;
    cut) $netlab link "$(place "$host")" "+${axes[axis]}" up ;;
    esac
done
echo "faults: $rounds rounds with seed $seed on $shape, $bad bad"
((bad == 0))
