#!/usr/bin/env bash
# Installs what the tests need of the system and pip has not: a current redis-server, libfaketime, which sets a server's
# clock, and systemd's systemd-analyze, which looks at the units. Does nothing where they are there. Where they cannot be installed (no apt-get, no right to) it says
# what is missing; that is an error with CI=true, and elsewhere a matter for the tests that need it.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
compgen -G '/usr/lib*/**/faketime/libfaketime.so.1' >/dev/null || compgen -G '/usr/l*/lib/faketime/libfaketime.so.1' >/dev/null \
    || missing+=(libfaketime)
command -v systemd-analyze >/dev/null || missing+=(systemd)
[ ${#missing[@]} -gt 0 ] || exit 0

give_up() {
    echo "missing, and $1: ${missing[*]}" >&2
    [ "${CI:-}" != true ] && exit 0 || exit 1
}

command -v apt-get >/dev/null || give_up "there is no apt-get to install it"
[ "$(id -u)" = 0 ] || give_up "this user may not install it"

# redis-server starts its service on a fixed port; a policy of 101 ("not allowed") keeps every new service from it.
policy=/usr/sbin/policy-rc.d
mine='' failed=''
if [ ! -e "$policy" ]; then
    mine=1
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
echo "installing ${missing[*]}"
apt-get update -qq || true  # a stale list may still name it
DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null || failed=1
[ -z "$mine" ] || rm -f "$policy"
[ -z "$failed" ] || give_up "apt-get failed to install it"
