#!/bin/sh
# Backs up database and files of docker-compose.yml's service, as of one moment, while it goes on.
#
#   sh docker/backup.sh FOLDER        a new one; COMPOSE may name another `docker compose`
#
# The folder then belongs to the service's user, whose number the containers have: read it as root. The secrets and the
# data sets below DATA_ROOT are not in it.
set -eu
[ $# = 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$(dirname "$1")"
parent=$(cd "$(dirname "$1")" && pwd)
name=$(basename "$1")
cd "$(dirname "$0")/.."
. docker/one_off.sh

one_off --volume "$parent:/backups" --user 0:0 --cap-add CHOWN --cap-add DAC_OVERRIDE \
    api install --directory --owner 10001 --group 10001 --mode 700 "/backups/$name"
one_off --volume "$parent/$name:/backup" api acmix backup /backup
