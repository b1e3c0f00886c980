"""Lints and renders the chart with Helm's own library, and validates what comes out against the schemas of Kubernetes."""

import pathlib
import subprocess
import sys
import tempfile

import helm_python
import yaml

CHART = pathlib.Path(__file__).parent.parent / "deploy/helm/kraken"
KUBERNETES = ["1.25", "1.28", "1.32"]

# What an installation may say, each to be rendered.
VARIANTS = {
    "as it comes": {},
    "certificates of cert-manager": {"tls": {"mode": "cert-manager"}},
    "everything": {
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
        "agent": {"registryListen": "0.0.0.0:7610", "nodeSelector": {"role": "worker"}},
        "networkPolicy": {"nodes": ["10.0.0.0/8"], "clients": [{"namespaceSelector": {"matchLabels": {"ci": "yes"}}}]},
        "origin": {
            "replicas": 5,
            "config": {"backend": {"s3": {"bucket": "images", "region": "eu-west-1"}}},
            "storage": {"storageClass": "fast"},
            "environment": [{"name": "AWS_REGION", "value": "eu-west-1"}],
            "secrets": ["s3"],
            "affinity": {"nodeAffinity": {}},
        },
        "proxy": {"config": {"client_tls": {"cert": "a", "key": "b"}}, "service": {"annotations": {"a": "b"}}},
        "image": {"repository": "registry.example.com/kraken", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    },
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
]


def render(values):
    # A chart keeps the values that it was rendered with: each time it is read anew.
    return helm_python.Chart.load(str(CHART)).render(values, name="kraken", namespace="images")


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
                kraken.write_text(f'#!/bin/sh\necho "$*" >{root}/issued\n')
                kraken.chmod(0o755)
                pod = f"{it['metadata']['name']}-0"
                environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "POD_NAME": pod, "POD_IP": address}
                command = [part.replace("/etc/kraken", str(root)) for part in prepare["command"]]
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
        files = render(values)
        text = "\n---\n".join(text for file, text in files.items() if file.endswith(".yaml"))
        documents = [it for it in yaml.safe_load_all(text) if it]
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
    for values in MISTAKES:
        try:
            render(values)
        except helm_python.HelmError as error:
            print("refused:", values, str(error).splitlines()[-1][:120])
        else:
            sys.exit(f"{values} is taken")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
