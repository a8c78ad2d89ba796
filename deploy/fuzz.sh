#!/usr/bin/env bash
# Lets libFuzzer look for inputs that the readers of outside bytes cannot bear: it keeps what reaches code that nothing reached before.
#
#   deploy/fuzz.sh [--seconds N] [TARGET...]
#
#   --seconds N   for each target (default 60)
#   TARGET        only these of the targets in tests/src/fuzz/ (default all)
#
# It begins with real samples, and with what earlier runs found in target/fuzz/corpus. An input that breaks something is named and kept; it is worth a
# test beside the reader at fault. Needs cargo-fuzz and a C++ compiler. The sanitizer's flags are not for stable compilers, so RUSTC_BOOTSTRAP=1 is set;
# nothing of it touches what is released.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

seconds=60
targets=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=${2:-} && shift ;;
    -h | --help) help && exit 0 ;;
    -*) misuse "unknown argument '$1'" ;;
    *) targets+=("$1") ;;
    esac
    shift || misuse "an option lacks its value"
done
want_number --seconds "$seconds"
command -v cargo-fuzz >/dev/null || die "cargo-fuzz is missing: 'cargo install cargo-fuzz --locked'"
cd "$root"
known=$(cargo fuzz list --fuzz-dir tests/fuzz)
[ ${#targets[@]} -gt 0 ] || mapfile -t targets <<<"$known"
for name in "${targets[@]}"; do
    grep -qx -- "$name" <<<"$known" || misuse "no target '$name'; there are $(paste -sd ' ' <<<"$known")"
done

target=$(target_dir)
corpus=$target/fuzz/corpus
say "real samples"
cargo build --package muster-tests --bin fuzz --locked
"$target/debug/fuzz" --write-seeds "$corpus" "${targets[@]}"

say "building libFuzzer and its targets"
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$target/fuzz"
cargo fuzz build --fuzz-dir tests/fuzz
for name in "${targets[@]}"; do
    found=$target/fuzz/found/$name
    mkdir -p "$found"
    # No message is longer than a megabyte, and most that decides lies in the first kilobytes.
    cargo fuzz run --fuzz-dir tests/fuzz "$name" "$corpus/$name" -- -artifact_prefix="$found/" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -malloc_limit_mb=256 -max_len=65536 >"$found/log" 2>&1 ||
        die "$name: $(grep -m 1 -E 'panicked|ERROR' "$found/log" || tail -n 1 "$found/log"); the input and all that was said lie in $found"
    say "$name: $(grep '^Done' "$found/log"), $(find "$corpus/$name" -type f | wc -l) inputs kept"
done
say "done: nothing found in ${#targets[@]} targets"
