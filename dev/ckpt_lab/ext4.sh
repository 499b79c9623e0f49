#!/usr/bin/env bash
# ext4.sh: power cuts of a real ext4 under the checkpoint store: records every block that the driver's checkpoints write and
# every flush (write_log under a loop device), then mounts disks that a power cut may leave, and restores from each.
#
#   dev/ckpt_lab/ext4.sh [IMAGES] [SEED] [driver options...]     root; exits 77 and says why where it cannot run
#
# CHECKPOINTS=N (150): how many are recorded. BUILD=folder: where the programs are (build).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
images=${1:-200} seed=${2:-1} build=${BUILD:-build}
shift $(($# < 2 ? $# : 2))
skip() { echo "$*" && exit 77; }
[ "$(id -u)" = 0 ] || skip "not root: a file system cannot be mounted"
for command in mkfs.ext4 losetup fusermount3; do
    command -v "$command" >/dev/null || skip "no $command (install e2fsprogs, mount, fuse3)"
done
for device in /dev/fuse /dev/loop-control; do
    [ -w "$device" ] || skip "no $device (a container without devices?)"
done
for program in driver images; do
    [ -x "$build/ckpt_lab/$program" ] || skip "no $build/ckpt_lab/$program: make tests"
done
[ -x "$build/ckpt_lab/write_log" ] || skip "no $build/ckpt_lab/write_log: install libfuse3-dev, then make tests"

work=$(mktemp -d "${TMPDIR:-/tmp}/ckpt_ext4.XXXXXX") memory=$work
[ ! -w /dev/shm ] || memory=$(mktemp -d /dev/shm/ckpt_ext4.XXXXXX)
loop='' mounted=''
checking=''
finish() {
    [ -z "$checking" ] || { kill "$checking" && wait "$checking"; } 2>/dev/null
    [ -z "$mounted" ] || umount "$work/mount" 2>/dev/null
    [ -z "$loop" ] || losetup -d "$loop" 2>/dev/null
    fusermount3 -u "$work/fuse" 2>/dev/null
    wait
    rm -rf "$work" "$memory"
}
trap finish EXIT
trap 'exit 1' TERM INT
mkdir "$work/mount" "$work/fuse"
truncate -s 32M "$work/base.img"
mkfs.ext4 -q -b 4096 -J size=4 -E lazy_itable_init=0 -O ^resize_inode "$work/base.img" || exit 1
cp "$work/base.img" "$work/disk.img"
"$build/ckpt_lab/write_log" "$work/disk.img" "$work/log" "$work/fuse" 2>"$work/fuse.txt" &
server=$!
for _ in $(seq 50); do
    [ ! -e "$work/fuse/disk" ] || break
    sleep 0.1
done
[ -e "$work/fuse/disk" ] || skip "FUSE does not work here: $(tail -n 1 "$work/fuse.txt")"
loop=$(losetup -f --show "$work/fuse/disk" 2>"$work/loop.txt") || skip "no loop device: $(tail -n 1 "$work/loop.txt")"
mount -o noatime,commit=1 "$loop" "$work/mount" || skip "ext4 cannot be mounted"
mounted=1
"$build/ckpt_lab/driver" write "$work/mount/staging" --checkpoints="${CHECKPOINTS:-150}" --acks="$work/fuse/mark" "$@" || exit 1
umount "$work/mount" && mounted=''
losetup -d "$loop" && loop=''
for _ in $(seq 50); do # the loop device lets go a little later, or never, where another mount namespace has it too
    fusermount3 -u "$work/fuse" 2>/dev/null && break
    sleep 0.1
done
kill "$server" 2>/dev/null
wait "$server"
"$build/ckpt_lab/images" "$work/base.img" "$work/log" "$build/ckpt_lab/driver" "$memory" --images="$images" --seed="$seed" "$@" &
checking=$!
wait $checking
