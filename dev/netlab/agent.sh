#!/usr/bin/env bash
# agent.sh HOST COMMAND: runs a shell command on a host of netlab.sh: in its network namespace, under its name, with the
# lab's /etc/hosts and a folder for temporary files of its own. mpirun takes it for ssh (plm_rsh_agent).
set -euo pipefail
while [[ ${1:-} == -* ]]; do shift; done
host=$1
shift
export TMPDIR=$NETLAB_STATE/tmp/$host
mkdir -p "$TMPDIR"
# shellcheck disable=SC2016
exec nsenter --net="/run/netns/$host" unshare --uts --mount --propagation private \
    sh -c 'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; shift 2; eval "$*"' agent "$host" "$NETLAB_STATE" "$@"
