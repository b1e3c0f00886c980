"""Checks that the pods of a rendered chart see the key of no other role, and that deploy/helm/certificates makes what they need."""

import base64
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.parse

import yaml

TOP = pathlib.Path(__file__).parent.parent
SCRIPT = TOP / "deploy/helm/certificates"
PROGRAMS = pathlib.Path(os.environ.get("KRAKEN_BIN", TOP / "target/debug"))
NODES = ["node-1", "ip-10-0-0-2.eu-west-1.compute.internal", "n" * 63 + ".example"]

# Stands in for kubectl: knows Secrets as a file of YAML, and nodes.
KUBECTL = f"""#!{sys.executable}
import os, sys, yaml
if sys.argv[1:3] == ["get", "nodes"]:
    print(os.environ["NODES"])
    sys.exit()
name, known = sys.argv[5], list(yaml.safe_load_all(open(os.environ["SECRETS"])))
assert sys.argv[1:5] == ["-n", "images", "get", "secret"] and sys.argv[6:8] == ["--ignore-not-found", "-o"], sys.argv
for secret in known:
    if secret["metadata"]["name"] == name and sys.argv[8] == "name":
        print("secret/" + name)
    elif secret["metadata"]["name"] == name:
        assert sys.argv[8].startswith("go-template="), sys.argv
        for file, text in secret["data"].items():
            print(file, text)
"""


def fail(*what):
    sys.exit("certificates: " + " ".join(str(it) for it in what))


