"""Lints and renders the chart with Helm's own library, and validates what comes out against the schemas of Kubernetes."""

import pathlib
import subprocess
import sys
import tempfile

import helm_python
import yaml

CHART = pathlib.Path(__file__).parent.parent / "deploy/helm/kraken"
KUBERNETES = ["1.25", "1.28", "1.32"]

# Where Prometheus runs.
SCRAPER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
CLIENT_TLS = {"cert": "a", "key": "b"}

# What an installation may say, each to be rendered.
VARIANTS = {
    "as it comes": {},
    "certificates of cert-manager": {"tls": {"mode": "cert-manager"}},
    "everything": {
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
        "agent": {"registryListen": "0.0.0.0:7610", "nodeSelector": {"role": "worker"}},
        "networkPolicy": {
            "nodes": ["10.0.0.0/8"],
            "clients": [{"namespaceSelector": {"matchLabels": {"ci": "yes"}}}],
            "monitoring": [SCRAPER],
        },
        "origin": {
            "replicas": 5,
            "config": {"backend": {"s3": {"bucket": "images", "region": "eu-west-1"}}},
            "storage": {"storageClass": "fast"},
            "environment": [{"name": "AWS_REGION", "value": "eu-west-1"}],
            "secrets": ["s3"],
            "affinity": {"nodeAffinity": {}},
        },
        "proxy": {"config": {"client_tls": CLIENT_TLS}, "service": {"annotations": {"a": "b"}}},
        "image": {"repository": "registry.example.com/kraken", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    },
    "agents with TLS for clients": {
        "monitoring": {"enabled": True, "clientTls": {"ca": {"secret": {"name": "clients", "key": "ca.crt"}}}},
        "agent": {"registryListen": "0.0.0.0:7610", "config": {"client_tls": CLIENT_TLS}},
    },
    "agents with TLS on loopback": {"agent": {"config": {"client_tls": CLIENT_TLS}}},
    "agents with TLS on the other loopback": {"agent": {"registryListen": "[::1]:7610", "config": {"client_tls": CLIENT_TLS}}},
    "little": {
        "agent": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "origin": {"replicas": 1},
        "buildIndex": {"replicas": 1},
    },
}

# What must be refused.
MISTAKES = [
    {"origin": {"replica": 3}},
    {"origin": {"replicas": 0}},
    {"tls": {"mode": "none"}},
    {"agent": {"registryListen": "7610"}},
    {"networkPolicy": {"nodes": "10.0.0.0/8"}},
    {"networkPolicy": {"monitoring": "monitoring"}},
    {"monitoring": {"clientTls": True}},
]


def render(values):
    # A chart keeps the values that it was rendered with: each time it is read anew.
    return helm_python.Chart.load(str(CHART)).render(values, name="kraken", namespace="images")


def documents_of(values):
    files = render(values)
    text = "\n---\n".join(text for file, text in files.items() if file.endswith(".yaml"))
    return [it for it in yaml.safe_load_all(text) if it]


def pods(documents):
    """The templates of pods by the roles of the processes in them."""
    for it in documents:
        if it["kind"] in ("StatefulSet", "Deployment", "DaemonSet"):
            yield it["metadata"]["labels"]["app.kubernetes.io/component"], it["spec"]["template"]


def check_probes(name, documents, values):
    """A probe by TCP asks where the process listens: the kubelet takes the address of the pod when it names none."""
    for role, pod in pods(documents):
        container = pod["spec"]["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            socket = container[probe].get("tcpSocket")
            has_tls = "client_tls" in values.get(role, {}).get("config", {})
            if (socket is not None) != has_tls:
                sys.exit(f"{name}: {probe} of {role} is {container[probe]}")
            if socket is None or role != "agent":
                continue
            host, port = values["agent"].get("registryListen", "127.0.0.1:7610").rsplit(":", 1)
            wanted = {"port": int(port)}
            if host not in ("0.0.0.0", "[::]"):
                wanted["host"] = host.strip("[]")
            if socket != wanted:
                sys.exit(f"{name}: {probe} of {role} asks {socket}, and it listens at {wanted}")


def check_monitoring(name, documents, values):
    """Prometheus gets in wherever others are shut out, and speaks what the process speaks."""
    for it in documents:
        role = it["metadata"]["labels"]["app.kubernetes.io/component"]
        if it["kind"] == "NetworkPolicy" and "monitoring" in values.get("networkPolicy", {}):
            rules = it["spec"]["ingress"]
            first = rules[0]["ports"][0]
            if {"ports": [first], "from": [SCRAPER]} not in rules or len(rules) != 2:
                sys.exit(f"{name}: nobody may ask {role} for its metrics: {rules}")
        if it["kind"] in ("ServiceMonitor", "PodMonitor"):
            [endpoint] = it["spec"].get("endpoints") or it["spec"]["podMetricsEndpoints"]
            for_clients = role in ("proxy", "agent")
            has_tls = not for_clients or "client_tls" in values.get(role, {}).get("config", {})
            tls = endpoint.get("tlsConfig", {})
            own = values["monitoring"].get("clientTls", {"insecureSkipVerify": True})
            fits = tls == own if for_clients else tls.get("serverName") == "localhost"
            if (endpoint.get("scheme", "http") == "https") != has_tls or has_tls != fits:
                sys.exit(f"{name}: {role} has TLS: {has_tls}, and is asked by {endpoint}")


def check_restarts():
    """Pods start anew when what their own process reads has changed, and no others do."""
    def sums(values):
        return {role: pod["metadata"]["annotations"]["checksum/config"] for role, pod in pods(documents_of(values))}

    before = sums({})
    if len(before) != 5 or len(set(before.values())) != 5:
        sys.exit(f"the configurations of the roles are not told apart: {before}")
    for key, role in [("origin", "origin"), ("buildIndex", "build-index"), ("tracker", "tracker"), ("proxy", "proxy"), ("agent", "agent")]:
        after = sums({key: {"config": {"log": "debug"}}})
        started = {it for it in before if before[it] != after[it]}
        if started != {role}:
            sys.exit(f"another configuration of {role} starts {sorted(started)} anew")


def write_configs(documents, out):
    """What the pods' first containers write, run here as a pod would run them, and the lists of members."""
    out.mkdir(parents=True)
    maps = {it["metadata"]["name"]: it["data"] for it in documents if it["kind"] == "ConfigMap"}
    for file, text in maps["kraken-members"].items():
        (out / file).write_text(text)
    for it in documents:
        if it["kind"] not in ("StatefulSet", "Deployment", "DaemonSet"):
            continue
        containers = it["spec"]["template"]["spec"]["initContainers"]
        prepare = next(it for it in containers if it["name"] == "prepare")
        for number, address in enumerate(["10.0.0.1", "fd00::1"]):
            with tempfile.TemporaryDirectory() as root:
                root = pathlib.Path(root)
                for dir in ("template", "run", "tls", "bin"):
                    (root / dir).mkdir()
                for file, text in maps["kraken"].items():
                    (root / "template" / file).write_text(text)
                kraken = root / "bin/kraken"
                # Like the real one it overwrites nothing.
                kraken.write_text(f'#!/bin/sh\nset -Ce\necho key >{root}/tls/key.key\nset +C\necho "$*" >{root}/issued\n')
                kraken.chmod(0o755)
                pod = f"{it['metadata']['name']}-0"
                environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "POD_NAME": pod, "POD_IP": address}
                command = [part.replace("/etc/kraken", str(root)) for part in prepare["command"]]
                # Twice: a pod's first containers run again when its sandbox does, and its files are still there.
                for _ in range(2):
                    subprocess.run(command, env=environment, check=True)
                issued = root / "issued"
                if issued.exists() and f"--host {address}" not in issued.read_text():
                    sys.exit(f"{pod}: its certificate is not for it: {issued.read_text()}")
                for file in (root / "run").iterdir():
                    (out / f"{file.stem}-{number}.yaml").write_text(file.read_text())


def main(out):
    lint = helm_python.lint(str(CHART))
    if lint["errors"]:
        sys.exit(f"helm lint: {lint['errors']}")
    print("helm lint:", *(it["error"] for it in lint["messages"]))
    for name, values in VARIANTS.items():
        documents = documents_of(values)
        check_probes(name, documents, values)
        check_monitoring(name, documents, values)
        path = pathlib.Path(out) / f"{name.replace(' ', '-')}.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        own = [it for it in documents if not it["apiVersion"].startswith("monitoring.coreos.com/")]
        path.with_suffix(".core.yaml").write_text(yaml.safe_dump_all(own))
        write_configs(own, pathlib.Path(out) / "configs" / name.replace(" ", "-"))
        for version in KUBERNETES:
            command = ["kubernetes-validate", "--kubernetes-version", version, "--strict", str(path.with_suffix(".core.yaml"))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{name}: Kubernetes {version} does not take it:\n{done.stdout}{done.stderr}")
        print(f"{name}: {len(documents)} objects, taken by Kubernetes {', '.join(KUBERNETES)}")
    check_restarts()
    for values in MISTAKES:
        try:
            render(values)
        except helm_python.HelmError as error:
            print("refused:", values, str(error).splitlines()[-1][:120])
        else:
            sys.exit(f"{values} is taken")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
