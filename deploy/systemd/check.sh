#!/usr/bin/env bash
# Checks install.sh and the units without a running systemd: installs into a staging folder, has systemd read the units, installs again, removes.
#
#   deploy/systemd/check.sh [--binary PATH]
#
#   --binary PATH   the program to install (default target/release/muster, else target/debug/muster)
#
# systemd-analyze (Debian's package systemd) must be on PATH. What no check here can say: how the services behave on a host.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/../lib.sh"

here=$root/deploy/systemd
units=(muster-worker.service muster-coordinator.service)
# Exposure as systemd counts it, in tenths of ten points: the network, which the services need, is most of it.
exposure_max=20

binary=
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=${2:-} && shift ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
for candidate in "$(target_dir)/release/muster" "$(target_dir)/debug/muster"; do
    [ -n "$binary" ] || [ ! -x "$candidate" ] || binary=$candidate
done
[ -n "$binary" ] || die "there is no muster to install: build it (cargo build), or give --binary"
command -v systemd-analyze >/dev/null || die "systemd-analyze is missing, so nobody can read the units: on Debian 'apt-get install systemd'"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/root

# files: what is installed, with modes and content.
files() {
    (cd "$stage" && find . -type f -not -path './lib/*' -printf '%m %p\n' | sort && find . -type f -not -path './lib/*' -print0 | sort -z | xargs -0 sha256sum)
}

"$here/install.sh" --binary "$binary" --root "$stage" --memory 8GiB >/dev/null
[ "$(stat -c %a "$stage/etc/muster/worker.env")" = 600 ] || die "the worker's settings can be read by others"
cmp -s "$binary" "$stage/usr/local/bin/muster" || die "the installed program is another"

# systemd looks for its own units there, too.
for folder in /lib/systemd/system /usr/lib/systemd/system; do
    [ -d "$stage/lib/systemd/system" ] || [ ! -d "$folder" ] || { mkdir -p "$stage/lib/systemd" && cp -r "$folder" "$stage/lib/systemd/system"; }
done
said=$(systemd-analyze --man=no --root="$stage" verify "${units[@]}" 2>&1) || die "systemd-analyze verify: $said"
[ -z "$said" ] || die "systemd-analyze verify: $said"
say "systemd $(systemd-analyze --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p') reads both units and the worker's memory.conf without a remark"
for unit in "${units[@]}"; do
    exposure=$(systemd-analyze security --offline=yes --root="$stage" --threshold="$exposure_max" "$unit" | sed -n 's/.*Overall exposure level for \([^ ]*: [0-9.]*\).*/\1/p') ||
        die "$unit is more exposed than $exposure_max tenths"
    say "exposure of $exposure (0 is none, 10 is all)"
done

before=$(files)
"$here/install.sh" --binary "$binary" --root "$stage" --memory 8GiB >/dev/null
[ "$(files)" = "$before" ] || die "a second installation changes something"
printf 'NATS_PASSWORD=kept\n' >>"$stage/etc/muster/worker.env"
"$here/install.sh" --binary "$binary" --root "$stage" >/dev/null
grep -q '^NATS_PASSWORD=kept$' "$stage/etc/muster/worker.env" || die "an update has written over the worker's settings"
say "a second installation changes nothing, an update keeps the settings"

"$here/install.sh" --prefix /opt/muster --binary "$binary" --root "$work/opt" >/dev/null
grep -q '^ExecStart=/opt/muster/bin/muster worker ' "$work/opt/etc/systemd/system/muster-worker.service" || die "the unit does not start the program below --prefix"

"$here/install.sh" --uninstall --root "$stage" >/dev/null
left=$(cd "$stage" && find . -type f -not -path './lib/*' | sort | tr '\n' ' ')
[ "$left" = "./etc/muster/coordinator.env ./etc/muster/worker.env " ] || die "removing it leaves $left"
say "removing it leaves the settings alone"
