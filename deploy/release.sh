#!/usr/bin/env bash
# Builds what is handed out: an archive with program, completions, man pages, units and install script; its debug data; a list of what is in it (SBOM); checksums. And checks it.
#
#   deploy/release.sh [--out DIR] [--binary PATH] [--without-docs]
#
#   --out DIR        where it goes (default target/dist); files of the same name are replaced
#   --binary PATH    pack this program, not a new release build
#   --without-docs   pack a program that cannot write its completions and man pages
#
# The program runs where glibc is that of Debian 12 (2.36) or newer; built on a system with a newer one it is refused. The same commit, compiler, zlib and system give the same bytes:
# times are those of the commit (SOURCE_DATE_EPOCH where there is no git), folders of this machine are not in it. The SBOM is CycloneDX 1.5 by cargo-cyclonedx, which is built
# into .tools the first time (some minutes), and held against its schema by a PyPI package.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

glibc_max=2.36 # Debian 12
cyclonedx=0.5.9
sbom_spec=1.5
validator=("cyclonedx-python-lib[json-validation]==11.12.0")

out=$(target_dir)/dist
binary=
with_docs=true
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:-} && shift ;;
    --binary) binary=${2:-} && shift ;;
    --without-docs) with_docs=false ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
[ -n "$out" ] || misuse "--out needs a folder"
[ -z "$binary" ] || [ -x "$binary" ] || die "$binary is no program"
[ -z "$binary" ] || binary=$(realpath "$binary")
for program in objcopy objdump gzip sha256sum; do
    command -v "$program" >/dev/null || die "$program is missing: on Debian 'apt-get install binutils'"
done

export LC_ALL=C TZ=UTC
umask 022
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null) || die "there is no git here: say the time of the source in SOURCE_DATE_EPOCH"
fi
export SOURCE_DATE_EPOCH
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
platform=$(rustc -vV | sed -n 's/^host: //p')
name=muster-$version-$platform

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# build: a release build that names no folder of this machine; its path is left in $binary.
build() {
    local cargo_home=${CARGO_HOME:-$HOME/.cargo} flags
    # One flag after the other with the separator that cargo takes, for paths may have blanks.
    flags=$(printf '%s\x1f' "--remap-path-prefix=$root=/muster" "--remap-path-prefix=$cargo_home=/cargo" "--remap-path-prefix=$(rustc --print sysroot)=/rust")
    say "building muster (release, for handing out)"
    # A folder of its own: other flags make other programs, and would undo the usual build each time.
    CARGO_ENCODED_RUSTFLAGS="${flags%$'\x1f'}" CFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$root=/muster" CARGO_INCREMENTAL=0 \
        cargo build --manifest-path "$root/Cargo.toml" --target-dir "$(target_dir)/handed-out" --release --locked --package muster
    binary=$(target_dir)/handed-out/release/muster
}

# check_program: that it runs on the system that is meant, and is the one that is meant.
check_program() {
    local said needs
    said=$("$binary" --version)
    [ "$said" = "muster $version" ] || die "$binary says '$said', but this is version $version"
    needs=$(objdump -T "$binary" | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\))\{0,1\}.*/\1/p' | sort -uV | tail -n 1)
    [ -n "$needs" ] || die "$binary names no version of glibc"
    at_least "$glibc_max" "$needs" || die "$binary needs glibc $needs, newer than $glibc_max of Debian 12: build it there (deploy/Dockerfile)"
    say "the program needs glibc $needs; Debian 12 has $glibc_max"
}

# fill: the folder that is packed, and the debug data beside it.
fill() {
    local top=$work/$name shell said
    mkdir -p "$top/bin" "$top/systemd"
    objcopy --only-keep-debug "$binary" "$work/$name.debug"
    # Line tables are most of the program; the names of functions stay.
    (cd "$work" && objcopy --strip-debug --add-gnu-debuglink="$name.debug" "$binary" "$top/bin/muster")
    chmod 755 "$top/bin/muster"
    cp "$root/LICENSE" "$root/README.md" "$root/CHANGELOG.md" "$top/"
    cp "$root"/deploy/systemd/{README.md,install.sh,muster-worker.service,muster-coordinator.service,worker.env,coordinator.env} "$top/systemd/"
    if $with_docs; then
        mkdir "$top/completions" "$top/man"
        for shell in bash zsh fish; do
            "$binary" completions "$shell" >"$top/completions/muster.$shell" || die "the program writes no completions (--without-docs packs it as it is)"
        done
        said=$("$binary" man "$top/man" 2>&1) || die "the program writes no man pages (--without-docs packs it as it is): $said"
    else
        say "without completions and man pages, as asked"
    fi
}

