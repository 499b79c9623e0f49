# fetch.sh: downloads for the other scripts here, which source it: resumable, checked, and quick to give up.
# shellcheck shell=sh
#
# A file under its name is whole: what comes in is FILE.part until its checksum, or what `check` says, is right.
# Every failure is one line on stderr.

fetch_fail() {
    echo "$(basename "$0"): $*" >&2
}

fetch_bytes() { # FILE
    wc -c <"$1" | tr -d ' '
}

fetch_sha256() { # FILE
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

# Whether FILE has this checksum; with '-' for it, whether the command CHECK FILE is content.
fetch_is_good() { # FILE SHA256 CHECK
    [ -f "$1" ] || return 1
    if [ "$2" = - ]; then "$3" "$1"; else [ "$(fetch_sha256 "$1")" = "$2" ]; fi
}

# Fetches URL into FILE.part, going on where an earlier try stopped, and renames it when it is good.
# Returns 2 if the host cannot be reached, 1 after any other failure.
fetch() { # URL FILE SHA256|- [CHECK]
    url=$1 file=$2 sha=$3 check=${4:-true} host=${1#*://} code=0
    host=${host%%/*}
    if fetch_is_good "$file" "$sha" "$check"; then return 0; fi
    command -v curl >/dev/null || { fetch_fail "curl is missing (apt-get install curl)"; return 1; }
    mkdir -p "$(dirname "$file")" || return 1
    if ! fetch_is_good "$file.part" "$sha" "$check"; then
        curl --fail --location --silent --connect-timeout "${FETCH_CONNECT_SECONDS:-5}" \
            --speed-limit 1000 --speed-time 15 --continue-at - --output "$file.part" "$url" || code=$?
        case $code in
        0) ;;
        5 | 6 | 7) fetch_fail "cannot reach $host: no network? (or put $url at $file yourself)"; return 2 ;;
        28) fetch_fail "$host does not answer or is too slow (run this again to go on)"; return 1 ;;
        22) rm -f "$file.part"; fetch_fail "$url: the server refuses it (try again later)"; return 1 ;;
        23) fetch_fail "$file.part: cannot write it (is the disk full?)"; return 1 ;;
        33) rm -f "$file.part"; fetch_fail "$url: the server cannot resume (run this again)"; return 1 ;;
        *) fetch_fail "$url: curl failed with code $code (run this again to go on)"; return 1 ;;
        esac
    fi
    if ! fetch_is_good "$file.part" "$sha" "$check"; then
        rm -f "$file.part"
        fetch_fail "$url: not the expected content, removed (run this again; if it stays so, the source has changed)"
        return 1
    fi
    mv -f "$file.part" "$file"
}
