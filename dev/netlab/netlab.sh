#!/usr/bin/env bash
# netlab.sh: a network of hosts on one machine, to see what a topology is worth. Every host is a network namespace,
# every wire a pair of virtual interfaces, each end shaped to the rate of the wire.
#
#   netlab.sh up torus 2x2x2 100mbit     hosts on a torus: one wire to each neighbour
#   netlab.sh up clos 8 100mbit          hosts on a switch: one uplink each
#   netlab.sh run COMMAND...             mpirun inside it, one rank per host, each with its own host name
#   netlab.sh with torus 2x2x2 100mbit COMMAND...   up, run and down in one
#   netlab.sh link 0,0,0 +x down|up|20mbit          down: both ways, in silence; a rate: this way only
#   netlab.sh topology [now]             path of the topology file, for --topology=file:...; now: with what link changed
#   netlab.sh status
#   netlab.sh down                       removes all of it, whatever state it is in
#
# Beside its wires every host has an interface on a control network that is not shaped, over which mpirun starts and
# ranks find each other, and an address (10.99.0.x) that is routed over the wires, for programs that know no torus.
# It needs root, and touches nothing but namespaces whose names begin with $NETLAB; else it says why and exits 77.
#
# NETLAB=netlab       the name of this lab: several can be there at once
# NETLAB_MTU=9000  NETLAB_BURST=40k  NETLAB_LIMIT=2m  NETLAB_CC=reno   packets, shaping, congestion control
# NETLAB_MPIRUN=...   further options of mpirun
set -euo pipefail
lab=${NETLAB:-netlab}
mtu=${NETLAB_MTU:-9000} burst=${NETLAB_BURST:-40k} limit=${NETLAB_LIMIT:-2m} congestion=${NETLAB_CC:-reno}
state=/run/netlab/$lab
here=$(cd "$(dirname "$0")" && pwd)
axes=(x y z w)
hosts_max=64

skip() {
    echo "netlab: $1" >&2
    exit 77
}
fail() {
    echo "netlab: $1" >&2
    exit 1
}
usage() {
    sed -n '2,/^set /{/^# \{0,1\}/s///p}' "$0" >&2
    exit 2
}

[[ $lab =~ ^[a-z][a-z0-9]{0,9}$ ]] || fail "NETLAB='$lab': use up to 10 small letters and digits"

can_it_run() {
    local tool
    [ "$(id -u)" = 0 ] || skip "network namespaces need root (try: sudo $0 ...)"
    for tool in ip tc nsenter unshare; do
        command -v "$tool" >/dev/null || skip "$tool is missing (apt install iproute2 util-linux)"
    done
    ip netns add "$lab-try" 2>/dev/null || skip "no network namespaces can be made here (a container without CAP_SYS_ADMIN?)"
    # that tbf is there is seen here, not after half the lab is built
    if ! { ip -n "$lab-try" link add t0 type veth peer name t1 &&
        tc -n "$lab-try" qdisc add dev t0 root tbf rate 1mbit burst 40k limit 1m; } 2>/dev/null; then
        ip netns del "$lab-try"
        skip "no shaped veth pairs can be made here (kernel modules veth, sch_tbf)"
    fi
    ip netns del "$lab-try"
}

namespaces() {
    ip netns list 2>/dev/null | awk -v lab="$lab" '$1 ~ "^" lab "(-[a-z]+|[0-9]+)$" {print $1}'
}

# Ends what runs in the lab's hosts, then removes them; wires go with their ends.
down() {
    local name
    for name in $(namespaces); do
        # shellcheck disable=SC2046
        kill -9 $(ip netns pids "$name" 2>/dev/null) 2>/dev/null || true
    done
    for name in $(namespaces); do ip netns del "$name" || true; done
    rm -rf "$state"
}

# add_host NAME: a namespace whose kernel settings are those of every host.
add_host() {
    local settings=(net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
        net.ipv4.tcp_slow_start_after_idle=0 net.ipv4.tcp_no_metrics_save=1)
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip netns exec "$1" sysctl -qw "${settings[@]}"
    ip netns exec "$1" sysctl -qw "net.ipv4.tcp_congestion_control=$congestion" 2>/dev/null ||
        echo "netlab: no congestion control '$congestion' here; the kernel's default is used" >&2
}

