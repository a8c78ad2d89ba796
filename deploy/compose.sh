#!/usr/bin/env bash
# Writes what deploy/compose.yaml reads: settings of the servers, users and secrets, and which services run. Starts the pool, and changes how many workers it has.
#
#   deploy/compose.sh init [--local] [--store minio|seaweedfs|other] [--s3-env FILE] [--cluster] [--dir DIR]
#   deploy/compose.sh up [--workers N] [--dir DIR]
#
# init:
#   --local           the images that deploy/images.sh made without a registry; the store is then SeaweedFS
#   --store WHICH     who keeps the bucket: minio (default), seaweedfs, or other: one that you have
#   --s3-env FILE     for --store other: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, one NAME=VALUE a line
#   --cluster         three NATS servers instead of one
#   --dir DIR         a pool of its own in DIR, with copies of the compose files; else it is this folder's
#
# up:
#   --workers N       so many workers from now on: N is kept in .env. Without it workers that were added by 'docker-compose up --scale' stay
#
# Written: .env (choices and sizes, meant to be edited: a later init keeps every value but those that its options decide, and the file before as .env.before)
# and .compose/ (kept by each init: remove it for new secrets, and the pool's volumes with it). A bucket elsewhere is named by POOL_BUCKET in .env; the other stores have one named muster.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || misuse "what is to be done? init or up"
command=$1
case $command in
init | up) shift ;;
-h | --help) help && exit 0 ;;
*) misuse "unknown command '$1'" ;;
esac
local=false
store=
s3_env=
cluster=false
dir=$root/deploy
workers=
while [ $# -gt 0 ]; do
    case $command:$1 in
    *:--dir) dir=${2:-} && shift ;;
    *:-h | *:--help) help && exit 0 ;;
    up:--workers) workers=${2:-} && shift ;;
    init:--local) local=true ;;
    init:--store) store=${2:-} && shift ;;
    init:--s3-env) s3_env=${2:-} && shift ;;
    init:--cluster) cluster=true ;;
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

# in_dotenv NAME: the value in .env.
in_dotenv() {
    sed -n "s/^$1=//p" "$dir/.env" | tail -n 1
}

if [ "$command" = up ]; then
    [ -f "$dir/.env" ] || die "$dir has no .env: run deploy/compose.sh init first"
    if [ -n "$workers" ]; then
        want_number --workers "$workers"
        sed "s/^POOL_WORKERS=.*/POOL_WORKERS=$workers/" "$dir/.env" >"$dir/.env.new"
        grep -q '^POOL_WORKERS=' "$dir/.env.new" || printf 'POOL_WORKERS=%s\n' "$workers" >>"$dir/.env.new"
        mv -f "$dir/.env.new" "$dir/.env"
    fi
    if docker compose version >/dev/null 2>&1; then
        composer=(docker compose)
    elif command -v docker-compose >/dev/null; then
        composer=(docker-compose)
    else
        die "neither 'docker compose' nor docker-compose is there"
    fi
    cd "$dir"
    wanted=$(in_dotenv POOL_WORKERS)
    wanted=${POOL_WORKERS:-${wanted:-4}}
    there=$("${composer[@]}" ps -q worker | wc -l)
    if [ -z "$workers" ] && [ "$there" -gt "$wanted" ]; then
        say "$there workers are there, .env says $wanted: the $there stay; 'up --workers $wanted' sends the others away"
        exec "${composer[@]}" up -d --scale "worker=$there"
    fi
    exec "${composer[@]}" up -d
fi

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

# kept NAME DEFAULT: what the environment says, else what stood in .env, else the default.
kept() {
    local value=${!1:-}
    [ -n "$value" ] || [ ! -f "$dir/.env" ] || value=$(in_dotenv "$1")
    printf '%s=%s\n' "$1" "${value:-$2}"
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
    local own=$state/env.new name
    cat >"$own" <<ENV
# Written by deploy/compose.sh init, to be edited. When it runs again it keeps what is changed below, but for the first two and POOL_NATS_CONF, _VOLUME and _URL.
COMPOSE_FILE=$files
COMPOSE_PROFILES=$(IFS=, && echo "${profiles[*]}")

$nats

# Who may reach NATS and the store from outside: 127.0.0.1 is this machine alone.
$(kept POOL_BIND 127.0.0.1)
$(kept POOL_NATS_PORT 4222)
$(kept POOL_S3_PORT 9000)
$(kept POOL_BUCKET muster)

# Where /metrics, /healthz and /readyz of coordinators and workers are on this machine: each container takes a free port of its range. 0: any.
$(kept POOL_COORDINATOR_HTTP_PORTS 9464-9469)
$(kept POOL_WORKER_HTTP_PORTS 9500-9599)

# The kernel's limit of a worker's container is at least a quarter above the worker's own --memory.
$(kept POOL_WORKERS 4)
$(kept POOL_WORKER_THREADS 2)
$(kept POOL_WORKER_MEMORY 1GiB)
$(kept POOL_WORKER_MEM_LIMIT 1280m)
$(kept COMPOSE_PROJECT_NAME muster)
ENV
    if [ -f "$dir/.env" ]; then
        # What somebody has added stays, too.
        while IFS= read -r name; do
            grep -q "^$name=" "$own" || grep "^$name=" "$dir/.env" >>"$own"
        done < <(sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' "$dir/.env" | sort -u)
        if ! cmp -s "$own" "$dir/.env"; then
            cp "$dir/.env" "$dir/.env.before"
            say ".env was there: its values are kept, but for what these options decide (before: .env.before)"
        fi
    fi
    mv -f "$own" "$dir/.env"
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
say "next: deploy/compose.sh up$([ "$dir" = "$root/deploy" ] || printf ' --dir %q' "$dir"), or 'docker compose up -d' in $dir"
