# shellcheck shell=bash
# packages.sh: sourced by quickstart.sh and test.sh: installs what is missing, on Debian and Ubuntu.

# have COMMAND...: are all of these commands there?
have() { for c in "$@"; do command -v "$c" >/dev/null 2>&1 || return 1; done; }

# install_packages PACKAGE...: with apt-get, as root or through sudo; returns 1 and says so if that cannot be done.
install_packages() {
    local root=()
    if [ "$(id -u)" != 0 ]; then
        if ! have sudo || ! sudo -n true 2>/dev/null && [ ! -t 0 ]; then
            echo "cannot install: $* (not root, no sudo; install them yourself)" >&2
            return 1
        fi
        root=(sudo)
    fi
    if ! have apt-get; then
        echo "cannot install: $* (no apt-get; install them yourself)" >&2
        return 1
    fi
    echo "installing: $*" >&2
    {
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
            "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    } >"${PACKAGES_LOG:-/dev/null}" 2>&1 || {
        echo "could not install: $* (no network? install them yourself)" >&2
        return 1
    }
}
