#!/usr/bin/env bash
# Ten checks of a running deployment. What is asked, is asked here; what the answers mean, log_status_verdicts.py says.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'END'
Ten checks of a running deployment, each PASS or FAIL with the reason.

  scripts/log_status.sh [--json] [--env-file FILE]

  --json            one JSON object instead of lines
  --env-file FILE   NAME=VALUE lines, for what the environment does not say; `make stack` writes such a file

It exits with 0 if all ten hold, with 1 if not, and with 2 where it cannot check: a wrong call, or no curl or python3
(3.9 or later) here. Everything is asked at once, so it takes about two seconds, and no longer than a timeout or two.

Addresses and the rest, by environment variables:

  QUANTUM_LOKI_URL                 http://127.0.0.1:3100
  QUANTUM_COLLECTOR_HEALTH_URL     http://127.0.0.1:13133
  QUANTUM_COLLECTOR_METRICS_URL    http://127.0.0.1:8888/metrics    the collector's own counters
  QUANTUM_GRAFANA_URL              http://127.0.0.1:3001
  QUANTUM_GRAFANA_TOKEN_FILE       a file with a service account's token, which may read data sources; or the token
                                   itself in QUANTUM_GRAFANA_TOKEN
  QUANTUM_GRAFANA_LOGIN_FILE       instead of a token: a file with user:password; or QUANTUM_GRAFANA_LOGIN
  QUANTUM_PROMETHEUS_URL           http://127.0.0.1:9090
  QUANTUM_ALERTMANAGER_URL         http://127.0.0.1:9093
  QUANTUM_LOG_DIR                  /var/log/quantum    the services' files; Loki is asked for lines of a service that
                                   has none there, as where container logs are collected
  QUANTUM_SERVICES                 ai_engine auto_executor portfolio
  QUANTUM_STATUS_WINDOW            900     seconds: a service that has logged nothing for so long does not log
  QUANTUM_STATUS_TIMEOUT           5       seconds that each answer may take
  QUANTUM_PROMETHEUS_RULES, QUANTUM_LOKI_RULES, QUANTUM_RUNBOOKS    other folders than this checkout's
END
}

refuse() {
    echo "log_status: $1" >&2
    exit 2
}

json='' env_file=''
while [ $# -gt 0 ]; do
    case $1 in
        --json) json=1 ;;
        --env-file)
            [ $# -ge 2 ] || refuse "--env-file needs a file"
            env_file=$2
            shift
            ;;
        --env-file=*) env_file=${1#*=} ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) refuse "there is no $1; see --help" ;;
    esac
    shift
done

if [ -n "$env_file" ]; then
    [ -r "$env_file" ] || refuse "--env-file $env_file: cannot be read"
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in '' | '#'*) continue ;; esac
        name=${line%%=*}
        [[ $line == *=* && $name =~ ^QUANTUM_[A-Z_]+$ ]] || refuse "--env-file $env_file: a line is no QUANTUM_NAME=VALUE"
        [ -n "${!name:-}" ] || export "$name=${line#*=}"  # the environment itself has the last word
    done <"$env_file"
fi

for program in curl python3; do
    command -v "$program" >/dev/null || refuse "it needs $program, which is not here: install it"
done
python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || refuse "it needs python3 3.9 or later"

