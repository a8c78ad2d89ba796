#!/usr/bin/env bash
# How much faster is a whole `muster sort` than sort(1), on this machine, on the same data, in the same minutes?
#
#   deploy/bench.sh [--records N] [--format fixed|lines] [--rounds N] [--workers N] [--dir DIR] [--at-least R]
#
#   --records N         100-byte gensort ASCII records (default 10000000: 1 GB; 1000 shows what starting and ending cost)
#   --format F          what muster takes them for: fixed (records of 100 bytes, key 0:10; default) or lines (whole lines)
#   --rounds N          timed runs of each program, in turn (default 3)
#   --workers N         muster's workers (default 2)
#   --dir DIR           where to work (default the system's temporary folder)
#   --at-least R        fail unless muster is R times as fast (wall time, medians)
#
# Both read the input from the page cache (it is read right before each run, the machine having written back what the run before
# left) and write their output as files. muster's time includes start and end of its private server. sort(1) runs as
# `LC_ALL=C sort --parallel=2 -S 8G`. CPU seconds are user plus system of the command and the children it waited for.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

records=10000000
format=fixed
rounds=3
workers=2
dir=${TMPDIR:-/tmp}
at_least=0
while [ $# -gt 0 ]; do
    case $1 in
    --records) records=${2:-} && shift ;;
    --format) format=${2:-} && shift ;;
    --rounds) rounds=${2:-} && shift ;;
    --workers) workers=${2:-} && shift ;;
    --dir) dir=${2:-} && shift ;;
    --at-least) at_least=${2:-} && shift ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
want_number --records "$records"
want_number --rounds "$rounds"
want_number --workers "$workers"
case $at_least in '' | *[!0-9.]*) misuse "--at-least must be a number, not '$at_least'" ;; esac
case $format in
fixed) as=(--format fixed:100 -k 0:10) ;;
lines) as=(--format lines) ;;
*) misuse "--format must be fixed or lines, not '$format'" ;;
esac
[ -d "$dir" ] || die "$dir is no folder"

# Input, sort's output and its temporaries, muster's runs and output.
want_space "$dir" $((records * 550))
"$root/deploy/setup.sh"
use_tools
build_release

work=$(mktemp -d "$dir/muster-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
input=$work/input
"$muster" gen -n "$records" --ascii -o "$input"

run_sort() {
    LC_ALL=C sort --parallel=2 -S 8G -T "$work" -o "$work/sorted" "$input"
}

run_muster() {
    "$muster" sort "$input" -o "$work/parts" "${as[@]}" "--local=$workers" --quiet
}

# timed NAME: one run; appends "wall cpu" to the program's file and prints it.
timed() {
    sync
    cat "$input" >/dev/null
    local TIMEFORMAT='%R %U %S'
    { time "run_$1" >"$work/log" 2>&1; } 2>"$work/time" ||
        { cat "$work/log" >&2 && die "run_$1 failed"; }
    awk '{ print $1, $2 + $3 }' "$work/time" >>"$work/times.$1"
    awk -v name="$1" '{ printf "  %-7s wall %8.3f s   cpu %8.3f s\n", name, $1, $2 + $3 }' "$work/time"
}

say "$records records as $format, $rounds rounds in turn"
for ((round = 1; round <= rounds; round++)); do
    rm -rf "$work/sorted" "$work/parts"
    timed sort
    timed muster
    concatenated "$work/parts" | cmp - "$work/sorted" || die "muster's output differs from sort's"
done

column() {
    awk -v column="$2" '{ print $column }' "$work/times.$1" | median
}
awk -v sort_wall="$(column sort 1)" -v sort_cpu="$(column sort 2)" -v wall="$(column muster 1)" -v cpu="$(column muster 2)" \
    -v records="$records" -v at_least="$at_least" '
    function per(a, b) { return b > 0 ? a / b : 0 }
    BEGIN {
        megabytes = records / 10000
        printf "median   sort   wall %.3f s   cpu %.3f s   %.0f MB/s\n", sort_wall, sort_cpu, per(megabytes, sort_wall)
        printf "median   muster wall %.3f s   cpu %.3f s   %.0f MB/s\n", wall, cpu, per(megabytes, wall)
        printf "ratio    muster is %.2f times as fast (wall) and takes 1/%.2f of the CPU time; outputs identical\n",
            per(sort_wall, wall), per(sort_cpu, cpu)
        if (per(sort_wall, wall) < at_least) {
            printf "short    of the %.2f times asked for\n", at_least
            exit 1
        }
    }'
