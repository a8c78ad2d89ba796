#!/usr/bin/env bash
# Checks the manifests without a cluster: builds every overlay, holds it against the schemas of Kubernetes, and against what muster needs.
#
#   deploy/kubernetes/check.sh
#
# kubectl (1.27 or newer, for its kustomize) or kustomize must be on PATH. The schemas come from the PyPI package kubernetes-validate, installed into .tools/kubernetes.
# What no check here can say: whether a cluster takes the manifests, and how they behave there.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "$0")/../lib.sh"

case ${1:-} in
'') ;;
-h | --help) help && exit 0 ;;
*) misuse "unknown argument '$1'" ;;
esac

if command -v kubectl >/dev/null; then
    build=(kubectl kustomize)
elif command -v kustomize >/dev/null; then
    build=(kustomize build)
else
    die "neither kubectl nor kustomize is on PATH, so no overlay can be built: get one from https://kubernetes.io/docs/tasks/tools"
fi
python_with kubernetes kubernetes-validate==1.37.0 PyYAML==6.0.3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$root/deploy/kubernetes
for overlay in "$here"/overlays/*/; do
    name=$(basename "$overlay")
    "${build[@]}" "$overlay" >"$work/$name.yaml" || die "overlay $name cannot be built"
done
"$python" "$here/check.py" "$root" "$work"/*.yaml
