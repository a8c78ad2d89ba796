#!/usr/bin/env bash
# Makes what a NATS server for muster is set up with: settings of one server or three, a user for each role with its rights and no more, and files of
# environment variables with which muster connects as each of them.
#
#   deploy/nats/make.sh --out DIR [--cluster] [--tls] [--worker ID]... [--host NAME]... [more below]
#
#   --out DIR         where it all goes; made if it is not there, for its owner alone. Run again with the same options it keeps every password
#                     and key, and adds what is new
#   --cluster         three servers, n1, n2 and n3, in place of one
#   --node NAME=HOST[:PORT[:ROUTES]]
#                     one of the three: its name, where the others reach it, its ports for clients and for the cluster (default 4222 and 6222).
#                     Three times or never (then n1=n1, n2=n2, n3=n3); means --cluster
#   --port N          the port of the one server (default 4222)
#   --tls             clients and servers speak TLS: makes a CA and a certificate for the servers
#   --host NAME       a name or address that the certificate is for; may be repeated (default localhost, nats, n1, n2, n3, 127.0.0.1 and all of --node)
#   --worker ID       a user for this worker alone, so that no worker can act as another; may be repeated. Then there is none that all workers share
#   --url URL         where clients find the servers: goes into the files as NATS_URL; else that is left to whoever starts them
#   --namespace NS    the deployment's namespace (default muster); another one needs a muster on PATH or in target/
#   --at PATH         where the servers will see DIR, if it is somewhere else than here
#   --ca PATH         where muster will see DIR/ca.pem, if that is somewhere else than here
#   --store PATH      where each server keeps its streams (default DIR/store, DIR/store-n1 and so on, as --at has it)
#   --force           new passwords and keys for all
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/../lib.sh"

# The journal may take 1 GiB and events and dead letters 64 MiB each, three times in a cluster; readers are kept in memory.
account_file_one=2GiB
account_file_cluster=6GiB
account_memory=64MiB
# Passwords have 192 random bits, so nobody guesses them from a hash: it need not be slow, and a thousand workers that come back at once are let in quickly.
bcrypt_cost=06
ca_days=3650
server_days=825

out='' url='' at='' ca='' store='' namespace=muster port=4222
cluster=false tls=false force=false
workers=() hosts=() nodes=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:-} && shift ;;
    --cluster) cluster=true ;;
    --node) nodes+=("${2:-}") cluster=true && shift ;;
    --port) port=${2:-} && shift ;;
    --tls) tls=true ;;
    --host) hosts+=("${2:-}") && shift ;;
    --worker) workers+=("${2:-}") && shift ;;
    --url) url=${2:-} && shift ;;
    --namespace) namespace=${2:-} && shift ;;
    --at) at=${2:-} && shift ;;
    --ca) ca=${2:-} && shift ;;
    --store) store=${2:-} && shift ;;
    --force) force=true ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
[ -n "$out" ] || misuse "say where to: --out DIR"
want_number --port "$port"
for worker in "${workers[@]}"; do
    [[ $worker =~ ^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$ ]] || misuse "'$worker' is no worker's id"
done
for host in "${hosts[@]}"; do
    [[ $host =~ ^[a-zA-Z0-9.:*_-]+$ ]] || misuse "'$host' is no host"
