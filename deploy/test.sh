#!/usr/bin/env bash
# Checks the whole repository: format, lints, unit, property and end-to-end tests with a real nats-server and a real S3 server, and a pool in containers.
#
#   deploy/test.sh [--all] [FILTER...]
#
#   --all       also what is too long for every commit: tests whose names begin with long_ (those in containers among them), the simulation's search for
#               planted bugs, the examples in the documentation, manifests and units, and the compose file
#   FILTER      run only tests whose names contain one of these
#
# Tests in containers run where a Docker engine answers, on images made of this build (deploy/images.sh). Licences, bans and sources of dependencies are checked where cargo-deny is there, and with --all their advisories, where that database can be
# reached. What is not checked is said.
# MUSTER_SIM_SECONDS is how long the simulation plays fresh seeds (120 here, 20 where only the tests are run).
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

# Looks at what comes into the program from outside (deny.toml).
check_dependencies() {
    if ! command -v cargo-deny >/dev/null; then
        say "NOT CHECKED: licences, bans and sources of dependencies; 'cargo install cargo-deny --locked' brings what is missing"
        return
    fi
    cargo deny --all-features --locked check --hide-inclusion-graph --allow duplicate licenses bans sources
    if $all; then
        if cargo deny --all-features fetch db; then
            cargo deny --all-features --frozen check --hide-inclusion-graph advisories
        else
            say "NOT CHECKED: advisories; their database cannot be reached"
        fi
    fi
}

# Looks at how the program is run: on Kubernetes and by systemd without either, in containers with a real engine.
check_deployments() {
    local status=0
    if command -v kubectl >/dev/null || command -v kustomize >/dev/null; then
        "$root/deploy/kubernetes/check.sh"
    else
        say "NOT CHECKED: the manifests of Kubernetes; neither kubectl nor kustomize is there"
    fi
    if command -v systemd-analyze >/dev/null; then
        "$root/deploy/systemd/check.sh"
    else
        say "NOT CHECKED: the units of systemd; systemd-analyze is not there"
    fi
    "$root/deploy/test-compose.sh" --records 1000000 || status=$?
    [ "$status" = 0 ] || [ "$status" = 77 ] || die "deploy/test-compose.sh failed ($status)"
}

# ignored: which of the tests that are marked so are run: those in containers. Without an engine, or images, none; with --all only an engine may be missing.
prepare_containers() {
    ignored=default
    if ! command -v docker >/dev/null; then
        say "NOT RUN: tests in containers; docker is missing"
    elif ! docker version >/dev/null 2>&1; then
        say "NOT RUN: tests in containers; no Docker engine answers"
    elif "$root/deploy/images.sh" --binary "$(target_dir)/debug/muster" --tag tests; then
        ignored=all
    elif $all; then
        die "the images of the tests in containers cannot be made"
    else
        say "NOT RUN: tests in containers; their images cannot be made here"
    fi
}

"$root/deploy/setup.sh" --tests
use_tools
cd "$root"
MUSTER_NATS_SERVER=$(command -v nats-server)
MUSTER_S3_SERVER=$(command -v weed)
export MUSTER_NATS_SERVER MUSTER_S3_SERVER
unset MUSTER_BIN # what is tested is what is built below
export MUSTER_SIM_SECONDS="${MUSTER_SIM_SECONDS:-120}"

step "format"
cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing: 'rustup component add rustfmt'"
cargo fmt --all --check || die "not formatted: run 'cargo fmt --all'"

step "lints"
cargo clippy --version >/dev/null 2>&1 || die "clippy is missing: 'rustup component add clippy'"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "dependencies"
check_dependencies

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
    step "two versions, for a pool of both"
    build_two
    step "examples in the documentation"
    cargo test --workspace --doc --locked --quiet
    step "manifests, units, containers"
    check_deployments
fi

step "images"
prepare_containers

profile=default
$all && profile=all
if command -v cargo-nextest >/dev/null; then
    if ! $all; then
        left_out=$(cargo nextest list --workspace --locked --cargo-quiet --profile all --message-format oneline \
            --run-ignored all -E 'test(/(^|::)long_/)' | wc -l)
        say "$left_out tests named long_* are left to 'deploy/test.sh --all'"
    fi
    step "tests"
    exec cargo nextest run --workspace --locked --profile "$profile" --run-ignored "$ignored" "${filters[@]}"
fi

skip=()
[ "$ignored" = default ] || skip+=(--include-ignored)
if ! $all; then
    skip+=(--skip long_)
    say "tests named long_* are left to 'deploy/test.sh --all'"
fi
step "tests (with 'cargo test': cargo-nextest is not there)"
# Each end-to-end test starts several processes: two at once keep two cores busy.
exec cargo test --workspace --locked --no-fail-fast --lib --bins --tests -- --test-threads 2 "${skip[@]}" "${filters[@]}"
