#!/usr/bin/env bash
# Does --memory hold? Sorts 4 GB with --memory 512MiB inside a memory cgroup of 900 MiB, server included, and watches the process.
#
#   deploy/bench-memory.sh [--records N] [--memory SIZE] [--anon-max MIB] [--cgroup MIB] [--dir DIR] [--without-cgroup]
#
#   --records N        100-byte gensort ASCII records (default 40000000: 4 GB)
#   --memory SIZE      muster's budget (default 512MiB)
#   --anon-max MIB     what the muster process may hold without file-backed pages, RssAnon (default 600)
#   --cgroup MIB       limit of the cgroup for the whole command (default 900)
#   --dir DIR          where to work: a disk, not memory (default the system's temporary folder)
#   --without-cgroup   do without the cgroup; without this option, a machine on which none can be made fails the check
#
# The output must be the same bytes as that of a run with --memory 8GiB outside the cgroup.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

records=40000000
memory=512MiB
anon_max=600
limit=900
dir=${TMPDIR:-/tmp}
with_cgroup=true
while [ $# -gt 0 ]; do
    case $1 in
    --records) records=${2:-} && shift ;;
    --memory) memory=${2:-} && shift ;;
    --anon-max) anon_max=${2:-} && shift ;;
    --cgroup) limit=${2:-} && shift ;;
    --dir) dir=${2:-} && shift ;;
    --without-cgroup) with_cgroup=false ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
want_number --records "$records"
want_number --anon-max "$anon_max"
want_number --cgroup "$limit"
[ -d "$dir" ] || die "$dir is no folder"
[ "$(uname)" = Linux ] || die "this check reads /proc and needs Linux"
[ "$(stat -f -c %T "$dir")" != tmpfs ] || die "$dir lies in memory and would count as muster's: use --dir with a disk"

cgroup=
# make_cgroup: a new group with the limit, in version 1 or 2, whichever this machine has and lets us write.
make_cgroup() {
    local bytes=$((limit * 1048576)) name=muster-bench-$$
    local v1=/sys/fs/cgroup/memory/$name v2=/sys/fs/cgroup/$name
    if [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ] && mkdir "$v1" 2>/dev/null; then
        cgroup=$v1
        echo "$bytes" >"$v1/memory.limit_in_bytes"
        # Where swap is accounted, none may be used.
        if [ -w "$v1/memory.memsw.limit_in_bytes" ]; then echo "$bytes" >"$v1/memory.memsw.limit_in_bytes" || true; fi
    elif grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null && mkdir "$v2" 2>/dev/null; then
        cgroup=$v2
        echo "$bytes" >"$v2/memory.max"
        if [ -w "$v2/memory.swap.max" ]; then echo 0 >"$v2/memory.swap.max"; fi
    else
        return 1
    fi
}

# Highest use of the group so far, in bytes, and how often it had to kill; empty where the kernel does not tell.
cgroup_peak() {
    cat "$cgroup/memory.max_usage_in_bytes" 2>/dev/null || cat "$cgroup/memory.peak" 2>/dev/null || true
}
cgroup_kills() {
    cat "$cgroup/memory.oom_control" "$cgroup/memory.events" 2>/dev/null | awk '$1 == "oom_kill" { print $2 }' || true
}

work=
pid=
clean_up() {
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    [ -z "$work" ] || rm -rf "$work"
    # A group can be removed once the last of its processes is gone.
    if [ -n "$cgroup" ]; then
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            if rmdir "$cgroup" 2>/dev/null; then break; fi
            sleep 0.2
        done
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Input; then runs, spilled chunks and output of one run at a time.
want_space "$dir" $((records * 450))
"$root/deploy/setup.sh"
use_tools
build_release
if $with_cgroup; then
    make_cgroup || die "no memory cgroup can be made here (neither version 1 nor 2 is writable): NOT CHECKED; see --without-cgroup"
    say "memory cgroup of $limit MiB: $cgroup"
else
    say "without a memory cgroup, as asked: that limit is NOT CHECKED"
fi

work=$(mktemp -d "$dir/muster-memory.XXXXXX")
"$muster" gen -n "$records" --ascii -o "$work/input"
# What generating left in the page cache belongs to no group; the timed run starts with it written back.
sync
sorted_by() { # sorted_by MEMORY: becomes the sort.
    exec "$muster" sort "$work/input" -o "$work/parts" --format fixed:100 -k 0:10 --memory "$1" --data-dir "$work/data" --quiet
}

say "sorting $((records / 10000)) MB with --memory $memory"
before=$SECONDS
(
    if [ -n "$cgroup" ]; then echo "$BASHPID" >"$cgroup/cgroup.procs"; fi
    sorted_by "$memory"
) >"$work/log" 2>&1 &
pid=$!
peak=0
while anon=$(awk '$1 == "RssAnon:" { print $2 }' "/proc/$pid/status" 2>/dev/null) && [ -n "$anon" ]; do
    if [ "$anon" -gt "$peak" ]; then peak=$anon; fi
    sleep 0.05
done
status=0
wait "$pid" || status=$?
pid=
kills=
used=
if [ -n "$cgroup" ]; then kills=$(cgroup_kills) used=$(cgroup_peak); fi
if [ "$status" != 0 ]; then
    cat "$work/log" >&2
    die "muster sort ended with $status; peak RssAnon $((peak / 1024)) MiB; processes killed by the cgroup: ${kills:-unknown}"
fi
small=$(concatenated "$work/parts" | sha256sum)
say "took $((SECONDS - before)) s; peak RssAnon $((peak / 1024)) MiB (at most $anon_max);" \
    "cgroup peak ${used:+$((used / 1048576)) MiB }with page cache; killed: ${kills:-unknown}"
rm -rf "$work/parts" "$work/data"

say "sorting the same with --memory 8GiB"
(sorted_by 8GiB) >"$work/log" 2>&1 || { cat "$work/log" >&2 && die "muster sort with --memory 8GiB failed"; }
large=$(concatenated "$work/parts" | sha256sum)

[ "$small" = "$large" ] || die "the outputs differ: ${small%% *} and ${large%% *}"
[ "$peak" -gt 0 ] || die "the process was never seen: more records are needed for this check"
[ "$((peak / 1024))" -lt "$anon_max" ] || die "RssAnon reached $((peak / 1024)) MiB, $anon_max is the limit"
[ "${kills:-0}" = 0 ] || die "the cgroup killed $kills processes"
say "kept: same bytes as with 8GiB, RssAnon below $anon_max MiB$([ -z "$cgroup" ] || echo ", whole command within $limit MiB")"
