#!/usr/bin/env bash
# Does --memory hold? Sorts 4 GB with --memory 512MiB inside a memory cgroup of 900 MiB, server included, and watches the process.
#
#   deploy/bench-memory.sh [--records N] [--memory SIZE] [--anon-max MIB] [--cgroup MIB] [--dir DIR] [--without-cgroup]
#   deploy/bench-memory.sh --table [--binary PATH] [--records "N..."] [--memories "MIB..."] [--forms "F..."] [--places "P..."] [--objects "N..."] [--dir DIR]
#
#   --records N        100-byte gensort ASCII records (default 40000000: 4 GB)
#   --memory SIZE      muster's budget (default 512MiB)
#   --anon-max MIB     what the muster process may hold without file-backed pages, RssAnon (default 600)
#   --cgroup MIB       limit of the cgroup for the whole command (default 900)
#   --dir DIR          where to work: a disk, not memory (default the system's temporary folder)
#   --without-cgroup   do without the cgroup; without this option, a machine on which none can be made fails the check
#
# The output must be the same bytes as that of a run with --memory 8GiB outside the cgroup.
#
# With --table, every combination runs in a cgroup of its own whose limit is the memory and 10 % more, and one line of figures is printed for each. It fails if a process was
# killed, if RssAnon went beyond the memory, or if two runs of the same input and form gave other bytes.
#
#   --binary PATH      a muster that is built already
#   --records "N..."   default "30000000 80000000": 3 GB and 8 GB
#   --memories "M..."  in MiB, default "128 256 512 1024"
#   --forms "F..."     fixed (records of 100 bytes, key 0:10), lines (whole lines), keys (lines by -k 2,2); default all
#   --places "P..."    local (one command, its server in the cgroup, too), worker (a worker in the cgroup; server, coordinator and client outside); default both
#   --objects "N..."   in place of records so many files of 18 bytes each, as lines, by one local command
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

records=
memory=512MiB
anon_max=600
limit=900
dir=${TMPDIR:-/tmp}
with_cgroup=true
table=false
binary=
memories="128 256 512 1024"
forms="fixed lines keys"
places="local worker"
objects=
while [ $# -gt 0 ]; do
    case $1 in
    --records) records=${2:-} && shift ;;
    --memory) memory=${2:-} && shift ;;
    --anon-max) anon_max=${2:-} && shift ;;
    --cgroup) limit=${2:-} && shift ;;
    --dir) dir=${2:-} && shift ;;
    --without-cgroup) with_cgroup=false ;;
    --table) table=true ;;
    --binary) binary=${2:-} && shift ;;
    --memories) memories=${2:-} && shift ;;
    --forms) forms=${2:-} && shift ;;
    --places) places=${2:-} && shift ;;
    --objects) objects=${2:-} && shift ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
if $table; then records=${records:-30000000 80000000}; else records=${records:-40000000}; fi
for count in $records; do want_number --records "$count"; done
$table || want_number --records "$records"
for count in $objects; do want_number --objects "$count"; done
for count in $memories; do want_number --memories "$count"; done
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

# A group can be removed once the last of its processes is gone.
remove_cgroup() {
    [ -n "$cgroup" ] || return 0
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if rmdir "$cgroup" 2>/dev/null; then break; fi
        sleep 0.2
    done
    cgroup=
}

work=
pid=
others=
clean_up() {
    for each in $pid $others; do
        kill "$each" 2>/dev/null || true
        wait "$each" 2>/dev/null || true
    done
    [ -z "$work" ] || rm -rf "$work"
    remove_cgroup
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the table ---

# arguments FORM: how muster is told to sort.
arguments() {
    case $1 in
    fixed) printf '%s ' --format fixed:100 -k 0:10 ;;
    lines | objects) printf '%s ' --format lines ;;
    keys) printf '%s ' --format lines -k 2,2 ;;
    *) misuse "a form is fixed, lines or keys, not '$1'" ;;
    esac
}

anon_of() {
    awk '$1 == "RssAnon:" { print $2 }' "/proc/$1/status" 2>/dev/null || true
}

