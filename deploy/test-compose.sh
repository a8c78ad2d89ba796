#!/usr/bin/env bash
# Plays what deploy/README.md shows of compose, unattended: images, a pool, a sort from bucket to bucket of whose four workers two are killed,
# proof, eight workers; then three NATS servers of which one is killed, and a worker that is stopped; and looks that nothing is left.
#
#   deploy/test-compose.sh [--records N] [--binary PATH] [--no-images] [--skip-cluster] [--keep]
#
#   --records N       100-byte records to sort (default 3000000)
#   --binary PATH     images around this program, not around a new release build
#   --no-images       the images as they are
#   --skip-cluster    without the part with three NATS servers
#   --keep            leaves the pool where something went wrong
#
# It has a project, ports, secrets and volumes of its own, and removes them. Where there is no Docker or no compose it ends with 77.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

records=3000000
images=true
image_options=()
with_cluster=true
keep=false
while [ $# -gt 0 ]; do
    case $1 in
    --records) records=${2:-} && shift ;;
    --binary) image_options=(--binary "${2:-}") && shift ;;
    --no-images) images=false ;;
    --skip-cluster) with_cluster=false ;;
    --keep) keep=true ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
want_number --records "$records"

# What is not run here says so, with a status that nobody takes for success.
unable() {
    die_status=77 die "NOT RUN: $*"
}

command -v docker >/dev/null || unable "docker is missing"
docker version --format '{{ .Server.Version }}' >/dev/null 2>&1 || unable "no Docker engine answers"
if docker compose version >/dev/null 2>&1; then
    composer=(docker compose)
elif command -v docker-compose >/dev/null; then
    composer=(docker-compose)
else
    unable "neither 'docker compose' nor docker-compose is there"
fi

# Nothing of who calls decides here; ports are the engine's choice.
unset "${!COMPOSE_@}" "${!POOL_@}"
export COMPOSE_PROJECT_NAME=muster-test-$$ POOL_NATS_PORT=0 POOL_S3_PORT=0 POOL_COORDINATOR_HTTP_PORTS=0 POOL_WORKER_HTTP_PORTS=0
pool=$(mktemp -d "${TMPDIR:-/tmp}/muster-test-compose.XXXXXX")
log=$pool/compose.log

step() {
    say "[$((SECONDS / 60))m$((SECONDS % 60))s] $*"
}

# compose ARGUMENT...: in the pool's folder; what it tells of its doings goes to a log.
compose() {
    (cd "$pool" && "${composer[@]}" "$@" 2>>"$log")
}

# client ARGUMENT...: muster with the rights of a client.
client() {
    compose run -T --rm client "$@"
}

# until_true SECONDS WHAT COMMAND...: asks again and again, for so long.
until_true() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$limit" ] || die "waited in vain for $what"
    done
}

# containers SERVICE: ids of those that run.
containers() {
    docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"
}

# values NAME: of each field with this name in the JSON on standard input.
values() {
    tr ',{}[]' '\n' | sed -n "s/^\"$1\":\"\{0,1\}\([^\"]*\)\"\{0,1\}.*/\1/p"
}

# workers_healthy COUNT: whether so many are.
workers_healthy() {
    [ "$(client workers --json | tr '}' '\n' | grep -c '"state":"healthy"')" = "$1" ]
}

# all_well: whether every container with a health check passes it.
all_well() {
    [ -z "$(docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter health=starting)" ] &&
        [ -z "$(docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter health=unhealthy)" ]
}

# two_busy: leaves the hosts of two workers with running attempts in $busy. A host's name is its container's id.
two_busy() {
    busy=$(client workers --json | tr ',{}[]' '\n' | awk -F: '$1 == "\"host\"" { host = $2 } $1 == "\"running\"" && $2 > 0 { print host }' |
        tr -d '"' | head -n 2)
    [ "$(wc -l <<<"$busy")" = 2 ]
}

# submit JOB OUTPUT: a sort that goes on by itself.
submit() {
    client sort s3://muster/in -o "s3://muster/$2" --format fixed:100 -k 0:10 --job-id "$1" --detach >/dev/null
}

# ends_well JOB OUTPUT: follows it, and proves what it left.
ends_well() {
    client watch "$1" >"$pool/watch" || die "the job $1 did not succeed: $(tail -n 3 "$pool/watch")"
    client verify "s3://muster/$2" --against "s3://muster/$2/_SUCCESS" >"$pool/verify" || die "not proven: $(cat "$pool/verify")"
    local status
    status=$(client status "$1" --json)
    say "$1 succeeded and is proven; attempts beyond the first: $(values retries <<<"$status"), tasks made again: $(values repeated_tasks <<<"$status")"
}

