"""Holds built overlays against the schemas of Kubernetes, and against what muster needs of them. Run by check.sh.

Schemas say which fields there are. They do not say that a reference leads somewhere, that a limit fits `--memory`, or that the grace period fits the drain; that is checked here.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml

# The oldest version that the manifests are meant for, and the newest whose schemas the package has.
VERSIONS = ["1.29", "1.37"]
# Secrets are made by hand (README.md) and only referred to: name, and the keys that are used.
SECRETS = {
    "muster-nats-coordinator": {"NATS_USER", "NATS_PASSWORD"},
    "muster-nats-worker": {"NATS_USER", "NATS_PASSWORD"},
    "muster-nats-client": {"NATS_USER", "NATS_PASSWORD"},
    "muster-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "nats-users": {"users.conf"},
    "nats-tls": {"ca.crt", "tls.crt", "tls.key"},
    "seaweedfs-identities": {"identities.json"},
}
# What a process of muster adds to worker.drain_ms before it ends by itself, and the least margin beyond that, in seconds.
DRAIN_EXTRA_S = 5
GRACE_MARGIN_S = 10
# A pod's limit of memory is at least this much of `--memory`.
MEMORY_PERCENT = 125
UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

failures = []


def expect(condition, where, what):
    if not condition:
        failures.append(f"{where}: {what}")


def quantity(text):
    """Bytes of a Kubernetes quantity or of a size of muster's (3GiB)."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text)).groups()
    return int(number) * UNITS[unit.removesuffix("B")]


