#!/usr/bin/env bash
# swift.sh: OpenStack Swift with its S3 interface (s3api, tempauth) on one folder, on this machine, for the tests of the
# store. Signatures are checked.
#
#   swift.sh up FOLDER [PORT]     starts it (Debian: swift swift-proxy swift-account swift-container swift-object memcached);
#                                 writes FOLDER/env, to be sourced
#   swift.sh down FOLDER          ends it
# Runs as root; objects lie in FOLDER, which must be on a file system with extended attributes.
set -euo pipefail
command=${1:?up or down} folder=$(realpath -m "${2:?a folder}") port=${3:-7580}

down() {
    local pid
    for pid in "$folder"/*.pid; do
        [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null
    done
    return 0
}

backend() { # backend KIND PORT
    cat >"$folder/$1.conf" <<END
[DEFAULT]
devices = $folder/srv
mount_check = false
bind_ip = 127.0.0.1
bind_port = $2
workers = 1
user = root
swift_dir = $folder
disable_fallocate = true
log_level = WARNING
[pipeline:main]
pipeline = $1-server
[app:$1-server]
use = egg:swift#$1
END
}

proxy() {
    cat >"$folder/proxy.conf" <<END
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
workers = 2
user = root
swift_dir = $folder
log_level = WARNING
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$((port + 4))
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_lab_writer = lab-secret-key .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
rate_limit_segments_per_sec = 0
[filter:dlo]
use = egg:swift#dlo
END
}

start() { # start NAME COMMAND...
    local name=$1
    shift
    SWIFT_TEST_CONFIG_FILE='' "$@" >"$folder/$name.log" 2>&1 &
    echo $! >"$folder/$name.pid"
}

up() {
    local kind at=1
    rm -rf "$folder"
    mkdir -p "$folder/srv/d1"
    printf '[swift-hash]\nswift_hash_path_prefix = lab\nswift_hash_path_suffix = lab\n' >/etc/swift/swift.conf
    cp /etc/swift/swift.conf "$folder/swift.conf"
    for kind in account container object; do
        (cd "$folder" && swift-ring-builder $kind.builder create 8 1 1 &&
            swift-ring-builder $kind.builder add "r1z1-127.0.0.1:$((port + at))/d1" 1 &&
            swift-ring-builder $kind.builder rebalance) >/dev/null
        backend $kind $((port + at))
        start $kind swift-$kind-server "$folder/$kind.conf"
        at=$((at + 1))
    done
    proxy
    start memcached memcached -u nobody -l 127.0.0.1 -p $((port + 4))
    start proxy swift-proxy-server "$folder/proxy.conf"
    for _ in $(seq 100); do
        curl -s -o /dev/null "http://127.0.0.1:$port/" && break
        sleep 0.3
    done
    echo "export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=lab:writer AWS_SECRET_ACCESS_KEY=lab-secret-key" \
        >"$folder/env"
    echo "Swift's S3 interface answers at http://127.0.0.1:$port; . $folder/env"
}

"$command"
