#!/usr/bin/env bash
# Has every configuration checked by the program that reads it, or one: check_configuration.sh [FILE]. Needs what
# `make tools` builds.
set -euo pipefail
cd "$(dirname "$0")/.."
only=${1:-}
checked=

tools=$(scripts/tools.sh --path 2>/dev/null)
for program in otelcol-quantum loki lokitool promtool amtool compose-check; do
    if [ ! -x "$tools/$program" ]; then
        echo "$program is not built, and without it the configurations are not checked: run \`make tools\`" >&2
        exit 1
    fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() {  # WHAT COMMAND…: quiet unless it fails
    local what=$1
    shift
    [[ -z "$only" || "$only" == "$what" || "$only" == "$what/"* ]] || return 0
    checked=yes
    if ! "$@" >"$work/said" 2>&1; then
        cat "$work/said" >&2
        echo "$what: not valid" >&2
        exit 1
    fi
    echo "$what: valid"
}

check collector/config.yaml env QUANTUM_COLLECTOR_STATE="$work" "$tools/otelcol-quantum" validate \
    --config=collector/config.yaml --feature-gates=stanza.synchronousLogEmitter
check observability/loki/loki.yaml env QUANTUM_LOKI_DATA="$work" QUANTUM_LOKI_RULES="$PWD/observability/loki/rules" \
    "$tools/loki" -config.file=observability/loki/loki.yaml -config.expand-env=true -verify-config
for file in observability/loki/rules/*/*.yml; do
    check "$file" "$tools/lokitool" rules check --strict "$file"
    check "$file" "$tools/lokitool" rules lint --dry-run "$file"
done
check observability/prometheus/prometheus.yml "$tools/promtool" check config --lint=all --lint-fatal observability/prometheus/prometheus.yml
check observability/prometheus/rules "$tools/promtool" check rules --lint=all --lint-fatal observability/prometheus/rules/*.yml
check observability/prometheus/tests "$tools/promtool" test rules observability/prometheus/tests/*.yml
check observability/alertmanager/alertmanager.yml "$tools/amtool" check-config observability/alertmanager/alertmanager.yml
check deploy/compose.yaml "$tools/compose-check" deploy/compose.yaml
check deploy/prometheus/prometheus.yml "$tools/promtool" check config --syntax-only deploy/prometheus/prometheus.yml
printf 'Bearer none' >"$work/authorization"
for overlay in deploy/collector/*.yaml; do
    check "$overlay" env QUANTUM_COLLECTOR_STATE="$work" QUANTUM_OTLP_CERT=/c QUANTUM_OTLP_KEY=/k QUANTUM_OTLP_CLIENT_CA=/a \
        QUANTUM_LOKI_AUTHORIZATION_FILE="$work/authorization" "$tools/otelcol-quantum" validate --config=collector/config.yaml \
        --config="$overlay" --feature-gates=stanza.synchronousLogEmitter
done
[ -n "$checked" ] || { echo "$only: no configuration that is checked here" >&2; exit 1; }