export QUANTUM_LOKI_URL=${QUANTUM_LOKI_URL:-http://127.0.0.1:3100}
export QUANTUM_COLLECTOR_HEALTH_URL=${QUANTUM_COLLECTOR_HEALTH_URL:-http://127.0.0.1:13133}
export QUANTUM_COLLECTOR_METRICS_URL=${QUANTUM_COLLECTOR_METRICS_URL:-http://127.0.0.1:8888/metrics}
export QUANTUM_GRAFANA_URL=${QUANTUM_GRAFANA_URL:-http://127.0.0.1:3001}
export QUANTUM_PROMETHEUS_URL=${QUANTUM_PROMETHEUS_URL:-http://127.0.0.1:9090}
export QUANTUM_ALERTMANAGER_URL=${QUANTUM_ALERTMANAGER_URL:-http://127.0.0.1:9093}
export QUANTUM_LOG_DIR=${QUANTUM_LOG_DIR:-/var/log/quantum}
export QUANTUM_SERVICES=${QUANTUM_SERVICES:-ai_engine auto_executor portfolio}
export QUANTUM_STATUS_WINDOW=${QUANTUM_STATUS_WINDOW:-900}
export QUANTUM_STATUS_TIMEOUT=${QUANTUM_STATUS_TIMEOUT:-5}
export QUANTUM_PROMETHEUS_RULES=${QUANTUM_PROMETHEUS_RULES:-$here/../observability/prometheus/rules}
export QUANTUM_LOKI_RULES=${QUANTUM_LOKI_RULES:-$here/../observability/loki/rules}
export QUANTUM_RUNBOOKS=${QUANTUM_RUNBOOKS:-$here/../runbooks}

[[ $QUANTUM_STATUS_TIMEOUT =~ ^[0-9]+(\.[0-9]+)?$ && $QUANTUM_STATUS_TIMEOUT =~ [1-9] ]] \
    || refuse "QUANTUM_STATUS_TIMEOUT=$QUANTUM_STATUS_TIMEOUT: give seconds above 0, as 5"
[[ $QUANTUM_STATUS_WINDOW =~ ^[1-9][0-9]*$ ]] || refuse "QUANTUM_STATUS_WINDOW=$QUANTUM_STATUS_WINDOW: give whole seconds, as 900"
[[ $QUANTUM_SERVICES =~ ^[A-Za-z0-9_.-]+( +[A-Za-z0-9_.-]+)*$ ]] || refuse "QUANTUM_SERVICES: give names, as 'ai_engine auto_executor'"
read -ra services <<<"$QUANTUM_SERVICES"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 700 "$work"

fetch() {  # NAME URL [CURL-OPTION…]: its status, its body and what went wrong, each in a file
    local name=$1 url=$2
    shift 2
    curl --disable --silent --show-error --noproxy '*' --proto '=http,https' --max-time "$QUANTUM_STATUS_TIMEOUT" \
        --output "$work/$name.body" --write-out '%{http_code}' "$@" --url "$url" \
        >"$work/$name.status" 2>"$work/$name.error" || true
}

secret() {  # NAME: what the variable NAME says, or the file that NAME_FILE names
    local in_file=${1}_FILE
    if [ -n "${!1:-}" ]; then
        printf '%s' "${!1}"
    elif [ -n "${!in_file:-}" ]; then
        [ -r "${!in_file}" ] || refuse "$in_file=${!in_file}: cannot be read"
        head -n 1 "${!in_file}" | tr -d '\r\n'
    fi
}

# In a file of its own: the arguments of a running curl can be seen by everybody on the machine.
quoted() { sed 's/[\\"]/\\&/g'; }
token=$(secret QUANTUM_GRAFANA_TOKEN)
login=$(secret QUANTUM_GRAFANA_LOGIN)
credentials="$work/grafana.curl"
if [ -n "$token" ]; then
    printf 'header = "Authorization: Bearer %s"\n' "$(quoted <<<"$token")" >"$credentials"
elif [ -n "$login" ]; then
    printf 'user = "%s"\n' "$(quoted <<<"$login")" >"$credentials"
else
    : >"$credentials"
fi

collector_metrics() {  # twice: whether a counter rises is seen in the second
    fetch collector_metrics "$QUANTUM_COLLECTOR_METRICS_URL"
    if [ "$(cat "$work/collector_metrics.status")" = 200 ]; then
        sleep 1.5
        fetch collector_metrics_again "$QUANTUM_COLLECTOR_METRICS_URL"
    fi
}

newest_lines() {  # SERVICE: of its file and the rotated one before, else of Loki
    local file=$QUANTUM_LOG_DIR/$1.jsonl
    if [ -r "$file" ]; then
        { [ ! -r "$file.1" ] || tail -c 65536 "$file.1"; tail -c 262144 "$file"; } >"$work/lines_$1.file" 2>/dev/null || true
    else
        fetch "lines_$1" "$QUANTUM_LOKI_URL/loki/api/v1/query_range" --get --data limit=100 \
            --data "since=${QUANTUM_STATUS_WINDOW}s" --data-urlencode "query={service=\"$1\"}"
    fi
}

names=$(printf '|%s' "${services[@]}")
names=${names:1}
fetch loki_ready "$QUANTUM_LOKI_URL/ready" &
fetch collector_health "$QUANTUM_COLLECTOR_HEALTH_URL" &
collector_metrics &
fetch grafana_health "$QUANTUM_GRAFANA_URL/api/health" &
fetch grafana_datasources "$QUANTUM_GRAFANA_URL/api/datasources" --config "$credentials" &
for service in "${services[@]}"; do
    newest_lines "$service" &
done
fetch loki_counts "$QUANTUM_LOKI_URL/loki/api/v1/query" --get --data-urlencode \
    "query=sum by (service) (count_over_time({service=~\"${names//./\\\\.}\"}[${QUANTUM_STATUS_WINDOW}s]))" &
fetch prometheus_rules "$QUANTUM_PROMETHEUS_URL/api/v1/rules?type=alert" &
fetch alertmanager_status "$QUANTUM_ALERTMANAGER_URL/api/v2/status" &
wait

python3 "$here/log_status_verdicts.py" ${json:+--json} "$work"
