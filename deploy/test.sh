#!/usr/bin/env bash
# Checks the whole repository: format, lints, unit, property and end-to-end tests with a real nats-server and a real S3 server.
#
#   deploy/test.sh [--all] [FILTER...]
#
#   --all       also what is too long for every commit: tests whose names begin with long_, the simulation's search for planted bugs, and the
#               examples in the documentation
#   FILTER      run only tests whose names contain one of these
#
# MUSTER_SIM_SECONDS is how long the simulation plays fresh seeds (30 here, 20 where only the tests are run).
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

all=false
filters=()
for argument in "$@"; do
    case $argument in
    --all) all=true ;;
    -h | --help) help && exit 0 ;;
    -*) misuse "unknown argument '$argument'" ;;
    *) filters+=("$argument") ;;
    esac
done

# step WORDS: says what begins, and how far in we are.
step() {
    say "[$((SECONDS / 60))m$((SECONDS % 60))s] $*"
}

"$root/deploy/setup.sh" --tests
use_tools
cd "$root"
MUSTER_NATS_SERVER=$(command -v nats-server)
MUSTER_S3_SERVER=$(command -v weed)
export MUSTER_NATS_SERVER MUSTER_S3_SERVER
unset MUSTER_BIN # what is tested is what is built below
export MUSTER_SIM_SECONDS="${MUSTER_SIM_SECONDS:-30}"

step "format"
cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing: 'rustup component add rustfmt'"
cargo fmt --all --check || die "not formatted: run 'cargo fmt --all'"

step "lints"
cargo clippy --version >/dev/null 2>&1 || die "clippy is missing: 'rustup component add clippy'"
cargo clippy --workspace --all-targets --locked -- -D warnings

if $all; then
    # Before the build, because it leaves a simulation with the feature where the plain one belongs. --test makes the dependencies those of the build.
    step "planted bugs"
    cargo build --workspace --bin sim --test sim --features muster-tests/planted-bugs --locked
    "$(target_dir)/debug/sim" bugs
fi

# One selection of packages and targets, so that program and tests come from one build.
step "build"
cargo build --workspace --lib --bins --tests --locked

if $all; then
    step "the version before this one, for a pool of both"
    build_older
    step "examples in the documentation"
    cargo test --workspace --doc --locked --quiet
fi

profile=default
$all && profile=all
if command -v cargo-nextest >/dev/null; then
    if ! $all; then
        left_out=$(cargo nextest list --workspace --locked --cargo-quiet --profile all --message-format oneline \
            -E 'test(/(^|::)long_/)' | wc -l)
        say "$left_out tests named long_* are left to 'deploy/test.sh --all'"
    fi
    step "tests"
    exec cargo nextest run --workspace --locked --profile "$profile" "${filters[@]}"
fi

skip=()
if ! $all; then
    skip=(--skip long_)
    say "tests named long_* are left to 'deploy/test.sh --all'"
fi
step "tests (with 'cargo test': cargo-nextest is not there)"
# Each end-to-end test starts several processes: two at once keep two cores busy.
exec cargo test --workspace --locked --no-fail-fast --lib --bins --tests -- --test-threads 2 "${skip[@]}" "${filters[@]}"
