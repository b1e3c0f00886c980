//! The kubelet's way: containerd's image service over gRPC, with an agent as the mirror of a registry.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kraken_core::net::CertAuthority;
use serde_json::{Value, json};

use crate::common::{self, free_addr};
use crate::lab::{Daemon, Lab};
use crate::namespace::{self, say};
use crate::oras::PYTHON;
use crate::tokens::{docker_registry, runtime};
use crate::{PASSED, layout, make_image, make_index};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/cri.py");
const KRAKEN: &str = env!("CARGO_BIN_EXE_kraken");
/// Where containerd is configured; in the namespaces this is empty.
const CONFIGURED: &str = "/etc/containerd";
const IMAGE: &str = "library/multi";

#[test]
fn the_kubelets_pulls() {
    if !namespace::inside() {
        // Set by `.ci/run` where PyPI does not answer.
        if std::env::var_os("KRAKEN_WITHOUT_PYPI").is_some() {
            say("SKIPPED: CRI by gRPC for Python, which PyPI does not give");
            return;
        }
        let programs = [
            "containerd",
            "docker-registry",
            "skopeo",
            "umoci",
            "busybox",
            PYTHON,
        ];
        if namespace::lacks("CRI", &programs) {
            return;
        }
        let Some(output) = namespace::run_inside("cri::the_kubelets_pulls") else {
            return;
        };
        assert!(output.contains(PASSED), "the inner run did nothing");
        return;
    }
    let lab = Lab::new();
    make_image(&lab);
    let digest = make_index(&lab);
    let authority = Authority::new(&lab);
    let host = free_addr().to_string();
    let upstream = docker_registry(&lab, &host, Some(("http", authority.http(&host))));
    let target = format!("docker://{host}/{IMAGE}:v1");
    let from = format!("oci:{}:multi", lab.path("image"));
    let certs = lab.path("certs");
    lab.ok(&format!(
        "skopeo copy --all --dest-cert-dir {certs} {from} {target}"
    ));
    let runtime = runtime();
    let mut cluster = runtime.block_on(mirroring(&host, &authority));
    let agent = cluster.host("agent-1");
    let containerd = Containerd::start(&lab, (&agent, &host), &authority);
    say("CRI: pulls through the agent");
    containerd.pulls(&host, &digest);
    containerd.lacks(&format!("{host}/{IMAGE}:none"));
    // A configuration and three layers, fetched by the origins.
    let (_, given) = by_whom(&upstream);
    assert!(
        given.len() == 4 && given.values().all(|it| *it == 1),
        "{given:?}"
    );
    say("CRI: CRI-O's library, in podman, pulls through the agent");
    by_podman(&lab, (&agent, &host), (&authority, &digest));
    say("CRI: pulls from the registry itself when the agent is away");
    cluster.kill("agent-1");
    containerd.pulls(&host, &digest);
    let (by_containerd, _) = by_whom(&upstream);
    assert_eq!(by_containerd.len(), 4, "{by_containerd:?}");
    println!("{PASSED}");
}

/// The authority of all servers here, and a server's certificate.
struct Authority {
    authority: CertAuthority,
    ca: String,
    cert: String,
    key: String,
}

impl Authority {
    fn new(lab: &Lab) -> Self {
        let authority = CertAuthority::create().unwrap();
        let (cert, key) = authority.issue("server", &["127.0.0.1".into()]).unwrap();
        fs::create_dir(lab.path("certs")).unwrap();
        let write = |name: &str, text: &str| {
            let path = lab.path(name);
            fs::write(&path, text).unwrap();
            path
        };
        Self {
            ca: write("certs/ca.crt", &authority.to_pem().0),
            cert: write("server.crt", &cert),
            key: write("server.key", &key),
            authority,
        }
    }

    /// How the registry of the Docker project is told to use it.
    fn http(&self, addr: &str) -> Value {
        json!({"addr": addr, "tls": {"certificate": self.cert, "key": self.key}})
    }
}

/// A cluster whose agent mirrors the registry, by TLS on both sides.
async fn mirroring(host: &str, authority: &Authority) -> common::Lab {
    let kept = host.replace(':', "_");
    let pattern = format!("^{}/", kept.replace('.', "\\."));
    let of_cluster = &authority.authority;
    common::Lab::start_under(of_cluster, free_addr(), (2, 1), |role, config| match role {
        "origin" => {
            let registry = json!({
                "url": format!("https://{host}"), "prefix": format!("{kept}/"), "ca": authority.ca,
            });
            let rest = config["backend"].take();
            config["backends"] = json!([
                {"namespace": pattern, "backend": {"registry": registry}, "timeout": "5s"},
                {"namespace": "", "backend": rest},
            ]);
            config.as_object_mut().unwrap().remove("backend");
        }
        "build-index" => config["upstream_tags"] = json!([{"repositories": pattern}]),
        "agent" => {
            config["upstreams"] = json!([host]);
            config["client_tls"] = json!({"cert": authority.cert, "key": authority.key});
        }
        _ => {}
    })
    .await
}

