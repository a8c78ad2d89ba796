#!/usr/bin/env bash
# Are this version of muster and the one before it good neighbours? Builds the newest commit that speaks the version of the wire before this one, and
# runs both in one pool: a newer coordinator with older workers, newer workers with an older coordinator, the older journal read by the newer build.
#
#   deploy/test-upgrade.sh [COMMIT]
#
#   COMMIT   what to build as the older one, instead
#
# Needs the project's history. The older build is kept in target/older.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/lib.sh"

case ${1:-} in
-h | --help) help && exit 0 ;;
-*) misuse "unknown argument '$1'" ;;
esac
cd "$root"
"$root/deploy/setup.sh" --tests
use_tools
build_older "${1:-}"
say "building this version"
cargo build --workspace --lib --bins --tests --locked
MUSTER_NATS_SERVER=$(command -v nats-server)
MUSTER_S3_SERVER=$(command -v weed)
export MUSTER_NATS_SERVER MUSTER_S3_SERVER
exec cargo test --workspace --locked --test e2e_upgrade -- --test-threads 1
