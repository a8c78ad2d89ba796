#!/usr/bin/env bash
# Installs muster on this host: the program, systemd units, files for settings, completions and man pages. Run it again for a newer version.
#
#   install.sh [--binary PATH] [--prefix DIR] [--root DIR] [--memory SIZE]
#   install.sh --uninstall [--prefix DIR] [--root DIR]
#
#   --binary PATH   the program (default ../bin/muster beside this folder, as in a release, else target/release/muster of the source)
#   --prefix DIR    where it goes (default /usr/local)
#   --root DIR      install below DIR as if it were /, and leave systemd alone: for packages and images
#   --memory SIZE   memory of the worker, like 8GiB; sets the unit's limit to a quarter more, 256 MiB at least (default: half of the machine's, limited to 65 %)
#   --uninstall     remove what was installed; /etc/muster and the workers' data stay
#
# Files in /etc/muster that are there already are never written to. Nothing is started or enabled.
set -euo pipefail

# On a host this folder stands alone, so nothing is taken from deploy/lib.sh.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
roles=(coordinator worker)
shells=(bash zsh fish)

say() {
    printf 'install: %s\n' "$*"
}

die() {
    printf 'install: %s\n' "$*" >&2
    exit "${die_status:-1}"
}

misuse() {
    die_status=2 die "$*; see --help"
}

binary=
prefix=/usr/local
stage=
memory=
uninstall=false
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=${2:-} && shift ;;
    --prefix) prefix=${2:-} && shift ;;
    --root) stage=${2:-} && shift ;;
    --memory) memory=${2:-} && shift ;;
    --uninstall) uninstall=true ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
case $prefix in
/*) prefix=${prefix%/} ;;
*) misuse "--prefix must be an absolute path, not '$prefix'" ;;
esac
stage=${stage%/}
[ -n "$stage" ] || [ "$(id -u)" = 0 ] || die "installing into $prefix and /etc takes root: run it with sudo, or with --root DIR to stage it"

# Systemd reads units below /usr and /usr/local by itself; from elsewhere they would not be found.
case $prefix in
/usr | /usr/local) units=$prefix/lib/systemd/system ;;
*) units=/etc/systemd/system ;;
esac
drop_in=/etc/systemd/system/muster-worker.service.d/memory.conf

# completion_of SHELL: where its completions are looked for.
completion_of() {
    case $1 in
    bash) printf '%s\n' "$prefix/share/bash-completion/completions/muster" ;;
    zsh) printf '%s\n' "$prefix/share/zsh/site-functions/_muster" ;;
    fish) printf '%s\n' "$prefix/share/fish/vendor_completions.d/muster.fish" ;;
    esac
}

# put SOURCE TARGET MODE: whole or not at all, so that a program that runs is replaced, not written to.
put() {
    local target=$stage$2
    mkdir -p "$(dirname "$target")"
    install -m "$3" "$1" "$target.new"
    mv -f "$target.new" "$target"
}

# Systemd of this very host, where it runs and nothing is staged.
systemd() {
    if [ -z "$stage" ] && [ -d /run/systemd/system ]; then systemctl "$@"; fi
}

remove() {
    systemd disable --now muster-worker.service muster-coordinator.service 2>/dev/null || true
    local role shell
    for role in "${roles[@]}"; do
        rm -f "$stage$units/muster-$role.service"
    done
    for shell in "${shells[@]}"; do
        rm -f "$stage$(completion_of "$shell")"
    done
    rm -f "$stage$prefix/bin/muster" "$stage$drop_in" "$stage$prefix/share/man/man1/muster.1" "$stage$prefix/share/man/man1"/muster-*.1
    rmdir "$stage$(dirname "$drop_in")" 2>/dev/null || true
    systemd daemon-reload
    say "removed; left in place: /etc/muster (settings, secrets) and /var/lib/private/muster-worker (data of the worker)"
}

# limit_of SIZE: the limit in bytes that goes with a worker's memory.
limit_of() {
    local number=${1%[KMGT]iB} unit bytes margin
    case $1 in
    *KiB) unit=1024 ;;
    *MiB) unit=$((1 << 20)) ;;
    *GiB) unit=$((1 << 30)) ;;
    *TiB) unit=$((1 << 40)) ;;
    *) misuse "--memory must be like 512MiB or 8GiB, not '$1'" ;;
    esac
    case $number in
    '' | *[!0-9]* | 0*) misuse "--memory must be like 512MiB or 8GiB, not '$1'" ;;
    esac
    bytes=$((number * unit))
    [ "$bytes" -ge $((128 << 20)) ] || misuse "--memory must be 128MiB at least, not '$1'"
    margin=$((bytes / 4))
    [ "$margin" -ge $((256 << 20)) ] || margin=$((256 << 20))
    printf '%s\n' $((bytes + margin))
}

# put_limit: the worker's memory and the unit's limit, which belong together.
put_limit() {
    printf '# By install.sh --memory %s.\n[Service]\nEnvironment="MUSTER_MEMORY_ARGS=--memory %s"\nMemoryMax=%s\n' "$memory" "$memory" "$limit" >"$work/memory.conf"
    put "$work/memory.conf" "$drop_in" 644
    say "the worker gets --memory $memory, its unit at most $((limit >> 20)) MiB"
}

# put_words: what the program itself says of its options, for shells and man; older ones say nothing.
put_words() {
    local shell page
    for shell in "${shells[@]}"; do
        if "$binary" completions "$shell" >"$work/completion" 2>/dev/null; then
            put "$work/completion" "$(completion_of "$shell")" 644
        else
            say "this muster offers no completions for $shell"
        fi
    done
    mkdir "$work/man"
    if "$binary" man "$work/man" >/dev/null 2>&1; then
        for page in "$work/man"/*.1; do
            put "$page" "$prefix/share/man/man1/$(basename "$page")" 644
        done
    else
        say "this muster offers no man pages"
    fi
}

if $uninstall; then
    remove
    exit
fi

# Refused before anything is touched.
[ -z "$memory" ] || limit=$(limit_of "$memory")
if [ -z "$binary" ]; then
    for candidate in "$here/../bin/muster" "$here/../../target/release/muster"; do
        [ ! -x "$candidate" ] || { binary=$candidate && break; }
    done
    [ -n "$binary" ] || die "there is no muster beside this script: build it (cargo build --release), or say where it is with --binary"
fi
version=$("$binary" --version 2>&1) || die "$binary does not run on this host: $version"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
put "$binary" "$prefix/bin/muster" 755
for role in "${roles[@]}"; do
    sed "s|/usr/local/bin/muster|$prefix/bin/muster|" "$here/muster-$role.service" >"$work/unit"
    put "$work/unit" "$units/muster-$role.service" 644
    settings=/etc/muster/$role.env
    if [ -e "$stage$settings" ]; then
        say "$settings is there, and stays as it is"
    else
        put "$here/$role.env" "$settings" 600
    fi
done
[ -z "$memory" ] || put_limit
put_words
systemd daemon-reload
say "$version is installed${stage:+ below $stage}"
say "next: edit /etc/muster/*.env, then 'systemctl enable --now muster-worker' (and muster-coordinator on one or more hosts); after an update 'systemctl restart' each"
