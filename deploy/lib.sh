# shellcheck shell=bash
# What the scripts of this folder share: where things lie, how they speak, how they stop. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools="$root/.tools/bin"

# One line of what was done.
say() {
    printf '%s: %s\n' "$(basename "$0" .sh)" "$*"
}

# One line of what is wrong and what to do; then the end.
die() {
    printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2
    exit "${die_status:-1}"
}

# The comment at the top of a script is its help.
help() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# Wrong usage ends with 2, as in muster itself.
misuse() {
    die_status=2 die "$*; see --help"
}

# The servers that setup.sh fetched come before those of the system.
use_tools() {
    export PATH="$tools:$PATH"
}

# at_least VERSION MINIMUM: compares dotted numbers.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# want_number NAME VALUE: a count of at least 1, else wrong usage.
want_number() {
    case $2 in
    '' | *[!0-9]* | 0*) misuse "$1 must be a count of at least 1, not '$2'" ;;
    esac
}

# want_space DIRECTORY BYTES: enough free disk, else the end.
want_space() {
    local free
    free=$(($(df -Pk "$1" | awk 'NR == 2 { print $4 }') * 1024))
    [ "$free" -ge "$2" ] ||
        die "$1 has $((free / 1000000)) MB free, but $(($2 / 1000000)) MB are needed: use --dir with a larger disk, or fewer records"
}

# The folder that cargo builds into.
target_dir() {
    printf '%s\n' "${CARGO_TARGET_DIR:-$root/target}"
}

# build_release: builds the program and leaves its path in $muster.
build_release() {
    say "building muster (release)"
    cargo build --manifest-path "$root/Cargo.toml" --release --locked --package muster
    muster="$(target_dir)/release/muster"
    [ -x "$muster" ] || die "cargo built no $muster"
}

# build_two [COMMIT]: builds two neighbouring versions and exports their paths as MUSTER_OLD_BIN and MUSTER_NEW_BIN. The newer is this one and the older
# COMMIT, or else the newest in the history that speaks the wire version before this one. As long as there is none before, the older is this one, and the
# newer has the version that exists in tests alone.
build_two() {
    local version commit="${1:-}" folder
    folder="$(target_dir)/two"
    mkdir -p "$folder"
    version=$(sed -n 's/^pub const WIRE_VERSION: u8 = \([0-9]*\).*/\1/p' "$root/common/protocol/src/wire.rs")
    [ -n "$version" ] || die "common/protocol/src/wire.rs does not say which version it speaks"
    if [ -z "$commit" ] && [ "$version" = 1 ]; then
        build_of_two newer --features muster-tests/next-version
        build_of_two older # last: cargo leaves the plain program where tests look for it
        export MUSTER_OLD_BIN=$folder/older MUSTER_NEW_BIN=$folder/newer
        return
    fi
    [ -n "$commit" ] || commit=$(git -C "$root" log -1 --format=%H -S"WIRE_VERSION: u8 = $version" -- common/protocol/src/wire.rs)^
    commit=$(git -C "$root" rev-parse --verify --quiet "$commit^{commit}") ||
        die "the older version is not in this history (a shallow clone, or none?)"
    say "building the older version, ${commit:0:12}"
    rm -rf "$folder/source"
    mkdir -p "$folder/source"
    git -C "$root" archive "$commit" | tar -x -C "$folder/source"
    CARGO_TARGET_DIR=$folder/build cargo build --manifest-path "$folder/source/Cargo.toml" --locked --package muster
    cp "$folder/build/debug/muster" "$folder/older"
    build_of_two newer
    export MUSTER_OLD_BIN=$folder/older MUSTER_NEW_BIN=$folder/newer
}

# build_of_two NAME [OPTION...]: one of them, from this tree. With a test, so that its dependencies are those of the tests.
build_of_two() {
    local name=$1
    shift
    say "building the $name version of the two"
    cargo build --manifest-path "$root/Cargo.toml" --workspace --bin muster --test e2e_upgrade --locked "$@"
    cp "$(target_dir)/debug/muster" "$folder/$name"
}

# concatenated DIRECTORY: the bytes of its parts, in order.
concatenated() {
    find "$1" -maxdepth 1 -name 'part-*' -print0 | LC_ALL=C sort -z | xargs -0 -r cat --
}

# median: of the numbers on standard input, one a line.
median() {
    sort -n | awk '{ v[NR] = $1 } END { if (NR) print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'
}

# python_with NAME PACKAGE==VERSION...: a Python with these packages, in .tools/NAME; its path is left in $python.
python_with() {
    local folder=$root/.tools/$1 wanted
    shift
    wanted=$*
    python=$folder/bin/python
    if [ "$(cat "$folder/packages" 2>/dev/null)" != "$wanted" ]; then
        command -v python3 >/dev/null || die "python3 is missing: install your system's"
        say "fetching $wanted"
        rm -rf "$folder"
        python3 -m venv "$folder" || die "python3 makes no virtual environment: on Debian 'apt-get install python3-venv'"
        "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "$@" || die "pip could not install $wanted"
        printf '%s\n' "$wanted" >"$folder/packages"
    fi
}