class Overlay:
    """All objects of one built overlay."""

    def __init__(self, name, objects):
        self.name = name
        self.objects = objects

    def of(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def named(self, kind, name):
        return next((o for o in self.of(kind) if o["metadata"]["name"] == name), None)

    def pods(self):
        for kind in ("Deployment", "StatefulSet", "Job"):
            for o in self.of(kind):
                yield f"{self.name}: {kind} {o['metadata']['name']}", o, o["spec"]["template"]


def check_schemas(overlay):
    for o in overlay.objects:
        where = f"{overlay.name}: {o['kind']} {o['metadata']['name']}"
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(o, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                failures.append(f"{where}: not of Kubernetes {version}: {error.message} at {'.'.join(map(str, error.path))}")
            except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
                failures.append(f"{where}: no schema in Kubernetes {version}: {error}")


def check_security(where, template):
    """What the Pod Security Standard "restricted" asks for, and a root file system that nobody writes to."""
    spec = template["spec"]
    context = spec.get("securityContext", {})
    expect(context.get("runAsNonRoot") is True, where, "runAsNonRoot is not true")
    expect(context.get("runAsUser", 0) > 0, where, "runAsUser is not set")
    expect(context.get("seccompProfile", {}).get("type") == "RuntimeDefault", where, "no seccomp profile")
    expect(spec.get("automountServiceAccountToken") is False, where, "a service account token is mounted")
    for container in spec["containers"] + spec.get("initContainers", []):
        inner = container.get("securityContext", {})
        expect(inner.get("readOnlyRootFilesystem") is True, where, "the root file system is writable")
        expect(inner.get("allowPrivilegeEscalation") is False, where, "privileges may be escalated")
        expect(inner.get("capabilities", {}).get("drop") == ["ALL"], where, "capabilities are kept")
        resources = container.get("resources", {})
        expect("memory" in resources.get("limits", {}), where, "no limit of memory")
        expect(resources.get("requests", {}).get("memory") == resources.get("limits", {}).get("memory"), where, "memory is not requested in full")
        tag = container["image"].partition("@")[0].rpartition(":")[2]
        expect(":" in container["image"] and tag != "latest", where, f"image {container['image']} has no fixed tag")


def references(spec):
    """(kind, name, keys) of every ConfigMap and Secret that a pod refers to; no keys means all of them."""
    for volume in spec.get("volumes", []):
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            for kind, field, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
                if field in source:
                    found = source[field]
                    yield kind, found.get(name) or found.get("name"), {i["key"] for i in found.get("items", [])}
    for container in spec["containers"]:
        for source in container.get("envFrom", []):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if field in source:
                    yield kind, source[field]["name"], set()
        for variable in container.get("env", []):
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                found = variable.get("valueFrom", {}).get(field)
                if found:
                    yield kind, found["name"], {found["key"]}


def check_references(overlay, where, o, template, readme):
    spec, labels = template["spec"], template["metadata"]["labels"]
    selector = o["spec"].get("selector", {}).get("matchLabels", {})
    expect(selector.items() <= labels.items(), where, "the selector does not match the pods")
    for kind, name, keys in references(spec):
        if kind == "Secret":
            expect(name in SECRETS and keys <= SECRETS[name], where, f"Secret {name} with {sorted(keys)} is not one that is made by hand")
            expect(name in readme, where, f"README.md does not say how Secret {name} is made")
        elif overlay is not None:
            found = overlay.named(kind, name)
            expect(found is not None, where, f"{kind} {name} does not exist")
            expect(found is None or keys <= found["data"].keys(), where, f"{kind} {name} has no {sorted(keys)}")
    if overlay is not None and "serviceAccountName" in spec:
        expect(overlay.named("ServiceAccount", spec["serviceAccountName"]), where, "the service account does not exist")
    volumes = {v["name"] for v in spec.get("volumes", [])}
    volumes |= {c["metadata"]["name"] for c in o["spec"].get("volumeClaimTemplates", [])}
    for container in spec["containers"]:
        ports = {p["name"] for p in container.get("ports", [])}
        for mount in container.get("volumeMounts", []):
            expect(mount["name"] in volumes, where, f"volume {mount['name']} does not exist")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for action in ("httpGet", "tcpSocket"):
                port = container.get(probe, {}).get(action, {}).get("port")
                expect(port is None or port in ports, where, f"{probe} asks at port {port}, which does not exist")
        known = {v["name"] for v in container.get("env", [])}
        for variable in re.findall(r"\$\((\w+)\)", " ".join(container.get("args", []))):
            expect(variable in known, where, f"$({variable}) in args is not defined in env")


def option(container, name):
    prefix = f"--{name}="
    return next((a.removeprefix(prefix) for a in container["args"] if a.startswith(prefix)), None)


def settings_of(overlay, spec):
    for volume in spec["volumes"]:
        if volume["name"] == "settings":
            return tomllib.loads(overlay.named("ConfigMap", volume["configMap"]["name"])["data"]["muster.toml"])
    return {}


def check_worker(overlay, defaults):
    where, deployment = f"{overlay.name}: worker", overlay.named("Deployment", "muster-worker")
    spec = deployment["spec"]["template"]["spec"]
    container = spec["containers"][0]
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    settings = settings_of(overlay, spec)
    drain_s = settings.get("worker", {}).get("drain_ms", defaults["worker"]["drain_ms"]) / 1000
    least = drain_s + DRAIN_EXTRA_S + GRACE_MARGIN_S
    expect(spec["terminationGracePeriodSeconds"] >= least, where, f"the grace period is below {least:.0f} s, drain and margin")
    memory, limit = quantity(option(container, "memory")), quantity(limits["memory"])
    expect(limit * 100 >= memory * MEMORY_PERCENT, where, f"limits.memory {limits['memory']} is below {MEMORY_PERCENT} % of --memory")
    expect(option(container, "threads") == requests["cpu"], where, "--threads is not the CPUs that are requested")
    data = next(v for v in spec["volumes"] if v["name"] == "data")["emptyDir"]
    spills = int(option(container, "threads")) * defaults["sizes"]["split_bytes_max"] * 1.2
    expect(quantity(data["sizeLimit"]) >= spills, where, "the data directory does not hold the spills of all threads")
    expect("medium" not in data, where, "the data directory must be a disk, not memory")
    expect(quantity(limits["ephemeral-storage"]) >= quantity(data["sizeLimit"]), where, "ephemeral-storage is below the data directory")
    for scaler in overlay.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        expect(overlay.named(target["kind"], target["name"]), where, "the autoscaler's target does not exist")
        expect("replicas" not in deployment["spec"], where, "an autoscaler and replicas contradict each other")
        metric = scaler["spec"]["metrics"][0]["external"]["metric"]["name"]
        expect(metric == "muster_workers_wanted", where, f"the autoscaler's metric is {metric}")


def check_settings(overlay, defaults):
    for where, _, template in overlay.pods():
        settings = settings_of(overlay, template["spec"]) if "muster" in where else {}
        for table, keys in settings.items():
            known = defaults.get(table, {})
            for key in keys if isinstance(keys, dict) else []:
                expect(key in known, where, f"muster.toml sets {table}.{key}, which muster does not know")
            expect(table in defaults, where, f"muster.toml sets {table}, which muster does not know")


def check_services(overlay):
    for service in overlay.of("Service"):
        where, selector = f"{overlay.name}: Service {service['metadata']['name']}", service["spec"]["selector"]
        pods = [t for _, _, t in overlay.pods() if selector.items() <= t["metadata"]["labels"].items()]
        expect(len(pods) == 1, where, "selects the pods of no workload, or of several")
        ports = {p["name"] for pod in pods for c in pod["spec"]["containers"] for p in c.get("ports", [])}
        for port in service["spec"]["ports"]:
            expect(port["targetPort"] in ports, where, f"targetPort {port['targetPort']} does not exist")
    for policy in overlay.of("PodDisruptionBudget"):
        selector = policy["spec"]["selector"]["matchLabels"]
        matched = [o for _, o, t in overlay.pods() if selector.items() <= t["metadata"]["labels"].items()]
        expect(matched and all(o["spec"]["replicas"] > 1 for o in matched), overlay.name, f"budget {policy['metadata']['name']} guards no pods, or a single one")


def check_network(overlay):
    """Every pod is under a policy that closes both directions; none lets the whole world in."""
    for where, _, template in overlay.pods():
        labels, closed = template["metadata"]["labels"], set()
        for policy in overlay.of("NetworkPolicy"):
            selector = policy["spec"]["podSelector"]
            listed = all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))
            if listed and selector.get("matchLabels", {}).items() <= labels.items():
                closed |= set(policy["spec"]["policyTypes"])
        expect(closed == {"Ingress", "Egress"}, where, f"policies close {sorted(closed)} alone")
    for policy in overlay.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            where = f"{overlay.name}: NetworkPolicy {policy['metadata']['name']}"
            expect(rule.get("from") and rule.get("ports"), where, "lets anybody in, or to any port")