# watch PID WATCHED: until PID ends; the peaks of WATCHED and of its children, in KiB, are in $peak and $peak_server then, and how PID ended in $status.
watch() {
    local anon child
    peak=0 peak_server=0 status=0
    while kill -0 "$1" 2>/dev/null; do
        anon=$(anon_of "$2")
        # A worker that was killed ends the run: nobody else would do the work.
        [ -n "$anon" ] || kill "$1" 2>/dev/null || true
        if [ "${anon:-0}" -gt "$peak" ]; then peak=$anon; fi
        for child in $(cat "/proc/$2"/task/*/children 2>/dev/null); do
            anon=$(anon_of "$child")
            if [ "${anon:-0}" -gt "$peak_server" ]; then peak_server=$anon; fi
        done
        sleep 0.02
    done
    wait "$1" || status=$?
}

# in_cgroup COMMAND...: becomes the command, in the group.
in_cgroup() {
    echo "$BASHPID" >"$cgroup/cgroup.procs"
    exec "$@"
}

# A private server and a coordinator, outside of any group.
start_pool() {
    mkdir -p "$work/nats"
    nats-server -a 127.0.0.1 -p -1 -js -sd "$work/nats/store" --ports_file_dir "$work/nats" >"$work/nats/log" 2>&1 &
    local server=$!
    others="$others $server"
    for _ in $(seq 100); do
        url=$(sed -n 's/.*"nats":\["\([^"]*\)".*/\1/p' "$work/nats/nats-server_$server.ports" 2>/dev/null) || true
        if [ -n "${url:-}" ]; then break; fi
        sleep 0.1
    done
    [ -n "${url:-}" ] || die "the NATS server did not start: $(tail -n 3 "$work/nats/log")"
    "$muster" coordinator --nats "$url" >"$work/coordinator.log" 2>&1 &
    others="$others $!"
}

# make_objects N: so many files of 18 bytes, a thousand in a folder.
make_objects() {
    mkdir -p "$work/input-$1"
    awk -v n="$1" -v dir="$work/input-$1" 'BEGIN {
        for (i = 0; i < n; i++) {
            if (i % 1000 == 0) { folder = sprintf("%s/%06d", dir, i / 1000); system("mkdir " folder) }
            file = sprintf("%s/%03d", folder, i % 1000)
            printf "%017d\n", (i * 7919) % n > file
            close(file)
        }
    }'
}

# one_run RECORDS FORM PLACE MIB: a line of the table. Of objects the first column counts thousands.
one_run() {
    local input=$work/input-$1 form=$2 place=$3 memory=$4 digest before=$SECONDS kills used
    limit=$(((memory * 110 + 99) / 100))
    make_cgroup || die "no memory cgroup can be made here (neither version 1 nor 2 is writable): NOT CHECKED"
    # shellcheck disable=SC2046
    if [ "$place" = local ]; then
        in_cgroup "$muster" sort "$input" -o "$work/parts" $(arguments "$form") --memory "${memory}MiB" --local --quiet >"$work/log" 2>&1 &
        pid=$!
        watch "$pid" "$pid"
    else
        in_cgroup "$muster" worker --nats "$url" --id "m$memory" --memory "${memory}MiB" --data-dir "$work/worker" >"$work/worker.log" 2>&1 &
        local worker=$!
        others="$others $worker"
        "$muster" sort "$input" -o "$work/parts" $(arguments "$form") --nats "$url" --quiet >"$work/log" 2>&1 &
        pid=$!
        watch "$pid" "$worker"
        kill "$worker" 2>/dev/null || true
        wait "$worker" 2>/dev/null || true
    fi
    pid=
    kills=$(cgroup_kills) used=$(cgroup_peak)
    remove_cgroup
    digest=failed
    if [ "$status" = 0 ]; then digest=$(concatenated "$work/parts" | sha256sum | cut -c1-12); fi
    rm -rf "$work/parts" "$work/worker"
    local verdict=ok
    known=$(cat "$work/digest-$1-$form" 2>/dev/null) || known=$digest
    [ "$digest" = failed ] || echo "$known" >"$work/digest-$1-$form"
    [ "$digest" = "$known" ] || verdict="other bytes"
    [ $((peak / 1024)) -le "$memory" ] || verdict="beyond --memory"
    [ "${kills:-0}" = 0 ] || verdict=killed
    [ "$status" = 0 ] || verdict="failed: $(tail -n 1 "$work/log")"
    local unit=10000000
    [ "$form" != objects ] || unit=1000
    printf '| %5s | %-7s | %-6s | %6s | %6s | %4s | %6s | %6s | %s |\n' "$(awk -v n="$1" -v unit=$unit 'BEGIN { printf "%.1f", n / unit }')" "$form" "$place" "$memory" \
        "$((peak / 1024))" "$((peak_server / 1024))" "$limit" "${used:+$((used / 1048576))}" "$verdict, $((SECONDS - before)) s"
    [ "$verdict" = ok ] || bad=$((bad + 1))
}

if $table; then
    if [ -n "$objects" ]; then records= places=local; fi
    largest=0
    for count in $records; do if [ "$count" -gt "$largest" ]; then largest=$count; fi; done
    want_space "$dir" $((largest * 450))
    "$root/deploy/setup.sh" >/dev/null
    use_tools
    if [ -n "$binary" ]; then muster=$(realpath "$binary"); else build_release; fi
    work=$(mktemp -d "$dir/muster-memory.XXXXXX")
    case " $places " in *" worker "*) start_pool ;; esac
    bad=0
    echo "| GB | form | place | --memory MiB | RssAnon MiB | server | cgroup | peak | |"
    echo "|---|---|---|---|---|---|---|---|---|"
    for count in $records; do
        "$muster" gen -n "$count" --ascii -o "$work/input-$count" >/dev/null 2>&1
        sync
        for form in $forms; do for place in $places; do for memory in $memories; do one_run "$count" "$form" "$place" "$memory"; done; done; done
        rm -f "$work/input-$count"
    done
    for count in $objects; do
        make_objects "$count"
        for memory in $memories; do one_run "$count" objects local "$memory"; done
        rm -rf "$work/input-$count"
    done
    [ "$bad" = 0 ] || die "$bad runs did not keep to it"
    say "kept: RssAnon within --memory, every command within a cgroup of 10 % more, same bytes from all"
    exit 0
fi

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
