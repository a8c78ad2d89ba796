#!/usr/bin/env bash
# A pool on this machine: a NATS server, a coordinator and two workers on the loopback interface,
# which share a folder as their store. On many machines it is the same, with a bucket instead.
#
#   examples/pool.sh [FOLDER]     (default: a new temporary folder, which is left in place)
#
# Wants muster and nats-server in the PATH.
set -euo pipefail

folder=${1:-$(mktemp -d)}
mkdir -p "$folder/in" "$folder/nats"
for number in 1 2 3; do
    seq "$number" 3 3000 | sort -R > "$folder/in/$number"
done

started=()
stop() {
    kill "${started[@]}" 2> "$folder/kill.log" || true
    wait
}
trap stop EXIT

# The server chooses a free port and writes it down.
nats-server --jetstream --store_dir "$folder/nats" --addr 127.0.0.1 --port -1 \
    --ports_file_dir "$folder/nats" > "$folder/nats.log" 2>&1 &
started+=($!)
until ports=$(cat "$folder"/nats/nats-server_*.ports 2> "$folder/wait.log"); do sleep 0.05; done
nats=$(grep -o 'nats://[0-9.:]*' <<< "$ports" | head -n 1)

muster coordinator --nats "$nats" > "$folder/coordinator.log" 2>&1 &
started+=($!)
for worker in w1 w2; do
    muster worker --nats "$nats" --id "$worker" --data-dir "$folder/$worker" --memory 256MiB \
        > "$folder/$worker.log" 2>&1 &
    started+=($!)
done

# The client waits for the coordinator and the first worker.
muster sort "$folder/in" -o "$folder/out" -n --partitions 4 --nats "$nats" --quiet
muster workers --nats "$nats"
muster verify "$folder/out"
cat "$folder"/out/part-* > "$folder/sorted"
