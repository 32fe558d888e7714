# For other scripts: `one_off OPTION... SERVICE COMMAND...` runs a command in a container of a service, tells what it says,
# and has its exit status. `docker compose run` alone does not wait for the end on every engine that it works with.
compose=${COMPOSE:-docker compose}

one_off() {
    container=$($compose run --detach --no-deps "$@" | tail -n 1)
    docker logs --follow "$container"
    status=$(docker wait "$container")
    docker rm "$container" >/dev/null
    return "$status"
}
