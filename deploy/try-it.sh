#!/usr/bin/env bash
# Shows muster at work on this machine: set-up, release build, 10 million gensort records (1 GB), sort with 2 workers, proof.
#
#   deploy/try-it.sh [--records N] [--workers N] [--dir DIR] [--keep]
#
#   --records N   100-byte records to make and sort (default 10000000; or MUSTER_RECORDS)
#   --workers N   workers to sort with (default 2; or MUSTER_WORKERS)
#   --dir DIR     where to work (default the system's temporary folder; or MUSTER_DIR); about 3.5 times the data is needed
#   --keep        leave data and result in place
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

records=${MUSTER_RECORDS:-10000000}
workers=${MUSTER_WORKERS:-2}
dir=${MUSTER_DIR:-${TMPDIR:-/tmp}}
keep=false
while [ $# -gt 0 ]; do
    case $1 in
    --records) records=${2:-} && shift ;;
    --workers) workers=${2:-} && shift ;;
    --dir) dir=${2:-} && shift ;;
    --keep) keep=true ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
want_number --records "$records"
want_number --workers "$workers"
[ -d "$dir" ] || die "$dir is no folder"

# Input, runs and output each hold all the data once.
want_space "$dir" $((records * 350))
"$root/deploy/setup.sh"
use_tools
build_release

work=$(mktemp -d "$dir/muster-try-it.XXXXXX")
clean_up() {
    if $keep; then say "left in $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "generating $records records"
"$muster" gen -n "$records" --ascii -o "$work/input"
say "sorting with $workers workers"
"$muster" sort "$work/input" -o "$work/output" --format fixed:100 -k 0:10 "--local=$workers"
say "verifying: order, and that what came out is what the manifest says"
"$muster" verify "$work/output" --against "$work/output/_SUCCESS"
say "done: $records records in order, nothing lost, nothing twice"
