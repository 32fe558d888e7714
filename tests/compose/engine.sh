#!/bin/sh
# Runs a command where `docker-compose` finds an engine and the images of docker-compose.yml.
#
#   tests/compose/engine.sh FOLDER COMMAND...
#
# Where a Docker engine answers, that is all. Else, as root on Debian: podman in a network namespace of its own, a base
# image by debootstrap, the servers' images by stand-ins of the same servers from wheels, ours by docker/Dockerfile. PIP_CONF
# names a pip.conf for the builds, PIP_FOLDERS folders that it names. FOLDER holds what is between.
set -eu
project=$(cd "$(dirname "$0")/../.." && pwd)
folder=$1
shift
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if docker info >/dev/null 2>&1; then
    exec "$@"
fi

missing=
for package in podman buildah debootstrap runc netavark aardvark-dns iptables uidmap iproute2 catatonit; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086  # several words
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends $missing >/dev/null
fi

# crun does not start where cgroups are only half there; a short name is one of this machine, not of a registry
cat >"$folder/containers.conf" <<END
[engine]
runtime = "runc"
compat_api_enforce_docker_hub = false
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
END
export CONTAINERS_CONF="$folder/containers.conf"

base=localhost/python:3.11-slim
if ! podman image exists "$base"; then
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$folder/root" >"$folder/debootstrap.log"
    tar -C "$folder/root" -c . | podman import - "$base" >/dev/null
    rm -rf "$folder/root"
fi

build() { # NAME OPTION... CONTEXT
    name=$1
    shift
    set -- --volume=/etc/ssl/certs:/etc/ssl/certs:ro "$@"
    for each in ${PIP_FOLDERS:-}; do set -- "--volume=$each:$each:ro" "$@"; done
    [ -z "${PIP_CONF:-}" ] || set -- "--volume=$PIP_CONF:/etc/pip.conf:ro" "$@"
    echo "building $name"
    podman build --quiet --format docker --network host --build-arg "BASE=$base" --tag "localhost/$name" "$@" >"$folder/build-$(echo "$name" | tr / -).log" 2>&1 || {
        tail -n 30 "$folder/build-$(echo "$name" | tr / -).log" >&2
        return 1
    }
}
for server in postgres valkey seaweedfs; do
    build "$server" --file "$project/tests/compose/standins/$server.Dockerfile" "$project/tests/compose/standins"
done
version=${ACMIX_VERSION:-0.1.0}
for target in api worker; do
    build "acmix-$target:$version" --target "$target" --build-arg "TORCH_INDEX_URL=${TORCH_INDEX_URL:-}" --file "$project/docker/Dockerfile" "$project"
done
export POSTGRES_IMAGE=localhost/postgres REDIS_IMAGE=localhost/valkey S3_IMAGE=localhost/seaweedfs

space=acmix-$$
ip netns add "$space"
ip -n "$space" link set lo up
inside() { nsenter --net="/run/netns/$space" "$@"; }
nsenter --net="/run/netns/$space" podman system service --time=0 "unix://$folder/podman.sock" >"$folder/podman.log" 2>&1 &
server=$!
# systemd would have the health checks run
(
    while sleep 1; do
        for each in $(inside podman ps --quiet); do
            inside podman healthcheck run "$each" || true
        done
    done
) >/dev/null 2>&1 &
checks=$!
# shellcheck disable=SC2317  # the trap calls it
end() {
    kill "$checks" "$server" 2>/dev/null || true
    ip netns delete "$space" || true
}
trap end EXIT
until [ -S "$folder/podman.sock" ]; do sleep 0.1; done
DOCKER_HOST="unix://$folder/podman.sock" inside "$@"