# logs_read_well: no panic, and no secret, in what the pool wrote.
logs_read_well() {
    compose logs --no-color >"$pool/logs"
    ! grep -n 'panicked' "$pool/logs" || die "something panicked"
    local secret
    while read -r secret; do
        ! grep -qF -- "$secret" "$pool/logs" || die "a secret of .compose stands in the logs"
    done < <(sed -n 's/^[A-Z_]*\(PASSWORD\|SECRET_ACCESS_KEY\)=//p' "$pool"/.compose/*/*.env)
}

# metrics_of SERVICE: what the first container of a service serves on this machine.
metrics_of() {
    local address port
    address=$(docker port "$(containers "$1" | head -n 1)" 8080 | head -n 1)
    port=${address##*:}
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf 'GET /metrics HTTP/1.1\r\nHost: muster\r\nConnection: close\r\n\r\n' >&3
    cat <&3
    exec 3>&-
}

# unnamed_volumes: of all containers of the pool.
unnamed_volumes() {
    docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" | xargs -r docker inspect \
        --format '{{ range .Mounts }}{{ if eq .Type "volume" }}{{ .Name }}{{ "\n" }}{{ end }}{{ end }}' | grep -E '^[0-9a-f]{64}$' || true
}

# removed: takes the pool down, and looks that nothing of it is left.
removed() {
    local left
    compose down -v --remove-orphans --timeout 45
    local ours="label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"
    left=$(docker ps -aq --filter "$ours" && docker volume ls -q --filter "$ours" && docker network ls -q --filter "$ours")
    [ -z "$left" ] || die "left behind: $left"
}

clean_up() {
    local status=$?
    if [ "$status" != 0 ] && $keep; then
        say "left as it is in $pool: cd there, and '${composer[*]} ps', 'logs', 'down -v'"
        return
    fi
    if [ "$status" != 0 ]; then
        [ ! -f "$log" ] || tail -n 20 "$log" >&2
        [ ! -f "$pool/.env" ] || compose logs --no-color --tail 15 >&2 || true
    fi
    [ ! -f "$pool/.env" ] || compose down -v --remove-orphans --timeout 5 || true
    rm -rf "$pool"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if $images; then
    step "images"
    "$root/deploy/images.sh" "${image_options[@]}"
fi
# MinIO where its image was pulled, else what images.sh made here.
init=(--dir "$pool")
docker image inspect muster-s3:local >/dev/null 2>&1 && init+=(--local)

step "a pool with ${composer[*]}"
"$root/deploy/compose.sh" init "${init[@]}"
compose up -d
until_true 90 "four healthy workers" workers_healthy 4
until_true 60 "health checks" all_well
compose run -T --rm doctor >"$pool/doctor" ||
    die "the doctor finds: $(grep -v '^ok' "$pool/doctor")"

step "$records records, sorted from bucket to bucket; two of four workers are killed"
client gen -n "$records" --files 4 -o s3://muster/in
submit killed out
until_true 60 "two workers at work" two_busy
# shellcheck disable=SC2086
docker kill $busy >/dev/null
step "killed $(tr '\n' ' ' <<<"$busy")"
ends_well killed out

for service in coordinator worker; do
    metrics_of "$service" | grep -q '^muster_' || die "/metrics of a $service cannot be read from this machine"
done

step "eight workers"
compose up -d --scale worker=8
until_true 90 "eight healthy workers" workers_healthy 8
"$root/deploy/compose.sh" up --dir "$pool" 2>>"$log"
[ "$(containers worker | wc -l)" = 8 ] || die "'compose.sh up' sent workers away that --scale had added"
"$root/deploy/compose.sh" up --workers 3 --dir "$pool" 2>>"$log"
[ "$(containers worker | wc -l)" = 3 ] || die "'compose.sh up --workers 3' has left $(containers worker | wc -l)"
[ -z "$(unnamed_volumes)" ] || die "volumes without a name would stay behind: $(unnamed_volumes)"

logs_read_well
removed

if $with_cluster; then
    step "three NATS servers, one of which is killed while a job runs"
    printf 'ADDED=by hand\n' >>"$pool/.env"
    "$root/deploy/compose.sh" init "${init[@]}" --cluster
    for kept in POOL_WORKERS=3 'ADDED=by hand'; do
        grep -qxF "$kept" "$pool/.env" || die "'init --cluster' has lost $kept, which stood in .env"
    done
    "$root/deploy/compose.sh" up --workers 4 --dir "$pool" 2>>"$log"
    compose up -d
    until_true 120 "four healthy workers" workers_healthy 4
    client gen -n "$records" --files 4 -o s3://muster/in
    submit cluster out
    until_true 60 "two workers at work" two_busy
    docker kill "$(containers nats-2)" >/dev/null
    step "and a worker is stopped: it finishes or hands back what it has, within its grace"
    stopped=$(head -n 1 <<<"$busy")
    docker stop -t 40 "$stopped" >/dev/null
    [ "$(docker inspect --format '{{ .State.ExitCode }}' "$stopped")" = 0 ] || die "a worker that was stopped ended with an error"
    ends_well cluster out
    compose up -d
    until_true 60 "health checks" all_well
    logs_read_well
    removed
fi
step "done: sorted, proven, and nothing left"
