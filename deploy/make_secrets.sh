#!/usr/bin/env bash
# Makes what the deployment's secrets are kept in: deploy/secrets, or the folder that is named. What is there stays.
#
#   deploy/make_secrets.sh [FOLDER]
#
# Passwords are made up. Addresses and passwords of others are not: webhook_url, watchdog_url and smtp_password lead nowhere
# until you write yours into them. QUANTUM_REDIS (redis:6379) is where the URLs of Redis lead.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}
redis=${QUANTUM_REDIS:-redis:6379}

# Whoever may enter the folder may read the files: containers see single files of it, and are not their owner.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

password() {
    head -c 24 /dev/urandom | base64 | tr '+/' '-_'
}

keep() {  # FILE: from standard input, where it is not there yet; whole or not at all
    if [ -e "$1" ]; then
        cat >/dev/null
        echo "$1: was there"
    else
        cat >".$1"
        mv ".$1" "$1"
        echo "$1: made"
    fi
}

# The users, their passwords and the URLs that hold these belong together.
if [ ! -e redis_users ]; then
    service=$(password) exporter=$(password) operator=$(password)
    rm -f redis_url redis_url_exporter redis_url_operator
    echo "redis://service:$service@$redis/0" | keep redis_url
    echo "redis://exporter:$exporter@$redis/0" | keep redis_url_exporter
    echo "redis://operator:$operator@$redis/0" | keep redis_url_operator
    sed -e "s/>SERVICE_PASSWORD/>$service/; s/>EXPORTER_PASSWORD/>$exporter/; s/>OPERATOR_PASSWORD/>$operator/" \
        "$here/redis/users.acl" | keep redis_users
fi
password | keep grafana_admin_password
echo "http://127.0.0.1:9/nobody-is-told-yet" | keep webhook_url
echo "http://127.0.0.1:9/nobody-is-told-yet" | keep watchdog_url
echo "none-yet" | keep smtp_password
