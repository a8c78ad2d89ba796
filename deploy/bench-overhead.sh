#!/usr/bin/env bash
# How much of a calm run is spent on the journal and on heartbeats? Read from the program's own spans.
#
#   deploy/bench-overhead.sh [--rounds N] [--dir DIR] [RECORDS:LIMIT...]
#
#   RECORDS:LIMIT   100-byte gensort ASCII records, and the share of the wall time in percent that may be blocked
#                   (default 1000000:5 for 100 MB and 40000000:2 for 4 GB)
#   --rounds N      runs of each size, of which the one in the middle is judged (default 5)
#   --dir DIR       where to work (default the system's temporary folder)
#
# Blocked is the time in which an append to the journal, a heartbeat or a report was under way while not all of the workers were at an attempt: whoever had
# nothing to do might have had something without it. For each such moment the share of the idle workers counts. The time in which any of them was under
# way at all is shown beside it. Wall time is that of the whole command. Runs with 2 workers.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

rounds=5
dir=${TMPDIR:-/tmp}
sizes=()
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:-} && shift ;;
    --dir) dir=${2:-} && shift ;;
    -h | --help) help && exit 0 ;;
    [1-9]*:[0-9]*) sizes+=("$1") ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
want_number --rounds "$rounds"
[ -d "$dir" ] || die "$dir is no folder"
[ ${#sizes[@]} -gt 0 ] || sizes=(1000000:5 40000000:2)
command -v python3 >/dev/null || die "python3 is needed to read the spans"
"$root/deploy/setup.sh"
use_tools
build_release
work=$(mktemp -d "$dir/muster-overhead.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failed=false
for size in "${sizes[@]}"; do
    records=${size%%:*} limit=${size##*:}
    want_space "$dir" $((records * 450))
    "$muster" gen -n "$records" --ascii -o "$work/input"
    for round in $(seq "$rounds"); do
        sync
        cat "$work/input" >/dev/null
        rm -rf "$work/parts"
        begun=$(date +%s%N)
        MUSTER_LOG=warn,muster_coordinator=debug,muster_worker=debug MUSTER_LOG_SPANS=1 "$muster" sort "$work/input" \
            -o "$work/parts" --format fixed:100 -k 0:10 --local=2 --quiet --log-format json 2>"$work/log.$round"
        echo $(($(date +%s%N) - begun)) >"$work/wall.$round"
    done
    say "$((records / 10000)) MB"
    python3 "$root/deploy/spans.py" "$limit" "$rounds" "$work" || failed=true
    rm -rf "$work/input" "$work/parts"
done
if $failed; then die "more than the limit was blocked"; fi
