# shellcheck shell=bash
# mpirun.sh: sourced by mpirun_node.sh and mpirun_hosts.sh: mpirun that can be stopped without loss.

# launch ARGUMENT...: becomes mpirun. On Ctrl-C or SIGTERM mpirun would kill its ranks after one second, however long a
# step takes. SIGUSR2 it passes on: the ranks save and exit 75, and so does mpirun. It runs in a session of its own, as
# the terminal's Ctrl-C would reach it there.
launch() {
    local code=0 pid
    setsid mpirun "$@" &
    pid=$!
    trap 'kill -USR2 "$pid"; trap "kill -TERM $pid" INT TERM' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        code=0
        wait "$pid" || code=$?
    done
    exit "$code"
}
