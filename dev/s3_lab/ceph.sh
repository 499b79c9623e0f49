#!/usr/bin/env bash
# ceph.sh: a Ceph S3 server (radosgw) of one monitor and one OSD in memory, on this machine, for the tests of the store.
#
#   ceph.sh up FOLDER [PORT]      starts it (Debian: ceph-mon ceph-osd radosgw ceph-common); writes FOLDER/env, to be sourced
#   ceph.sh down FOLDER           ends it
# Nothing is kept; it is as a server of tests, not of data. Runs as root.
set -euo pipefail
command=${1:?up or down} folder=$(realpath -m "${2:?a folder}") port=${3:-7480}

down() {
    local pid
    for pid in "$folder"/*.pid; do
        [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null
    done
    return 0
}

configuration() {
    cat <<END
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $folder/ring
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
mon allow pool size one = true
mon allow pool delete = true
osd objectstore = memstore
memstore device bytes = 4294967296
memstore page set = false
run dir = $folder
log file = $folder/\$name.log
admin socket = $folder/\$name.asok
pid file = $folder/\$name.pid
ms bind ipv6 = false
[mon.a]
mon data = $folder/mon
[osd.0]
osd data = $folder/osd
keyring = $folder/osd/keyring
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw dns name = localhost
rgw enable usage log = false
END
}

up() {
    rm -rf "$folder"
    mkdir -p "$folder/osd"
    configuration >"$folder/ceph.conf"
    export CEPH_CONF=$folder/ceph.conf
    monmaptool --create --clobber --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]" \
        --fsid "$(sed -n 's/^fsid = //p' "$folder/ceph.conf")" "$folder/monmap" >/dev/null
    ceph-authtool --create-keyring "$folder/ring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
    ceph-authtool "$folder/ring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
    ceph-mon -c "$CEPH_CONF" --mkfs -i a --monmap "$folder/monmap" --keyring "$folder/ring"
    ceph-mon -c "$CEPH_CONF" -i a
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    timeout 120 ceph -c "$CEPH_CONF" osd new "$uuid" >/dev/null
    timeout 60 ceph -c "$CEPH_CONF" auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' -o "$folder/osd/keyring"
    ceph-osd -c "$CEPH_CONF" -i 0 --mkfs --osd-uuid "$uuid"
    ceph-osd -c "$CEPH_CONF" -i 0
    radosgw -c "$CEPH_CONF" -n client.admin --keyring "$folder/ring"
    timeout 120 radosgw-admin -c "$CEPH_CONF" user create --uid=writer --display-name=writer --access-key=LABKEY \
        --secret=lab-secret-key >/dev/null
    for _ in $(seq 100); do
        curl -s -o /dev/null "http://127.0.0.1:$port/" && break
        sleep 0.3
    done
    echo "export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=LABKEY AWS_SECRET_ACCESS_KEY=lab-secret-key" \
        >"$folder/env"
    echo "radosgw answers at http://127.0.0.1:$port; . $folder/env"
}

"$command"