# The control network: a bridge in a namespace of its own.
add_control() {
    local i batch
    ip netns add "$lab-control"
    batch="link add bridge type bridge\nlink set bridge up"
    for ((i = 0; i < hosts; i++)); do
        batch+="\nlink add c$i type veth peer name control netns $lab$i\nlink set c$i master bridge up"
    done
    echo -e "$batch" | ip -n "$lab-control" -batch -
    : >"$state/hostfile"
    echo "127.0.0.1 localhost" >"$state/hosts"
    for ((i = 0; i < hosts; i++)); do
        echo -e "addr add 10.77.0.$((i + 1))/16 dev control\nlink set control up" | ip -n "$lab$i" -batch -
        echo "$lab$i slots=1" >>"$state/hostfile"
        echo "10.77.0.$((i + 1)) $lab$i" >>"$state/hosts"
    done
}

# shape HOST INTERFACE RATE: of what leaves there. The burst is kept small: it is what a wire may send beyond its rate.
shape() {
    tc -n "$1" qdisc replace dev "$2" root tbf rate "$3" burst "$burst" limit "$limit"
}
# Every packet is larger than this burst: all are dropped, in silence.
silence() {
    tc -n "$1" qdisc replace dev "$2" root tbf rate 1kbit burst 1 limit 1
}

is_rate() {
    [[ $1 =~ ^[1-9][0-9]{0,5}(kbit|mbit|gbit)$ ]]
}
# As topology files write it.
rate_text() {
    local number=${1%%[kmg]bit}
    case $1 in
    *kbit) echo "${number}kbit/s" ;;
    *mbit) echo "${number}Mbit/s" ;;
    *gbit) echo "${number}Gbit/s" ;;
    esac
}

# What a wire takes at once, as topology files write it.
burst_text() {
    local number=${burst%%[kKmMbB]*}
    case $burst in
    *[kK]*) echo "$((number * 1024))B" ;;
    *[mM]*) echo "$((number * 1048576))B" ;;
    *) echo "${number}B" ;;
    esac
}

# What a message costs in a lab, whose hosts share the processors of this machine.
message_text() {
    echo "$((20 * hosts / $(nproc)))us"
}

