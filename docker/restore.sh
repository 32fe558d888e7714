#!/bin/sh
# Restores what docker/backup.sh wrote into a database without a row, as `docker compose down --volumes` leaves none.
#
#   sh docker/restore.sh FOLDER       COMPOSE may name another `docker compose`
#
# Starts the database, and the store of objects where the profile has one; the service is started afterwards, by
# `docker compose up --detach`.
set -eu
[ $# = 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")/.."
. docker/one_off.sh

running=$($compose ps --services --status running | grep -Ex 'api|worker|worker-cpu|housekeeper|migrate' | tr '\n' ' ')  || true
if [ -n "$running" ]; then
    echo "stop these first, since none may work on the tables meanwhile: $running" >&2
    exit 1
fi
# shellcheck disable=SC2046  # several words
$compose up --detach --no-build --wait $($compose config --services | grep -Ex 'postgres|s3')
one_off --volume "$folder:/backup" api acmix restore /backup
