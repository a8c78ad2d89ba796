#!/usr/bin/env bash
# Writes what deploy/compose.yaml reads: settings of the servers, users and secrets, and which services run.
#
#   deploy/compose.sh init [--local] [--store minio|seaweedfs|other] [--s3-env FILE] [--cluster] [--dir DIR]
#
#   --local           the images that deploy/images.sh made without a registry; the store is then SeaweedFS
#   --store WHICH     who keeps the bucket: minio (default), seaweedfs, or other: one that you have
#   --s3-env FILE     for --store other: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, one NAME=VALUE a line
#   --cluster         three NATS servers instead of one
#   --dir DIR         a pool of its own in DIR, with copies of the compose files; else it is this folder's
#
# Written: .env (choices and sizes, meant to be edited; written anew by each init) and .compose/ (kept by each init: remove it for new secrets, and
# the pool's volumes with it). A bucket elsewhere is named by POOL_BUCKET in .env; the other stores have one named muster.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || misuse "what is to be done? init"
case $1 in
init) shift ;;
-h | --help) help && exit 0 ;;
*) misuse "unknown command '$1'" ;;
esac
local=false
store=
s3_env=
cluster=false
dir=$root/deploy
while [ $# -gt 0 ]; do
    case $1 in
    --local) local=true ;;
    --store) store=${2:-} && shift ;;
    --s3-env) s3_env=${2:-} && shift ;;
    --cluster) cluster=true ;;
    --dir) dir=${2:-} && shift ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
if [ -z "$store" ]; then
    store=minio
    $local && store=seaweedfs
fi
case $store in
minio | seaweedfs) [ -z "$s3_env" ] || misuse "--s3-env goes with --store other" ;;
other) [ -f "$s3_env" ] || misuse "--store other needs --s3-env FILE" ;;
*) misuse "--store is minio, seaweedfs or other, not '$store'" ;;
esac
! $local || [ "$store" != minio ] || misuse "MinIO has no local image: --store seaweedfs or other"

# secret: 40 random hex digits. No character that an env file, a URL or JSON would read otherwise.
secret() {
    od -An -v -N20 -tx1 /dev/urandom | tr -d ' \n'
}

# write FILE: from standard input, at once.
write() {
    cat >"$1.new"
    mv -f "$1.new" "$1"
}

# The store's administrator and muster's own credentials.
write_s3() {
    local s3=$state/s3 key
    mkdir -p "$s3"
    if [ "$store" = other ]; then
        write "$s3/client.env" <"$s3_env"
        printf 'other\n' | write "$s3/store"
    elif [ "$(cat "$s3/store" 2>/dev/null)" != own ]; then
        key=$(secret)
        write "$s3/client.env" <<ENV
AWS_ENDPOINT_URL=http://s3:9000
AWS_ALLOW_HTTP=true
AWS_REGION=us-east-1
AWS_ACCESS_KEY_ID=muster
AWS_SECRET_ACCESS_KEY=$key
ENV
        # MinIO's root user is muster's here. A user of its own, with the rights that README.md lists, is for who keeps more in it than this pool.
        write "$s3/minio.env" <<ENV
MINIO_ROOT_USER=muster
MINIO_ROOT_PASSWORD=$key
MINIO_REGION=us-east-1
MC_HOST_pool=http://muster:$key@s3:9000
ENV
        write "$s3/s3.json" <<JSON
{ "identities": [{
    "name": "muster",
    "credentials": [{ "accessKey": "muster", "secretKey": "$key" }],
    "actions": ["Read:muster", "Write:muster", "List:muster"]
}] }
JSON
        printf 'own\n' | write "$s3/store"
    fi
    # Compose reads them all, whichever store runs.
    [ -f "$s3/minio.env" ] || : >"$s3/minio.env"
    [ -f "$s3/s3.json" ] || printf '{}\n' >"$s3/s3.json"
}

# Servers and users of NATS, as the containers see them; and what coordinators must know of the servers. Passwords that are there are kept.
write_nats() {
    if $cluster; then
        "$root/deploy/nats/make.sh" --out "$state/nats" --at /etc/nats --store /data --cluster
        write "$state/coordinator.toml" <"$state/nats/coordinator.toml"
    else
        "$root/deploy/nats/make.sh" --out "$state/nats" --at /etc/nats --store /data
        write "$state/coordinator.toml" <<<'# Of one NATS server there is nothing to say here.'
    fi
}

# Which services run, from which files and images, and how large. What the environment says of these goes before this file.
write_dotenv() {
    local files=compose.yaml profiles=() nats='POOL_NATS_CONF=server.conf
POOL_NATS_VOLUME=nats
POOL_NATS_URL=nats://nats:4222'
    $local && files+=:compose.local.yaml
    [ "$store" = other ] || profiles+=("$store")
    if $cluster; then
        profiles+=(cluster)
        nats='POOL_NATS_CONF=n1.conf
POOL_NATS_VOLUME=nats-1
POOL_NATS_URL=nats://nats:4222,nats://nats-2:4222,nats://nats-3:4222'
    fi
    write "$dir/.env" <<ENV
# Written by deploy/compose.sh init; changes are lost when it runs again.
COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-muster}
COMPOSE_FILE=$files
COMPOSE_PROFILES=$(IFS=, && echo "${profiles[*]}")

$nats

# Who may reach NATS and the store from outside: 127.0.0.1 is this machine alone.
POOL_BIND=${POOL_BIND:-127.0.0.1}
POOL_NATS_PORT=${POOL_NATS_PORT:-4222}
POOL_S3_PORT=${POOL_S3_PORT:-9000}
POOL_BUCKET=${POOL_BUCKET:-muster}

# The kernel's limit of a worker's container is at least a quarter above the worker's own --memory.
POOL_WORKERS=${POOL_WORKERS:-4}
POOL_WORKER_THREADS=${POOL_WORKER_THREADS:-2}
POOL_WORKER_MEMORY=${POOL_WORKER_MEMORY:-1GiB}
POOL_WORKER_MEM_LIMIT=${POOL_WORKER_MEM_LIMIT:-1280m}
ENV
}

umask 077
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
state=$dir/.compose
mkdir -p "$state"
if [ "$dir" != "$root/deploy" ]; then
    cp "$root/deploy/compose.yaml" "$root/deploy/compose.local.yaml" "$dir/"
fi
write_s3
write_nats
write_dotenv
# The servers run as users of their own and must read their settings; nobody else of this machine passes the folder above.
chmod 700 "$state"
chmod a+rx "$state/nats"
chmod a+r "$state"/nats/*.conf "$state/s3/s3.json" "$state/coordinator.toml"

say "store: $store; NATS servers: $($cluster && echo 3 || echo 1); settings and secrets in $state"
say "next: cd $dir, then 'docker compose up -d' ('docker-compose up -d' where that is what you have)"