/// How often each blob was given to containerd, and to others, according to the registry's log.
fn by_whom(registry: &Daemon) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let (mut containerd, mut others) = (BTreeMap::new(), BTreeMap::new());
    for line in registry.log().lines() {
        let asked = line.split_once(&format!("\"GET /v2/{IMAGE}/blobs/"));
        let Some((digest, rest)) = asked.and_then(|(_, rest)| rest.split_once(' ')) else {
            continue;
        };
        let status = rest.split_once("\" ").map_or("", |(_, status)| status);
        if status.starts_with("200 ") || status.starts_with("206 ") {
            let by = match rest.contains("containerd") {
                true => &mut containerd,
                false => &mut others,
            };
            *by.entry(digest.to_owned()).or_default() += 1;
        }
    }
    (containerd, others)
}

/// CRI-O is not to be had here; podman reads the same files and pulls by the same library.
fn by_podman(lab: &Lab, (agent, host): (&str, &str), (authority, digest): (&Authority, &str)) {
    if namespace::lacks("podman's mirror with TLS", &["podman"]) {
        return;
    }
    let (root, ca) = (lab.path("host"), &authority.ca);
    let to = format!("--agent https://{agent} --upstream {host} --ca {ca}");
    lab.ok(&format!(
        "{KRAKEN} runtime install --runtime podman --root {root} {to}"
    ));
    let written = format!("{root}/etc/containers");
    let mirrors = format!("{written}/registries.conf.d/50-kraken.conf");
    fs::copy(mirrors, lab.path("registries.conf")).unwrap();
    // The registry itself it would not trust.
    let home = lab.path("home/.config/containers");
    lab.ok(&format!("cp -r {written}/certs.d {home}"));
    let image = format!("{host}/{IMAGE}:v1");
    lab.ok(&format!("podman pull {image}"));
    let format = "{{.Digest}}";
    let seen = lab.ok(&format!("podman image inspect --format {format} {image}"));
    let of_machine = layout::digest(&lab.path("image"), "v1");
    assert!([digest, &of_machine].contains(&seen.trim()), "{seen}");
    lab.ok("podman rmi --all --force");
    fs::remove_dir_all(format!("{home}/certs.d")).unwrap();
    let said = lab.fails(&format!("podman pull {image}"));
    assert!(said.contains("x509"), "{said}");
}

/// A containerd as `kraken runtime install` leaves it, with its image service.
struct Containerd<'a> {
    lab: &'a Lab,
    socket: String,
    _daemon: Daemon,
}

impl<'a> Containerd<'a> {
    fn start(lab: &'a Lab, (agent, host): (&str, &str), authority: &Authority) -> Self {
        let root = lab.path("host");
        let written = format!("{root}{CONFIGURED}");
        fs::create_dir_all(&written).unwrap();
        // Not all file systems take the snapshotter that it would use.
        let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n";
        fs::write(Path::new(&written).join("config.toml"), config).unwrap();
        let runtime = format!("{KRAKEN} runtime");
        let which = format!("--runtime containerd --root {root}");
        let (ca, to) = (
            &authority.ca,
            format!("--agent https://{agent} --upstream {host}"),
        );
        lab.ok(&format!("{runtime} install {which} {to} --ca {ca}"));
        lab.ok(&format!("{runtime} check {which}"));
        lab.ok(&format!("mount --bind {written} {CONFIGURED}"));
        let socket = lab.path("cri.sock");
        let mut command = lab.client("containerd");
        command.args(["--config", &format!("{CONFIGURED}/config.toml")]);
        command.args([
            "--root",
            &lab.path("cri/root"),
            "--state",
            &lab.path("cri/state"),
        ]);
        command.args(["--address", &socket]);
        // What it trusts beside what its mirrors are configured with.
        command.env("SSL_CERT_FILE", ca);
        let mut daemon = Daemon::start("containerd", command, lab);
        daemon.wait_until(|log| log.contains("containerd successfully booted"));
        Self {
            lab,
            socket,
            _daemon: daemon,
        }
    }

    fn ask(&self, what: &str, image: &str) -> Value {
        let words = format!("{PYTHON} {SCRIPT} {} {what} {image}", self.socket);
        serde_json::from_str(&self.lab.ok(&words)).unwrap()
    }

    /// Pulls an image that is nowhere.
    fn lacks(&self, image: &str) {
        let words = format!("{PYTHON} {SCRIPT} {} pull {image}", self.socket);
        let said = self.lab.fails(&words);
        assert!(said.starts_with("NOT_FOUND: "), "{said}");
    }

    /// Pulls the image, looks at it, and removes it.
    fn pulls(&self, host: &str, digest: &str) {
        let layout = self.lab.path("image");
        let (tagged, named) = (
            format!("{host}/{IMAGE}:v1"),
            format!("{host}/{IMAGE}@{digest}"),
        );
        let config = layout::config(&layout, "v1");
        for image in [&tagged, &named] {
            assert_eq!(self.ask("status", image), Value::Null);
            assert_eq!(self.ask("pull", image)["image"], json!(config));
            let status = self.ask("status", image);
            assert_eq!(status["id"], json!(config), "this machine's of the two");
            assert_eq!(status["digests"], json!([named]), "{status}");
            self.ask("remove", image);
        }
        assert_eq!(self.ask("status", &tagged), Value::Null);
    }
}