# Coordinates of host $1 into c.
coordinates() {
    local rest=$1 d
    c=()
    for d in "${dims[@]}"; do
        c+=($((rest % d)))
        rest=$((rest / d))
    done
}
# Number of the host at coordinates c.
host_at() {
    local a n=0
    for ((a = ${#dims[@]} - 1; a >= 0; a--)); do n=$((n * dims[a] + c[a])); done
    echo $n
}
place_text() {
    local IFS=,
    echo "${c[*]}"
}

# interface_at AXIS DIRECTION: the name of host c's end of that wire: xp towards +, xm towards -. An axis of 2 has one.
interface_at() {
    if [ "${dims[$1]}" = 2 ]; then
        if [ "${c[$1]}" = 0 ]; then echo "${axes[$1]}p"; else echo "${axes[$1]}m"; fi
    elif [ "$2" = + ]; then
        echo "${axes[$1]}p"
    else
        echo "${axes[$1]}m"
    fi
}

# neighbour AXIS DIRECTION: moves c there.
neighbour() {
    local step=1
    [ "$2" = + ] || step=$((dims[$1] - 1))
    c[$1]=$(((c[$1] + step) % dims[$1]))
}

up_torus() {
    local i j a d rate=$2 wires="" text topology="" tc_batch
    local -a setup shaping
    IFS=x read -ra dims <<<"$1"
    [[ $1 =~ ^[1-9][0-9]?(x[1-9][0-9]?){0,3}$ ]] || fail "'$1' is no shape of up to 4 dims (such as 2x2x2)"
    hosts=1
    for d in "${dims[@]}"; do hosts=$((hosts * d)); done
    ((hosts <= hosts_max)) || fail "$1 has $hosts hosts; at most $hosts_max fit into a lab"
    for ((i = 0; i < hosts; i++)); do
        add_host "$lab$i"
        setup[i]="link add own type veth peer name own-peer\nlink set own up\nlink set own-peer up"
        setup[i]+="\naddr add 10.99.0.$((i + 1))/32 dev own"
        shaping[i]=""
    done
    add_control
    text=$(printf '%*s' ${#dims[@]} '')
    topology="torus $1 wrap ${text// /1}"
    for ((a = 0; a < ${#dims[@]}; a++)); do
        topology+="\naxis ${axes[a]} $(rate_text "$rate") 50us"
    done
    topology+="\nburst $(burst_text)\nmessage $(message_text)"
    for ((i = 0; i < hosts; i++)); do
        for ((a = 0; a < ${#dims[@]}; a++)); do
            coordinates "$i"
            ((dims[a] == 1 || (dims[a] == 2 && c[a] == 1))) && continue
            topology+="\naddress $(place_text) +${axes[a]} 10.10$a.$i.1"
            neighbour $a +
            j=$(host_at)
            topology+="\naddress $(place_text) $( ((dims[a] == 2)) && echo + || echo -)${axes[a]} 10.10$a.$i.2"
            wires+="link add ${axes[a]}p netns $lab$i mtu $mtu type veth peer name ${axes[a]}m netns $lab$j mtu $mtu\n"
            setup[i]+="\naddr add 10.10$a.$i.1/30 dev ${axes[a]}p\nlink set ${axes[a]}p up"
            setup[j]+="\naddr add 10.10$a.$i.2/30 dev ${axes[a]}m\nlink set ${axes[a]}m up"
            tc_batch="root tbf rate $rate burst $burst limit $limit\n"
            shaping[i]+="qdisc add dev ${axes[a]}p $tc_batch"
            shaping[j]+="qdisc add dev ${axes[a]}m $tc_batch"
        done
    done
    echo -e "$wires" | ip -batch -
    for ((i = 0; i < hosts; i++)); do
        echo -e "${setup[i]}" | ip -n "$lab$i" -batch -
        echo -e "${shaping[i]}" | tc -n "$lab$i" -batch -
        routes "$i" | ip -n "$lab$i" -batch -
    done
    echo -e "$topology" >"$state/topology"
}

# Routes of host $1 to every other one's 10.99 address: the axes in order, each the shorter way round.
routes() {
    local i=$1 j a up way gateway owner
    local -a from to
    coordinates "$i"
    from=("${c[@]}")
    for ((j = 0; j < hosts; j++)); do
        [ "$j" = "$i" ] && continue
        coordinates "$j"
        to=("${c[@]}")
        for ((a = 0; from[a] == to[a]; a++)); do :; done
        up=$(((to[a] - from[a] + dims[a]) % dims[a]))
        way=+
        if ((2 * up > dims[a] || (dims[a] == 2 && from[a] == 1))); then way=-; fi
        c=("${from[@]}")
        if [ $way = + ]; then
            gateway=10.10$a.$i.2
        else
            neighbour "$a" -
            owner=$(host_at)
            gateway=10.10$a.$owner.1
        fi
        echo "route add 10.99.0.$((j + 1))/32 via $gateway src 10.99.0.$((i + 1))"
    done
}

up_clos() {
    local i rate=$2 half
    if [[ ! $1 =~ ^[1-9][0-9]?$ ]] || (($1 > hosts_max)); then fail "'$1': a lab has 1 to $hosts_max hosts"; fi
    hosts=$1 dims=("$1")
    for ((i = 0; i < hosts; i++)); do add_host "$lab$i"; done
    add_control
    ip netns add "$lab-switch"
    echo -e "link add bridge type bridge\nlink set bridge mtu $mtu up" | ip -n "$lab-switch" -batch -
    # a ring over the switch; both directions of it share a host's uplink
    half=$rate
    if ((hosts > 2)); then
        half=$((${rate%%[kmg]bit} * 500))
        case $rate in
        *kbit) half=$((half / 1000))kbit ;;
        *mbit) half=${half}kbit ;;
        *gbit) half=${half}mbit ;;
        esac
    fi
    echo -e "torus $hosts wrap 1\naxis x $(rate_text "$half") 50us\nburst $(burst_text)\nmessage $(message_text)" >"$state/topology"
    for ((i = 0; i < hosts; i++)); do
        ip -n "$lab-switch" link add "s$i" mtu "$mtu" type veth peer name uplink mtu "$mtu" netns "$lab$i"
        ip -n "$lab-switch" link set "s$i" master bridge up
        echo -e "addr add 10.99.0.$((i + 1))/24 dev uplink\nlink set uplink up" | ip -n "$lab$i" -batch -
        shape "$lab$i" uplink "$rate"
        shape "$lab-switch" "s$i" "$rate"
        ((hosts == 1)) || echo "address $i +x 10.99.0.$((i + 1))" >>"$state/topology"
        ((hosts <= 2)) || echo "address $i -x 10.99.0.$((i + 1))" >>"$state/topology"
    done
}

up() {
    [ $# = 3 ] || usage
    is_rate "$3" || fail "'$3' is no rate (such as 100mbit)"
    can_it_run
    [ -z "$(namespaces)" ] || fail "there is a lab already ('$0 down' removes it; NETLAB=name makes another)"
    mkdir -p "$state"
    trap 'down; exit 1' INT TERM
    trap '[ $? = 0 ] || down' EXIT
    case $1 in
    torus | clos) "up_$1" "$2" "$3" ;;
    *) usage ;;
    esac
    echo "$1 $2 $3 $hosts" >"$state/shape"
    trap - EXIT INT TERM
}

# Sets kind, shape, rate, hosts and dims to those of the lab that is up.
read_state() {
    [ "$(id -u)" = 0 ] || skip "network namespaces need root (try: sudo $0 ...)"
    [ -r "$state/shape" ] || fail "there is no lab ('$0 up torus 2x2x2 100mbit' makes one)"
    read -r kind shape rate hosts <"$state/shape"
    IFS=x read -ra dims <<<"$shape"
}

# run COMMAND...: in a namespace, with a host name, of the first host; agent.sh does the same for the others.
run() {
    local options
    [ $# -ge 1 ] || usage
    read_state
    command -v mpirun >/dev/null || skip "mpirun is missing (apt install openmpi-bin)"
    read -ra options <<<"${NETLAB_MPIRUN:-}"
    export NETLAB_STATE=$state
    set -- mpirun --allow-run-as-root -np "$hosts" --hostfile "$state/hostfile" --map-by node --bind-to none \
        --mca plm_rsh_agent "$here/agent.sh" --mca plm_rsh_no_tree_spawn 1 --mca oob_tcp_if_include 10.77.0.0/16 \
        --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include 10.99.0.0/16 --mca mpi_yield_when_idle 1 \
        "${options[@]}" "$@"
    "$here/agent.sh" "${lab}0" "$(printf 'exec'; printf ' %q' "$@")"
}

with() {
    [ $# -ge 4 ] || usage
    up "$1" "$2" "$3"
    trap down EXIT
    trap 'exit 1' INT TERM
    shift 3
    run "$@"
}

link() {
    [ $# = 3 ] || usage
    local a direction=${2:0:1} axis=${2:1} host name other_host other_name here there
    read_state
    [ "$kind" = torus ] || fail "only a torus has links between hosts"
    IFS=, read -ra c <<<"$1"
    for ((a = 0; a < ${#dims[@]}; a++)); do
        if [[ ! ${c[a]:-} =~ ^[0-9]{1,2}$ ]] || ((10#${c[a]} >= dims[a])); then fail "'$1' is no place of $shape"; fi
    done
    [ "${#c[@]}" = "${#dims[@]}" ] || fail "'$1' is no place of $shape"
    for ((a = 0; a < ${#dims[@]}; a++)); do [ "${axes[a]}" = "$axis" ] && break; done
    if [[ $direction != [+-] ]] || ((a == ${#dims[@]} || dims[a] == 1)); then fail "'$2' is no link of $shape"; fi
    host=$lab$(host_at) name=$(interface_at $a "$direction")
    ((dims[a] > 2)) || direction=+ # its one wire
    here="$(place_text) $direction$axis"
    neighbour $a "$direction"
    other_host=$lab$(host_at)
    other_name=${axes[a]}$([ "${name:1}" = p ] && echo m || echo p)
    ((dims[a] == 2)) || direction=$([ "$direction" = + ] && echo - || echo +)
    there="$(place_text) $direction$axis"
    # what 'topology now' adds
    touch "$state/links"
    awk -v here="link $here " -v there="link $there " 'index($0, here) != 1 && index($0, there) != 1' \
        "$state/links" >"$state/links.new"
    mv "$state/links.new" "$state/links"
    case $3 in
    down)
        silence "$host" "$name"
        silence "$other_host" "$other_name"
        echo "link $here down" >>"$state/links"
        ;;
    up)
        shape "$host" "$name" "$rate"
        shape "$other_host" "$other_name" "$rate"
        ;;
    *)
        is_rate "$3" || fail "'$3' is none of down, up, a rate (such as 20mbit)"
        shape "$host" "$name" "$3"
        ((dims[a] > 2)) || shape "$other_host" "$other_name" "$3"
        echo "link $here $(rate_text "$3")" >>"$state/links"
        ;;
    esac
}

topology() {
    read_state
    if [ "${1:-}" = now ]; then
        cat "$state/topology" "$state/links" >"$state/topology.now" 2>/dev/null || true
        echo "$state/topology.now"
    else
        echo "$state/topology"
    fi
}

status() {
    read_state
    echo "$lab: $kind $shape, $hosts hosts, $rate, mtu $mtu; topology file $state/topology"
    [ ! -s "$state/links" ] || cat "$state/links"
}

case ${1:-} in
up | run | with | link) "$@" ;;
topology | status) "$@" ;;
down)
    [ "$(id -u)" = 0 ] || skip "network namespaces need root (try: sudo $0 down)"
    down
    ;;
*) usage ;;
esac