def main():
    root, files = Path(sys.argv[1]), [Path(f) for f in sys.argv[2:]]
    here = root / "deploy" / "kubernetes"
    readme = (here / "README.md").read_text()
    defaults = tomllib.loads((root / "docs" / "default.toml").read_text())
    built = [Overlay(f.stem, list(yaml.safe_load_all(f.read_text()))) for f in files]
    examples = [Overlay(f"examples/{f.name}", list(yaml.safe_load_all(f.read_text()))) for f in sorted((here / "examples").glob("*.yaml"))]
    for overlay in built + examples:
        check_schemas(overlay)
        for where, o, template in overlay.pods():
            check_security(where, template)
            check_references(None if overlay in examples else overlay, where, o, template, readme)
    for overlay in built:
        expect(not overlay.of("Secret"), overlay.name, "holds a Secret; secrets are made by hand")
        for o in overlay.objects:
            own = o["kind"] == "Namespace" or o["metadata"].get("namespace") == "muster"
            expect(own, overlay.name, f"{o['kind']} {o['metadata']['name']} is in no namespace")
        check_worker(overlay, defaults)
        check_settings(overlay, defaults)
        check_services(overlay)
        check_network(overlay)
    for failure in failures:
        print(f"check: {failure}", file=sys.stderr)
    counts = {o.name: len(o.objects) for o in built + examples}
    if not failures:
        print(f"check: objects that fit the schemas of Kubernetes {' and '.join(VERSIONS)}: {json.dumps(counts)}")
        print("check: not held against any schema, because it is none of Kubernetes' own: keda-scaledobject.yaml, prometheus-adapter-values.yaml; read as YAML alone")
    for name in ("keda-scaledobject.yaml", "prometheus-adapter-values.yaml"):
        yaml.safe_load((here / "components" / "autoscale" / name).read_text())
    sys.exit(1 if failures else 0)


main()
