#!/usr/bin/env bash
# Has systemd itself look at deploy/systemd: every unit valid, and exposed no more than 2.0 of 10. Nothing is started.
set -euo pipefail
cd "$(dirname "$0")/.."

most_exposed=20  # in tenths: what systemd-analyze compares with
command -v systemd-analyze >/dev/null || { echo "systemd-analyze is not here: run \`make system-packages\`" >&2; exit 1; }

# A machine as the guide leaves it, as far as systemd-analyze looks: the units in place, and programs where they say.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=$root/etc/systemd/system
mkdir -p "$units" "$root/usr/lib/systemd" "$root/bin"
cp -r /lib/systemd/system "$root/usr/lib/systemd/system"
cp -r deploy/systemd/*.service deploy/systemd/*.service.d "$units/"
sed -nE 's/^Exec(Start|Reload)=([^ ]+).*/\2/p' deploy/systemd/*.service | sort -u | while read -r program; do
    mkdir -p "$root${program%/*}"
    cp /bin/true "$root$program"
done

look() {  # WHAT UNIT
    local said
    # verify tells of a mistake and ends well all the same
    if ! said=$(systemd-analyze verify --man=no --root="$root" "$units/${2/@/@auto_executor}" 2>&1) || [ -n "$said" ]; then
        echo "$said" >&2
        echo "$1: not valid" >&2
        exit 1
    fi
    if ! said=$(systemd-analyze security --no-pager --offline=true --root="$root" --threshold=$most_exposed "$2" 2>&1); then
        echo "$said" >&2
        echo "$1: too exposed" >&2
        exit 1
    fi
    echo "$1: valid,$(sed -nE 's/.*exposure level for [^:]*: ([0-9.]+).*/ exposed \1 of 10/p' <<<"$said")"
}

for unit in deploy/systemd/*.service; do
    look "$unit" "${unit##*/}"
done
mkdir "$units/quantum-collector.service.d"
cp deploy/systemd/50-containers.conf "$units/quantum-collector.service.d/"
look deploy/systemd/50-containers.conf quantum-collector.service
systemd-sysusers --root="$root" --dry-run "$PWD/deploy/systemd/quantum-bus.sysusers.conf" >/dev/null 2>&1
echo "deploy/systemd/quantum-bus.sysusers.conf: valid"
