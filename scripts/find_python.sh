#!/bin/sh
# Prints the newest Python, 3.11 or later, that runs and can make a virtual environment.
# With --all: the newest interpreter of every such minor version, one a line.
# A name on the PATH proves nothing (a version manager's shim may only say "not installed"), so each one is run.
set -eu
all=
[ "${1:-}" = --all ] && all=1

check='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, int(sys.argv[1])) or sys.version_info >= (3, int(sys.argv[1]) + 1))'

find_minor() {  # the first working interpreter of minor version $1
    IFS=:
    for folder in $PATH; do
        unset IFS
        for name in "python3.$1" python3; do
            [ -x "$folder/$name" ] || continue
            "$folder/$name" -c "$check" "$1" >/dev/null 2>&1 && { echo "$folder/$name"; return 0; }
        done
    done
    unset IFS
    [ -n "$all" ] || return 1
    for root in "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions" "${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python"; do
        for candidate in "$root"/*/bin/"python3.$1"; do
            [ -x "$candidate" ] || continue
            "$candidate" -c "$check" "$1" >/dev/null 2>&1 && { echo "$candidate"; return 0; }
        done
    done
    return 1
}

found=
for minor in 15 14 13 12 11; do
    if find_minor "$minor"; then
        found=1
        [ -n "$all" ] || exit 0
    fi
done
[ -n "$found" ] || { echo "no Python 3.11 or later with venv and ensurepip on the PATH" >&2; exit 1; }