pack() {
    mkdir -p "$out"
    tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw \
        --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -cf "$work/$name.tar" "$name"
    gzip -9 -n <"$work/$name.tar" >"$out/$name.tar.gz"
    gzip -9 -n <"$work/$name.debug" >"$out/$name.debug.gz"
}

# list_parts: what is in the program, from manifests and lock file alone. In a copy, because the tool writes beside each Cargo.toml.
list_parts() {
    local copy=$work/source
    if [ "$("$root/.tools/bin/cargo-cyclonedx" cyclonedx --version 2>/dev/null | awk '{ print $NF }')" != "$cyclonedx" ]; then
        say "building cargo-cyclonedx $cyclonedx (once)"
        cargo install --quiet --locked --root "$root/.tools" --target-dir "$(target_dir)/tools" "cargo-cyclonedx@$cyclonedx"
    fi
    mkdir "$copy"
    tar -C "$root" --exclude=./target --exclude=./.tools --exclude=./.git -cf - . | tar -C "$copy" -xf -
    "$root/.tools/bin/cargo-cyclonedx" cyclonedx --quiet --manifest-path "$copy/Cargo.toml" --format json --spec-version "$sbom_spec" --all --target "$platform" --override-filename muster
    # Where the copy lay says nothing to anybody, and differs each time.
    sed "s|file://$copy|file:///muster|g" "$copy/cli/muster.json" >"$out/$name.cdx.json"
    ! grep -qF "$work" "$out/$name.cdx.json" || die "the SBOM names folders of this machine"
}

check_parts() {
    python_with cyclonedx "${validator[@]}"
    "$python" - "$out/$name.cdx.json" "$sbom_spec" "$root/Cargo.lock" <<'PYTHON' || die "the SBOM is not sound"
import json, sys, tomllib
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

path, spec, lock = sys.argv[1:]
text = open(path).read()
error = JsonStrictValidator(SchemaVersion.from_version(spec)).validate_str(text)
if error:
    sys.exit(f"release: {path} is not CycloneDX {spec}: {error}")
parts = json.loads(text)["components"]
locked = {(p["name"], p["version"]) for p in tomllib.load(open(lock, "rb"))["package"]}
foreign = [f"{p['name']} {p['version']}" for p in parts if (p["name"], p["version"]) not in locked]
if foreign or not parts:
    sys.exit(f"release: the SBOM names what Cargo.lock does not: {foreign or 'nothing at all'}")
unlicensed = [p["name"] for p in parts if not p.get("licenses")]
print(f"release: the SBOM is CycloneDX {spec}: {len(parts)} parts, all in Cargo.lock; without a licence: {unlicensed or 'none'}")
PYTHON
}

# check_archive: what somebody does who downloads it.
check_archive() {
    local unpacked=$work/unpacked/$name said
    mkdir "$work/unpacked"
    (cd "$out" && sha256sum --check --quiet "$name.SHA256SUMS") || die "the checksums do not hold"
    tar -C "$work/unpacked" -xzf "$out/$name.tar.gz"
    [ "$("$unpacked/bin/muster" --version)" = "muster $version" ] || die "the packed program does not run"
    "$unpacked/bin/muster" gen -n 1000 -o "$work/records" >/dev/null 2>&1
    # The checksum that valsort prints for gensort's first 1,000 records.
    said=$("$unpacked/bin/muster" verify "$work/records" 2>&1) || true
    case $said in
    *1ea6370b955*) ;;
    *) die "the packed program does not make gensort's records: $said" ;;
    esac
    said=$("$unpacked/systemd/install.sh" --root "$work/installed" 2>&1) || die "the packed install.sh: $said"
    cmp -s "$unpacked/bin/muster" "$work/installed/usr/local/bin/muster" || die "the packed install.sh installs another program"
}

[ -n "$binary" ] || build
check_program
fill
pack
list_parts
check_parts
(cd "$out" && sha256sum "$name.tar.gz" "$name.debug.gz" "$name.cdx.json" >"$name.SHA256SUMS")
check_archive
say "checked: the packed program runs, install.sh installs it, checksums hold"
(cd "$out" && ls -l "$name".*)
