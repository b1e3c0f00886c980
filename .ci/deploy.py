"""Lints and renders the chart with Helm's own library, and validates what comes out against the schemas of Kubernetes."""

import pathlib
import subprocess
import sys
import tempfile

import certificates
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
    "another name": {"tls": {"prefix": "east"}, "clusterDomain": "example.test", "monitoring": {"enabled": True}},
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

# Releases that are not called kraken.
RELEASES = {"another name": "images-for-all-clusters-of-this-house-1", "little": "a"}

# What must be refused.
MISTAKES = [
    {"origin": {"replica": 3}},
    {"origin": {"replicas": 0}},
    {"tls": {"mode": "none"}},
    {"tls": {"mode": "authority"}},
    {"tls": {"secret": "kraken-ca"}},
    {"tls": {"prefix": "East"}},
    {"agent": {"registryListen": "7610"}},
    {"networkPolicy": {"nodes": "10.0.0.0/8"}},
    {"networkPolicy": {"monitoring": "monitoring"}},
    {"monitoring": {"clientTls": True}},
]


def render(values, release="kraken"):
    # A chart keeps the values that it was rendered with: each time it is read anew.
    return helm_python.Chart.load(str(CHART)).render(values, name=release, namespace="images")


def parsed(files):
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
        return {role: pod["metadata"]["annotations"]["checksum/config"] for role, pod in pods(parsed(render(values)))}

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
    [members] = [it for it in maps if it.endswith("-members")]
    for file, text in maps[members].items():
        (out / file).write_text(text)
    templates = maps[members.removesuffix("-members")]
    for role, pod in pods(documents):
        [prepare] = [it for it in pod["spec"]["initContainers"] if it["name"] == "prepare"]
        own = {"origin": "pod-0", "agent": "node-1.example"}.get(role) if is_of_secret(pod) else None
        for number, address in enumerate(["10.0.0.1", "fd00::1"]):
            environment = {"POD_NAME": "pod-0", "POD_IP": address, "NODE_NAME": "node-1.example"}
            text = prepared(role, prepare, templates, environment, own)
            cert = f"/etc/kraken/tls/{own or 'tls'}.crt"
            if yaml.safe_load(text)["tls"]["cert"] != cert or container_shows(pod, environment) != cert:
                sys.exit(f"{role} does not show {cert}, but {container_shows(pod, environment)}")
            (out / f"{role}-{number}.yaml").write_text(text)


def is_of_secret(pod):
    [tls] = [it for it in pod["spec"]["volumes"] if it["name"] == "tls"]
    return "secret" in tls


def container_shows(pod, environment):
    """The certificate that programs in the container show, as the kubelet expands the variable."""
    [value] = [it["value"] for it in pod["spec"]["containers"][0]["env"] if it["name"] == "KRAKEN_CERT"]
    for name, text in environment.items():
        value = value.replace(f"$({name})", text)
    return value


def prepared(role, container, templates, environment, own):
    """Runs the first container of a pod whose Secret has a key by the name of `own`, and gives what it writes."""
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for dir in ("template", "run", "tls"):
            (root / dir).mkdir()
        for file, text in templates.items():
            (root / "template" / file).write_text(text)
        environment = {"PATH": "/usr/bin:/bin", **environment}
        command = [part.replace("/etc/kraken", str(root)) for part in container["command"]]
        if own:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode == 0 or f"has no {own}.key" not in done.stderr or list((root / "run").iterdir()):
                sys.exit(f"{role} starts without a key: {done.stderr}")
            (root / "tls" / f"{own}.key").touch()
        # Twice: a pod's first containers run again when its sandbox does, and its files are still there.
        for _ in range(2):
            subprocess.run(command, env=environment, check=True)
        [file] = (root / "run").iterdir()
        return file.read_text()


def validate(name, path):
    for version in KUBERNETES:
        command = ["kubernetes-validate", "--kubernetes-version", version, "--strict", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{name}: Kubernetes {version} does not take it:\n{done.stdout}{done.stderr}")


def check_variant(name, values, out):
    release = RELEASES.get(name, "kraken")
    files = render(values, release)
    documents = parsed(files)
    check_probes(name, documents, values)
    check_monitoring(name, documents, values)
    [origin] = [it["metadata"]["name"] for it in documents if it["kind"] == "StatefulSet" and it["metadata"]["name"].endswith("-origin")]
    prefix = values.get("tls", {}).get("prefix", origin.removesuffix("-origin"))
    for role, pod in pods(documents):
        certificates.check_mounts(name, role, pod, values, prefix)
    own = [it for it in documents if not it["apiVersion"].startswith("monitoring.coreos.com/")]
    path = out / f"{name.replace(' ', '-')}.yaml"
    write_configs(own, out / "configs" / path.stem)
    secrets = "---\n"
    if values.get("tls", {}).get("mode") != "cert-manager":
        secrets = certificates.check_chart(name, documents, files["kraken/templates/NOTES.txt"], prefix)
    path.write_text(yaml.safe_dump_all(own) + secrets)
    validate(name, path)
    print(f"{name}: {len(documents)} objects, taken by Kubernetes {', '.join(KUBERNETES)}")


def main(out):
    lint = helm_python.lint(str(CHART))
    if lint["errors"]:
        sys.exit(f"helm lint: {lint['errors']}")
    print("helm lint:", *(it["error"] for it in lint["messages"]))
    for name, values in VARIANTS.items():
        check_variant(name, values, pathlib.Path(out))
    check_restarts()
    certificates.check()
    for values in MISTAKES:
        try:
            render(values)
        except helm_python.HelmError as error:
            print("refused:", values, str(error).splitlines()[-1][:120])
        else:
            sys.exit(f"{values} is taken")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