done
[[ $namespace =~ ^[a-z0-9-]{1,32}$ ]] || misuse "'$namespace' is no namespace"
[[ $url$at$ca$store != *[\"\\[:space:]]* ]] || misuse "URLs and paths may have no blanks, quotes or backslashes"
if [ ${#nodes[@]} = 0 ]; then
    nodes=(n1=n1 n2=n2 n3=n3)
fi
[ ${#nodes[@]} = 3 ] || misuse "a cluster has three servers: --node three times"
for node in "${nodes[@]}"; do
    [[ $node =~ ^[a-zA-Z0-9_-]+=[a-zA-Z0-9._-]+(:[1-9][0-9]*){0,2}$ ]] || misuse "--node must be NAME=HOST[:PORT[:ROUTES]], not '$node'"
done

umask 077
mkdir -p "$out"
out=$(cd "$out" && pwd)
[[ $out != *[\"\\[:space:]]* ]] || die "the path $out has blanks, quotes or backslashes: choose another --out"
chmod 700 "$out"
at=${at:-$out}
ca=${ca:-$out/ca.pem}

# write NAME: a file in DIR from standard input, whole or not at all.
write() {
    cat >"$out/.$1.new"
    mv -f "$out/.$1.new" "$out/$1"
}

random() {
    od -An -v -N "$1" -tx1 /dev/urandom | tr -d ' \n'
}

# bcrypt PASSWORD: its hash, as nats-server has them.
bcrypt() {
    local hash=''
    # A salt has 22 characters of 6 bits, of which the last gives 2 only.
    # shellcheck disable=SC2016 # the variables are perl's
    hash=$(PASSWORD=$1 SALT="\$2a\$$bcrypt_cost\$$(random 11 | cut -c 1-21)." perl -e 'print crypt($ENV{PASSWORD}, $ENV{SALT}) // ""' 2>/dev/null) || true
    if [[ $hash != \$2a\$* ]] && command -v htpasswd >/dev/null; then
        hash=$(printf '%s\n' "$1" | htpasswd -niBC "$((10#$bcrypt_cost))" '' | tr -d ':\n')
        # The same hash by another name.
        hash=${hash/#\$2y/\$2a}
    fi
    [[ $hash =~ ^\$2a\$[0-9]{2}\$[./A-Za-z0-9]{53}$ ]] ||
        die "neither perl nor htpasswd makes bcrypt hashes here: install perl, or apache2-utils"
    printf '%s' "$hash"
}

# find_muster: the program, for rights that are not committed.
find_muster() {
    local candidate
    for candidate in "$(command -v muster)" "$(target_dir)/release/muster" "$(target_dir)/debug/muster"; do
        if [ -x "$candidate" ]; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "the namespace $namespace needs muster itself, which is not on PATH and not in target/: build it, or use the namespace muster"
}

# permissions ROLE [ID]: what its user may do, as a block of settings. Those of the namespace muster are committed; a test compares them with the program's.
permissions() {
    if [ "$namespace" != muster ]; then
        "$muster" rights --namespace "$namespace" --role "$1" ${2:+--id "$2"}
        return
    fi
    local name=$1${2:+-WORKER_ID}
    awk -v "head=$name: {" '$0 == head { print "permissions: {"; on = 1; next } on { print } on && /^}/ { exit }' \
        "$root/deploy/nats/permissions.conf" | sed "s/WORKER_ID/${2:-}/g"
}

# variables FILE USER INBOX [MORE]: the file with which muster connects as a user; keeps the password that stands there.
variables() {
    local password=''
    if ! $force && [ -f "$out/$1" ]; then
        password=$(sed -n 's/^NATS_PASSWORD=//p' "$out/$1")
    fi
    password=${password:-$(random 24)}
    {
        [ -z "$url" ] || printf 'NATS_URL=%s\n' "$url"
        printf 'NATS_USER=%s\nNATS_PASSWORD=%s\n' "$2" "$password"
        [ -z "$3" ] || printf 'NATS_INBOX_PREFIX=%s\n' "$3"
        [ -z "$3" ] || [ "$namespace" = muster ] || printf 'MUSTER_NAMESPACE=%s\n' "$namespace"
        ! $tls || printf 'NATS_CA=%s\n' "$ca"
        [ -z "${4:-}" ] || printf '%s\n' "$4"
    } | write "$1"
    hash=$(bcrypt "$password")
}

# user FILE NAME INBOX ROLE [ID]: its variables, and its entry among the users.
user() {
    variables "$1" "$2" "$3" "${5:+MUSTER_WORKER_ID=$5}"
    printf '      { user: "%s", password: "%s"\n' "$2" "$hash"
    local rights
    rights=$(permissions "$4" ${5:+"$5"})
    # A user without a list of rights would have all of them.
    [[ $rights = permissions:* ]] || die "there are no rights for the role $4 (deploy/nats/permissions.conf): no users are written"
    printf '%s\n' "$rights" | sed 's/^/        /'
    printf '      }\n'
}

make_users() {
    local inbox="_INBOX_$namespace" file worker memory=$account_memory size=$account_file_one
    ! $cluster || size=$account_file_cluster
    variables sys.env sys ''
    printf '# Made by deploy/nats/make.sh: it is made anew by each run. Passwords stand in the .env files, here are their hashes.\n'
    printf 'system_account: SYS\naccounts {\n  SYS { users: [ { user: "sys", password: "%s" } ] }\n  MUSTER {\n' "$hash"
    printf '    jetstream { max_memory: %s, max_file: %s, max_streams: 8 }\n    users: [\n' "$memory" "$size"
    user coordinator.env coordinator "${inbox}_coordinator" coordinator
    user client.env client "${inbox}_client" client
    user operator.env operator "${inbox}_operator" operator
    if [ ${#workers[@]} = 0 ]; then
        user worker.env worker "${inbox}_workers" worker
    else
        for worker in "${workers[@]}"; do
            user "worker-$worker.env" "worker-$worker" "${inbox}_worker.$worker" worker "$worker"
        done
    fi
    printf '    ]\n  }\n}\n'
}

# certificates: a CA, and a certificate for the servers, anew where it is for other names.
certificates() {
    command -v openssl >/dev/null || die "openssl is missing, which makes certificates: install it, or leave --tls away"
    local names=() name list
    for name in "$@"; do
        if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+=("IP:$name"); else names+=("DNS:$name"); fi
    done
    list=$(printf '%s\n' "${names[@]}" | awk '!seen[$0]++' | paste -sd,)
    if ! $force && [ -f "$out/ca.pem" ] && [ "$(cat "$out/server.names" 2>/dev/null)" = "$list" ]; then
        return
    fi
    if $force || [ ! -f "$out/ca.pem" ]; then
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days "$ca_days" -subj "/CN=muster NATS CA" \
            -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$out/ca.key" -out "$out/ca.pem" 2>/dev/null
    fi
    [ -f "$out/ca.key" ] || die "a certificate for other names is to be made, and $out/ca.key, which signs it, is not there: put it back, or use --force"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=muster NATS" -keyout "$out/server.key" -out "$out/.server.csr" 2>/dev/null
    openssl x509 -req -in "$out/.server.csr" -CA "$out/ca.pem" -CAkey "$out/ca.key" -days "$server_days" -out "$out/server.pem" 2>/dev/null -extfile <(
        printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s\n' "$list"
    )
    rm -f "$out/.server.csr"
    printf '%s\n' "$list" | write server.names
}

# server FILE NAME PORT STORE: settings that all servers have.
server() {
    cat <<CONF
# Made by deploy/nats/make.sh: it is made anew by each run. Start it with: nats-server -c $at/$1
server_name: "$2"
listen: "0.0.0.0:$3"
# Monitoring asks for no password: it stays on this machine.
http: "127.0.0.1:$(($3 + 4000))"
max_payload: 1MiB
# A client that is gone is noticed within half a minute.
ping_interval: "10s"
ping_max: 2
jetstream {
  store_dir: "$4"
  # What was acknowledged outlives a power failure.
  sync_interval: always
}
CONF
    ! $tls || printf 'tls {\n  cert_file: "%s/server.pem"\n  key_file: "%s/server.key"\n  timeout: 5\n}\n' "$at" "$at"
}

# member INDEX SECRET: settings of one of three.
member() {
    local name=${nodes[$1]%%=*} secret=$2 place all=() node
    for node in "${nodes[@]}"; do
        place=${node#*=}:4222:6222
        all+=("\"nats-route://route:$secret@$(cut -d : -f 1 <<<"$place"):$(cut -d : -f 3 <<<"$place")\"")
    done
    place=${nodes[$1]#*=}:4222:6222
    server "$name.conf" "$name" "$(cut -d : -f 2 <<<"$place")" "${store:-$at/store-$name}"
    printf 'cluster {\n  name: "muster"\n  listen: "0.0.0.0:%s"\n' "$(cut -d : -f 3 <<<"$place")"
    printf '  authorization { user: "route", password: "%s", timeout: 5 }\n  routes: [\n' "$secret"
    printf '    %s\n' "${all[@]}"
    printf '  ]\n'
    ! $tls || printf '  tls {\n    cert_file: "%s/server.pem"\n    key_file: "%s/server.key"\n    ca_file: "%s/ca.pem"\n    verify: true\n    timeout: 5\n  }\n' "$at" "$at" "$at"
    printf '}\ninclude "users.conf"\n'
}

# Workers that have a user keep it.
for file in "$out"/worker-*.env; do
    [ -f "$file" ] || continue
    file=$(basename "$file" .env)
    case " ${workers[*]} " in
    *" ${file#worker-} "*) ;;
    *) workers+=("${file#worker-}") ;;
    esac
done
if [ ${#workers[@]} != 0 ] && [ -f "$out/worker.env" ]; then
    rm -f "$out/worker.env"
    say "there is no user any more that all workers share: worker.env is gone"
fi
[ "$namespace" = muster ] || muster=$(find_muster)
make_users >"$out/.users.conf.new"
mv -f "$out/.users.conf.new" "$out/users.conf"
if $tls; then
    places=("${nodes[@]#*=}")
    default=(localhost nats n1 n2 n3 127.0.0.1 "${places[@]%%:*}")
    [ ${#hosts[@]} = 0 ] || default=("${hosts[@]}")
    certificates "${default[@]}"
fi
if $cluster; then
    if $force || [ ! -f "$out/cluster.secret" ]; then
        random 24 | write cluster.secret
    fi
    secret=$(cat "$out/cluster.secret")
    configs=()
    for index in 0 1 2; do
        configs+=("${nodes[$index]%%=*}.conf")
        member "$index" "$secret" | write "${configs[$index]}"
    done
    printf '# For coordinators (--config): all three servers keep what must survive.\n[journal]\nreplicas = 3\n' | write coordinator.toml
else
    configs=(server.conf)
    { server server.conf nats "$port" "${store:-$at/store}" && printf 'include "users.conf"\n'; } | write server.conf
fi
use_tools
if command -v nats-server >/dev/null && [ "$at" = "$out" ]; then
    for config in "${configs[@]}"; do
        nats-server -t -c "$out/$config" >/dev/null 2>"$out/.check" || die "nats-server does not take $out/$config: $(cat "$out/.check")"
    done
    rm -f "$out/.check"
fi
say "in $out: ${configs[*]}, users.conf, and for muster $(cd "$out" && echo ./*.env | sed 's#\./##g')"