def openssl(*args, text=None):
    done = subprocess.run(["openssl", *args], input=text, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


class Bench:
    """A directory to run the script from, with a cluster that has what was applied there last."""

    def __init__(self, dir):
        self.dir = pathlib.Path(dir)
        self.tmp = self.dir / "tmp"
        self.tmp.mkdir()
        self.cluster = self.dir / "cluster.yaml"
        self.cluster.write_text("")
        self.kubectl = self.dir / "kubectl"
        self.kubectl.write_text(KUBECTL)
        self.kubectl.chmod(0o755)

    def call(self, *args, nodes=NODES):
        names = "\n".join(f"node/{it}" for it in nodes)
        own = {"TMPDIR": self.tmp, "KRAKEN_BIN": PROGRAMS, "KUBECTL": self.kubectl, "SECRETS": self.cluster, "NODES": names}
        done = subprocess.run([SCRIPT, *args], cwd=self.dir, env={**os.environ, **own}, capture_output=True, text=True)
        if list(self.tmp.iterdir()):
            fail(args, "leaves keys behind")
        return done

    def refused(self, code, words, *args, **how):
        done = self.call(*args, **how)
        if done.returncode != code or words not in done.stderr or done.stdout:
            fail(args, "ends with", done.returncode, "for", words, "and says", done.stderr, done.stdout[:80])
        print("refused:", *args[:4], done.stderr.splitlines()[0][:110])

    def printed(self, *args, **how):
        done = self.call(*args, **how)
        if done.returncode != 0:
            fail(args, "fails:", done.stderr)
        return done.stdout

    def apply(self, *args, **how):
        """The Secrets by their names, each a directory of files."""
        text = self.printed("--namespace", "images", *args, **how)
        self.cluster.write_text(text)
        return secrets_of(text)


def secrets_of(text):
    decoded = lambda data: {file: base64.b64decode(it, validate=True).decode() for file, it in data.items()}
    return {it["metadata"]["name"]: decoded(it["data"]) for it in yaml.safe_load_all(text)}


def secrets_in(spec):
    """The names of all Secrets that any part of a pod's specification refers to, wherever that may be."""
    if isinstance(spec, list):
        return set().union(*map(secrets_in, spec)) if spec else set()
    if not isinstance(spec, dict):
        return set()
    found = secrets_in(list(spec.values()))
    for key, it in spec.items():
        if key in ("secret", "secretRef", "secretKeyRef", "nodePublishSecretRef") and isinstance(it, dict):
            found.add(it.get("secretName") or it.get("name"))
    return found


def check_mounts(name, role, pod, values, prefix):
    """The pods of a role mount the Secret of that role, where it is to be and not to be written, and no other one."""
    key = {"build-index": "buildIndex"}.get(role, role)
    allowed = set(values.get(key, {}).get("secrets", []))
    if values.get("tls", {}).get("mode") != "cert-manager":
        allowed.add(f"{prefix}-{role}")
    if secrets_in(pod["spec"]) != allowed:
        fail(f"{name}: pods of {role} refer to the secrets {secrets_in(pod['spec'])}, and not to {allowed}")
    if "ca.key" in yaml.safe_dump(pod):
        fail(f"{name}: pods of {role} are told of the authority's key")
    for container in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
        mounts = [it for it in container["volumeMounts"] if it["name"] == "tls"]
        if any(it != {"name": "tls", "mountPath": "/etc/kraken/tls", "readOnly": True} for it in mounts):
            fail(f"{name}: {role} mounts {mounts}")
        if container["name"] == role and len(mounts) != 1:
            fail(f"{name}: {role} has no certificate")


def check_certificate(where, secret, file, role, hosts):
    """A certificate is its authority's, for this role and these hosts and no others, and fits its key."""
    if not {f"{file}.crt", f"{file}.key", "ca.crt"} <= secret.keys():
        fail(f"{where}: has no {file}.crt with its key, but {sorted(secret)}")
    with tempfile.TemporaryDirectory() as dir:
        cert, ca = pathlib.Path(dir) / "crt", pathlib.Path(dir) / "ca"
        cert.write_text(secret[f"{file}.crt"])
        ca.write_text(secret["ca.crt"])
        verify = lambda *how: openssl("verify", "-x509_strict", "-CAfile", str(ca), *how, str(cert)) is not None
        for host in hosts:
            if not (verify("-purpose", "sslserver", "-verify_hostname", host) and verify("-purpose", "sslclient")):
                fail(f"{where}: {file}.crt is not good for {host}")
        if verify("-verify_hostname", "another.images.svc.cluster.local"):
            fail(f"{where}: {file}.crt is good for any host")
        names = openssl("x509", "-in", str(cert), "-noout", "-ext", "subjectAltName")
        if re.findall(r"URI:([^\s,]*)", names) != [f"urn:kraken:role:{role}"]:
            fail(f"{where}: {file}.crt is for {names}, and not for {role}")
        own = openssl("x509", "-in", str(cert), "-noout", "-pubkey")
        if own != openssl("pkey", "-pubout", text=secret[f"{file}.key"]):
            fail(f"{where}: {file}.key does not go with {file}.crt")
        return own


def certificates_of(documents, secrets, prefix):
    """Role, name of the file and hosts of each certificate that the processes are told to show, by what dials them."""
    maps = {it["metadata"]["name"]: it["data"] for it in documents if it["kind"] == "ConfigMap"}
    [members] = [data for name, data in maps.items() if name.endswith("-members")]
    [configs] = [data for name, data in maps.items() if not name.endswith("-members")]
    urls = {
        "origin": [it["url"] for it in yaml.safe_load(members["origins.yaml"])],
        "tracker": yaml.safe_load(members["trackers.yaml"]),
        "build-index": yaml.safe_load(members["build-indexes.yaml"])
        + [it["url"] for it in yaml.safe_load(configs["build-index.yaml"])["build_indexes"]],
    }
    told = {role: yaml.safe_load(configs[f"{role}.yaml"])["tls"] for role in ("origin", "tracker", "build-index", "proxy", "agent")}
    for role, tls in told.items():
        file = tls["cert"].removeprefix("/etc/kraken/tls/").removesuffix(".crt")
        if tls != {"ca": "/etc/kraken/tls/ca.crt", "cert": f"/etc/kraken/tls/{file}.crt", "key": f"/etc/kraken/tls/{file}.key"}:
            fail(role, "is told of", tls)
        for url in urls.get(role, ["https://localhost"]):
            # Probes and Prometheus say localhost.
            hosts = [urllib.parse.urlsplit(url).hostname, "localhost"]
            yield role, file.replace("POD_NAME", hosts[0].split(".")[0]), hosts
    if "NODE_NAME" not in told["agent"]["cert"]:
        fail("agents are told of", told["agent"])


def check_made(name, documents, secrets, prefix):
    """Each process finds the certificate that it is told of, and whoever dials it believes it; no two peers have one key."""
    keys = []
    for role, file, hosts in certificates_of(documents, secrets, prefix):
        secret = secrets.get(f"{prefix}-{role}", {})
        if role == "agent" and not secret:
            continue
        for file in NODES if role == "agent" else [file]:
            key = check_certificate(f"{name}: {prefix}-{role}", secret, file, role, hosts)
            keys += [key] if role in ("agent", "origin") else []
    if len(keys) != len(set(keys)):
        fail(f"{name}: two peers have one key, and are one to the others")
    check_certificate(name, secrets[f"{prefix}-monitoring"], "tls", "tracker", ["prometheus"])
    if len({it["ca.crt"] for it in secrets.values()}) != 1 or any("ca.key" in it for it in secrets.values()):
        fail(f"{name}: the secrets are of several authorities, or have the key of one")


def check_chart(name, documents, notes, prefix):
    """What the notes of a release say is what its pods wait for. Gives the Secrets, as YAML."""
    [command] = re.findall(r"^  deploy/helm/certificates (.*) \| kubectl apply --server-side -f -$", notes, re.MULTILINE)
    with tempfile.TemporaryDirectory() as dir:
        bench = Bench(dir)
        nodes = [] if "--no-agents" in command else NODES
        text = bench.printed("--new", "--ca", "ca", *shlex.split(command), *nodes)
    secrets = secrets_of(text)
    check_made(name, documents, secrets, prefix)
    mounted = set().union(*(secrets_in(it["spec"]["template"]["spec"]) for it in documents if "template" in it.get("spec", {})))
    # As the name says whose it is.
    made = {it for it in secrets if it != f"{prefix}-monitoring"}
    if made - mounted:
        fail(f"{name}: nobody mounts {made - mounted}")
    return text


def keys_of(secrets):
    return {(name, file): text for name, it in secrets.items() for file, text in it.items() if file.endswith(".key")}


def check_renewal():
    """Run again it keeps all keys, renews all certificates, and adds who came and drops who left."""
    with tempfile.TemporaryDirectory() as dir:
        bench = Bench(dir)
        (bench.dir / "secret").write_text("of the authority\n")
        how = ["--ca", "ca", "--passphrase-file", "secret"]
        before = bench.apply(*how, "--origins", "4")
        if "ENCRYPTED" not in (bench.dir / "ca/ca.key").read_text():
            fail("the authority's key is not encrypted")
        after = bench.apply(*how, nodes=[*NODES[1:], "came"])
        had, has = keys_of(before), keys_of(after)
        gone, came = ("kraken-agent", f"{NODES[0]}.key"), ("kraken-agent", "came.key")
        if {**had, came: has.get(came)} != {**has, gone: had[gone]}:
            fail("keys are not kept:", {name for name, _ in set(had.items()) ^ set(has.items())})
        for name, file in has:
            cert, role = file.replace(".key", ".crt"), "tracker" if name == "kraken-monitoring" else name.removeprefix("kraken-")
            if after[name][cert] == before[name].get(cert):
                fail(name, cert, "is not renewed")
            check_certificate(name, after[name], file.removesuffix(".key"), role, [])
        if bench.apply("--new", *how, *NODES)["kraken-origin"].keys() != bench.apply(*how)["kraken-origin"].keys():
            fail("--new makes other secrets")
        new = keys_of(bench.apply("--new", *how, *NODES))
        if set(new.values()) & set(has.values()):
            fail("--new keeps keys")
        bench.refused(1, "passphrase", "--namespace", "images", "--ca", "ca")


def check_authorities():
    """Authorities change in three steps, in which everybody always believes everybody; no step can be left out."""
    with tempfile.TemporaryDirectory() as dir:
        bench = Bench(dir)
        steps = [bench.apply("--ca", "old")]
        subprocess.run([PROGRAMS / "kraken", "ca", "init", "--dir", bench.dir / "new"], check=True, capture_output=True)
        of_new = ["--namespace", "images", "--ca", "new"]
        for early in (of_new, [*of_new, "--trust", "old/ca.crt"], ["--namespace", "images", "--ca", "nowhere"]):
            bench.refused(1, "authority", *early)
        steps.append(bench.apply("--ca", "old", "--trust", "new/ca.crt"))
        bench.refused(1, "cannot be renewed", *of_new)
        steps += [bench.apply("--ca", "new", "--trust", "old/ca.crt"), bench.apply("--ca", "new")]
        if any(keys_of(it) != keys_of(steps[0]) for it in steps):
            fail("another authority changes keys")
        for one, other in [*zip(steps, steps[1:]), *zip(steps[1:], steps)]:
            # Some have what the others have not yet.
            check_certificate("authorities", {**one["kraken-agent"], "ca.crt": other["kraken-origin"]["ca.crt"]}, NODES[0], "agent", [])
        if steps[3]["kraken-agent"]["ca.crt"].strip() != (bench.dir / "new/ca.crt").read_text().strip():
            fail("the old authority stays")


def check_refusals():
    with tempfile.TemporaryDirectory() as dir:
        bench = Bench(dir)
        for args, words in [
            (["--shiny"], "--shiny"),
            (["--days=3"], "next argument"),
            (["--days"], "wants a value"),
            (["--days", "many"], "many"),
            (["--origins", "0"], "--origins 0"),
            (["--namespace", "Images"], "Images"),
            (["--release", "a;b"], "a;b"),
            (["node-1", "--new"], "before the nodes"),
            (["NODE"], "NODE"),
            (["ca"], "ca.crt"),
            (["--new"], "--no-agents"),
            (["--no-agents", "node-1"], "node-1"),
        ]:
            bench.refused(2, words, "--ca", "ca", *args)
            if (bench.dir / "ca").exists():
                fail(args, "makes an authority")
        bench.refused(1, "there are no nodes", "--ca", "ca", nodes=[])
        bench.apply("--ca", "ca")
        bench.refused(1, "for other hosts", "--namespace", "images", "--ca", "ca", "--cluster-domain", "example.test")
        (bench.dir / "many").write_text("-" * 1_048_577)
        bench.refused(1, "1 MiB", "--namespace", "images", "--ca", "ca", "--trust", "many")
        subprocess.run([PROGRAMS / "kraken", "ca", "revoke", "--dir", "ca", "--cert", crt_of(bench)], cwd=dir, check=True, capture_output=True)
        bench.refused(1, f"/data/{NODES[0]}.crt", "--namespace", "images", "--ca", "ca")


def crt_of(bench):
    file = bench.dir / f"{NODES[0]}.crt"
    file.write_text(secrets_of(bench.cluster.read_text())["kraken-agent"][file.name])
    return file


def check():
    check_refusals()
    check_renewal()
    check_authorities()
