#!/usr/bin/env bash
# Are a version of muster and the one before it good neighbours? Builds both and runs them in one pool: a newer coordinator with older workers, newer
# workers with an older coordinator, the older journal read by the newer build.
#
#   deploy/test-upgrade.sh [COMMIT]
#
#   COMMIT   what to build as the older one, instead of the newest commit that spoke the version of the wire before this one
#
# As long as there is only one version, the newer build is this tree with one more that exists in tests alone (feature next-version). Needs the project's
# history where an older commit is built. Both programs are kept in target/two.
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
build_two "${1:-}"
MUSTER_NATS_SERVER=$(command -v nats-server)
MUSTER_S3_SERVER=$(command -v weed)
export MUSTER_NATS_SERVER MUSTER_S3_SERVER
exec cargo test --workspace --locked --test e2e_upgrade -- --test-threads 1
