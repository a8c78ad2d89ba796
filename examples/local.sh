#!/usr/bin/env bash
# A sort on this machine alone: two files of lines into a folder of parts, and the proof of it.
#
#   examples/local.sh [FOLDER]     (default: a new temporary folder, which is left in place)
#
# Wants muster and nats-server in the PATH: muster starts a private server and stops it.
set -euo pipefail

folder=${1:-$(mktemp -d)}
mkdir -p "$folder/logs"
printf '%s\n' 'pear 3' 'apple 10' 'plum 7' > "$folder/logs/monday"
printf '%s\n' 'cherry 1' 'apple 2' > "$folder/logs/tuesday"

# By the number in the second field, largest first; two partitions, to show what a result is.
muster sort "$folder/logs" -o "$folder/sorted" -k2,2nr --partitions 2 --quiet

# One part after the other is the sorted data.
cat "$folder"/sorted/part-*

# Order, and count and checksum as the manifest says.
muster verify "$folder/sorted"
