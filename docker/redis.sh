#!/bin/sh
# The broker of docker-compose.yml: `serve OPTION...` runs it, `healthy HOST` asks it.
# The password goes from its file to the server's stdin: neither arguments nor environment of the server show it.
set -eu

case "$1" in
serve)
    shift
    password=$(cat "$PASSWORD_FILE") # by itself: here a missing file ends the script
    exec valkey-server "$@" --appendonly yes --save '' --maxmemory-policy noeviction - <<END
requirepass $password
END
    ;;
healthy)
    answer=$(REDISCLI_AUTH="$(cat "$PASSWORD_FILE")" valkey-cli -h "$2" ping)
    [ "$answer" = PONG ]
    ;;
esac
