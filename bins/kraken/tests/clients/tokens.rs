//! Clients that need tokens: of a proxy that gives them, and of a token server in front of another
//! registry that agents mirror.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::join_all;
use kraken_core::net::CertAuthority;
use kraken_registry::access::{Access, AccessRule, May, TokenConfig};
use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::common::{self, free_addr, pull_mirrored};
use crate::lab::{Daemon, Lab};
use crate::namespace::{self, say};
use crate::{PASSED, layout, make_image};

/// "bc", as bcrypt hashes it.
const HASHED: &str = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
const AGENTS: usize = 20;
const IMAGE: &str = "library/app";

#[test]
fn real_clients_with_tokens() {
    if !namespace::inside() {
        if namespace::lacks("tokens", &["skopeo", "umoci", "busybox"]) {
            return;
        }
        let Some(output) = namespace::run_inside("tokens::real_clients_with_tokens") else {
            return;
        };
        assert!(output.contains(PASSED), "the inner run did nothing");
        return;
    }
    let lab = Lab::new();
    make_image(&lab);
    say("tokens: a proxy gives them");
    own_tokens(&lab);
    say("tokens: agents mirror a registry that wants them");
    mirror(&lab);
    println!("{PASSED}");
}

/// Files of a token server: a certificate, which proves its tokens, and its key.
pub(crate) struct Keys {
    cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) users: PathBuf,
}

impl Keys {
    pub(crate) fn new(dir: &str, users: &[&str]) -> Self {
        let path = |name: &str| Path::new(dir).join(name);
        fs::create_dir_all(dir).unwrap();
        let (cert, key) = CertAuthority::create().unwrap().to_pem();
        let lines: Vec<_> = users.iter().map(|it| format!("{it}:{HASHED}\n")).collect();
        fs::write(path("users"), lines.concat()).unwrap();
        fs::write(path("cert"), cert).unwrap();
        fs::write(path("key"), key).unwrap();
        Self {
            cert: path("cert"),
            key: path("key"),
            users: path("users"),
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().unwrap()
}

fn own_tokens(lab: &Lab) {
    let keys = Keys::new(&lab.path("own"), &["ann", "bob"]);
    let realm = Mutex::new(String::new());
    let runtime = runtime();
    let cluster = runtime.block_on(common::Lab::start_with(2, 1, |role, config| match role {
        "proxy" => {
            let listen = config["listen"].as_str().unwrap();
            *realm.lock().unwrap() = format!("http://{listen}/v2/token");
            config["access"] = json!({
                "users_file": keys.users,
                "tokens": {"realm": *realm.lock().unwrap(), "keys": [keys.key], "refresh": "1h"},
                "rules": [
                    {"repositories": "^team/", "users": ["ann"], "may": ["pull", "push", "delete"]},
                    {"repositories": "^team/", "users": ["bob"], "may": ["pull"]},
                    {"repositories": "^public/", "users": ["ann"], "may": ["push"]},
                    {"repositories": "^public/", "may": ["pull"]},
                ],
            });
        }
        // It takes them, and cannot make any.
        "agent" => {
            config["access"] = json!({"token_server": {
                "realm": *realm.lock().unwrap(), "service": "kraken", "issuer": "kraken",
                "keys": [keys.cert],
            }});
        }
        _ => {}
    }));
    let (proxy, agent) = (cluster.host("proxy"), cluster.host("agent-1"));
    by_skopeo(lab, (&proxy, &agent));
    by_podman(lab, (&proxy, &agent));
    by_containerd(lab, (&proxy, &agent));
    by_certificate(lab, cluster.config("proxy"));
}

fn by_skopeo(lab: &Lab, (proxy, agent): (&str, &str)) {
    let image = format!("oci:{}:v1", lab.path("image"));
    let digest = layout::digest(&lab.path("image"), "v1");
    let login = |name: &str, password: &str| {
        format!("skopeo login --tls-verify=false -u {name} -p {password} {proxy}")
    };
    let said = lab.fails(&login("ann", "wrong"));
    assert!(said.contains("invalid username/password"), "{said}");
    let target = |name: &str| format!("{proxy}/{name}:v1");
    let push = |name: &str| {
        format!(
            "skopeo copy --dest-tls-verify=false {image} docker://{}",
            target(name)
        )
    };
    lab.fails(&push("team/app"));
    lab.ok(&login("ann", "bc"));
    assert_eq!(lab.skopeo_push(&image, &target("team/app"), ""), digest);
    assert_eq!(lab.skopeo_push(&image, &target("public/app"), ""), digest);
    lab.fails(&push("other/app"));
    // At an agent by the proxy's tokens.
    let pulled = |from: &str, options: &str| {
        let to = format!("dir:{}", lab.path("with-tokens"));
        assert_eq!(lab.skopeo_pull(from, &to, options), digest, "{from}");
    };
    pulled(&target("team/app"), "");
    pulled(&format!("{agent}/team/app:v1"), "--src-creds ann:bc");
    pulled(&format!("{agent}/team/app:v1"), "--src-creds bob:bc");
    lab.ok(&format!("skopeo logout {proxy}"));
    lab.ok(&login("bob", "bc"));
    pulled(&target("team/app"), "");
    let said = lab.fails(&push("team/app"));
    assert!(
        said.contains("bob may not do this") || said.contains("denied"),
        "{said}"
    );
    lab.ok(&format!("skopeo logout {proxy}"));
    // Without a name, what everybody may.
    pulled(&target("public/app"), "");
    pulled(&format!("{agent}/public/app:v1"), "");
    for name in ["team/app", "public/none"] {
        let inspect = format!(
            "skopeo inspect --tls-verify=false docker://{}",
            target(name)
        );
        lab.fails(&inspect);
    }
    lab.ok(&login("ann", "bc"));
    lab.skopeo_push(&image, &target("team/short"), "");
    let delete = |name: &str| format!("skopeo delete --tls-verify=false docker://{}", target(name));
    lab.fails(&delete("public/app"));
    lab.ok(&delete("team/short"));
    lab.ok(&format!("skopeo logout {proxy}"));
}

fn by_podman(lab: &Lab, (proxy, agent): (&str, &str)) {
    if namespace::lacks("podman with tokens", &["podman"]) {
        return;
    }
    lab.ok(&format!(
        "podman login --tls-verify=false -u ann -p bc {proxy}"
    ));
    let app = format!("{proxy}/team/app:v1");
    lab.ok(&format!("podman pull --tls-verify=false {app}"));
    let copy = format!("docker://{proxy}/team/by-podman:v1");
    lab.ok(&format!("podman push --tls-verify=false {app} {copy}"));
    lab.ok(&format!("podman logout {proxy}"));
    let by_agent = format!("{agent}/team/by-podman:v1");
    lab.ok(&format!(
        "podman pull --tls-verify=false --creds bob:bc {by_agent}"
    ));
    lab.fails(&format!(
        "podman push --tls-verify=false --creds bob:bc {app} {copy}"
    ));
    lab.ok("podman rmi --all --force");
}

fn by_containerd(lab: &Lab, (proxy, agent): (&str, &str)) {
    if namespace::lacks("containerd with tokens", &["containerd", "ctr"]) {
        return;
    }
    let daemon = lab.plain_containerd();
    let ctr = lab.ctr();
    let pull = format!("{ctr} images pull --snapshotter native --plain-http");
    let app = format!("{proxy}/team/app:v1");
    lab.ok(&format!("{pull} --user ann:bc {app}"));
    lab.ok(&format!("{pull} --user bob:bc {agent}/team/app:v1"));
    lab.ok(&format!("{pull} {proxy}/public/app:v1"));
    lab.fails(&format!("{pull} --user ann:wrong {app}"));
    lab.fails(&format!("{pull} {app}"));
    let push = format!("{ctr} images push --plain-http");
    let target = format!("{proxy}/team/by-containerd:v1 {app}");
    lab.fails(&format!("{push} --user bob:bc {target}"));
    lab.ok(&format!("{push} --user ann:bc {target}"));
    let from = format!("{proxy}/team/by-containerd:v1");
    let to = format!("dir:{}", lab.path("by-containerd"));
    let digest = lab.skopeo_pull(&from, &to, "--src-creds ann:bc");
    assert_eq!(digest, layout::digest(&lab.path("image"), "v1"));
    forget_all(lab);
    drop(daemon);
}

/// Another proxy of the cluster, with TLS, where a certificate is a name.
fn by_certificate(lab: &Lab, config: &Path) {
    let write = |name: &str, text: &str| {
        let file = lab.path(&format!("certs/{name}"));
        fs::create_dir_all(Path::new(&file).parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    };
    let [servers, clients] = [(); 2].map(|()| CertAuthority::create().unwrap());
    let (cert, key) = servers.issue("proxy", &["127.0.0.1".into()]).unwrap();
    let tls = json!({
        "cert": write("cert", &cert), "key": write("key", &key),
        "clients_ca": write("clients", &clients.to_pem().0),
    });
    let (cert, key) = clients.issue("ci", &["ci.example.com".into()]).unwrap();
    write("ci/client.cert", &cert);
    write("ci/client.key", &key);
    for dir in ["ci", "others"] {
        write(&format!("{dir}/ca.crt"), &servers.to_pem().0);
    }
    let mut config: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let listen = free_addr();
    config["listen"] = json!(listen);
    config["client_tls"] = tls;
    config["access"]["tokens"]["realm"] = json!(format!("https://{listen}/v2/token"));
    let rule = json!({"repositories": "^team/", "users": ["ci"], "may": ["pull", "push"]});
    config["access"]["rules"].as_array_mut().unwrap().push(rule);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kraken"));
    command.args(["run", "proxy", "--config"]);
    command.arg(write("proxy.yaml", &config.to_string()));
    let mut proxy = Daemon::start("proxy-with-tls", command, lab);
    proxy.wait_until(|log| log.contains("started"));

    let image = format!("oci:{}:v1", lab.path("image"));
    let certs = |who: &str| lab.path(&format!("certs/{who}"));
    let push = |who: &str, options: &str| {
        let certs = certs(who);
        format!(
            "skopeo copy --dest-cert-dir {certs} {options} {image} docker://{listen}/team/by-ci:v1"
        )
    };
    lab.fails(&push("others", ""));
    lab.fails(&push("others", "--dest-creds bob:bc"));
    lab.ok(&push("ci", ""));
    lab.ok(&push("others", "--dest-creds ann:bc"));
    let inspect = |who: &str, name: &str| {
        let certs = certs(who);
        format!("skopeo inspect --cert-dir {certs} docker://{listen}/{name}:v1")
    };
    lab.ok(&inspect("ci", "team/by-ci"));
    lab.ok(&inspect("others", "public/app"));
    lab.fails(&inspect("others", "team/by-ci"));
    lab.fails(&inspect("ci", "other/app"));
}

/// Leaves a containerd without images, and without what they were made of.
fn forget_all(lab: &Lab) {
    let ctr = lab.ctr();
    for image in lab.ok(&format!("{ctr} images list -q")).lines() {
        lab.ok(&format!("{ctr} images rm --sync {image}"));
    }
    let contents = lab.ok(&format!("{ctr} content ls -q"));
    assert!(contents.trim().is_empty(), "{contents}");
}

/// A token server for another registry: `reader` may read there, and `writer` write too.
fn token_server(runtime: &Runtime, keys: &Keys) -> String {
    let _inside = runtime.enter();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let realm = format!("http://{}/v2/token", listener.local_addr().unwrap());
    let rule = |user: &str, may: &[May]| AccessRule {
        repositories: "^library/".parse().unwrap(),
        users: Some([user.to_owned()].into()),
        may: may.iter().copied().collect(),
    };
    let rules = vec![
        rule("reader", &[May::Pull]),
        rule("writer", &[May::Pull, May::Push]),
    ];
    let config = TokenConfig {
        realm: realm.clone(),
        service: "upstream".into(),
        keys: vec![keys.key.clone()],
        lifetime: Duration::from_secs(120),
        refresh: None,
    };
    let access = Access::new(rules, Some(keys.users.clone())).unwrap();
    let access = access.tokens(config).unwrap();
    let registry = PullState::new(MemoryBlobs::default(), MemoryTags::default());
    let app = pull::router(registry.access(access));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
    realm
}

/// The registry of the Docker project, with more in its configuration.
pub(crate) fn docker_registry(lab: &Lab, addr: &str, more: Option<(&str, Value)>) -> Daemon {
    let mut config = json!({
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": lab.path("upstream-blobs")}},
        "http": {"addr": addr},
    });
    if let Some((key, value)) = more {
        config[key] = value;
    }
    let file = lab.path("upstream.yml");
    fs::write(&file, config.to_string()).unwrap();
    let mut command = lab.client("docker-registry");
    command.args(["serve", &file]);
    let mut daemon = Daemon::start("docker-registry", command, lab);
    daemon.wait_until(|log| log.contains("listening on"));
    daemon
}

fn mirror(lab: &Lab) {
    if namespace::lacks("a mirror of a registry with tokens", &["docker-registry"]) {
        return;
    }
    let keys = Keys::new(&lab.path("upstream"), &["reader", "writer"]);
    let runtime = runtime();
    let realm = token_server(&runtime, &keys);
    let host = free_addr().to_string();
    // It lets in by tokens of that server only.
    let auth = json!({"token": {
        "realm": realm, "service": "upstream", "issuer": "upstream", "rootcertbundle": keys.cert,
    }});
    let start = || docker_registry(lab, &host, Some(("auth", auth.clone())));
    let upstream = start();
    let image = format!("oci:{}:v1", lab.path("image"));
    let target = format!("{host}/{IMAGE}:v1");
    let digest = lab.skopeo_push(&image, &target, "--dest-creds writer:bc");
    let read_only = format!("--dest-tls-verify=false --dest-creds reader:bc {image}");
    lab.fails(&format!(
        "skopeo copy {read_only} docker://{host}/library/no:v1"
    ));

    let cluster = runtime.block_on(mirroring(&host));
    let agents: Vec<_> = (1..=AGENTS)
        .map(|it| cluster.host(&format!("agent-{it}")))
        .collect();
    let pulls = agents
        .iter()
        .map(|it| pull_mirrored(it, (&host, IMAGE), "v1"));
    let pulled = runtime.block_on(join_all(pulls));
    assert!(pulled.iter().all(|it| it.to_string() == digest));
    // Three layers and a configuration.
    let given = given_by(&upstream);
    assert!(given.len() == 4, "{given:?}");
    assert!(given.values().all(|it| *it == 1), "{given:?}");

    drop(upstream);
    let pull = |agent: &str| runtime.block_on(pull_mirrored(agent, (&host, IMAGE), "v1"));
    assert_eq!(
        pull(&agents[3]).to_string(),
        digest,
        "what is known is served"
    );
    let clients = Clients::new(lab, &host);
    clients.pull(&agents[4]);
    let upstream = start();
    // All of ours dies.
    drop(cluster);
    clients.pull(&agents[4]);
    let by_itself = given_by(&upstream);
    let each = |times: &usize| *times == clients.count();
    assert!(
        clients.count() == 0 || by_itself.len() == 4,
        "{by_itself:?}"
    );
    assert!(by_itself.values().all(each), "{by_itself:?}");
}

/// A cluster that mirrors the registry.
async fn mirroring(host: &str) -> common::Lab {
    let kept = host.replace(':', "_");
    let pattern = format!("^{}/", kept.replace('.', "\\."));
    common::Lab::start_with(2, AGENTS, |role, config| match role {
        "origin" => {
            let login = json!({"username": "reader", "password": {"text": "bc"}});
            let registry = json!({
                "url": format!("http://{host}"), "prefix": format!("{kept}/"),
                "credentials": {"password": login},
            });
            let rest = config["backend"].take();
            config["backends"] = json!([
                {"namespace": pattern, "backend": {"registry": registry}, "timeout": "5s"},
                {"namespace": "", "backend": rest},
            ]);
            config.as_object_mut().unwrap().remove("backend");
        }
        "build-index" => config["upstream_tags"] = json!([{"repositories": pattern}]),
        "agent" => config["upstreams"] = json!([host]),
        _ => {}
    })
    .await
}

/// How often each blob was given since the start, according to the registry's log.
fn given_by(registry: &Daemon) -> BTreeMap<String, usize> {
    let mut given = BTreeMap::new();
    for line in registry.log().lines() {
        let asked = line.split_once("\"GET /v2/library/app/blobs/");
        let Some((digest, rest)) = asked.and_then(|(_, rest)| rest.split_once(' ')) else {
            continue;
        };
        let status = rest.split_once("\" ").map_or("", |(_, status)| status);
        if status.starts_with("200 ") || status.starts_with("206 ") {
            *given.entry(digest.to_owned()).or_default() += 1;
        }
    }
    given
}

/// Container runtimes that ask an agent first and the registry itself then.
struct Clients<'a> {
    lab: &'a Lab,
    host: String,
    has_podman: bool,
    containerd: Option<Daemon>,
}

impl<'a> Clients<'a> {
    fn new(lab: &'a Lab, host: &str) -> Self {
        let has_containerd = !namespace::lacks("containerd's mirror", &["containerd", "ctr"]);
        Self {
            lab,
            host: host.into(),
            has_podman: !namespace::lacks("podman's mirror", &["podman"]),
            containerd: has_containerd.then(|| lab.plain_containerd()),
        }
    }

    fn count(&self) -> usize {
        usize::from(self.has_podman) + usize::from(self.containerd.is_some())
    }

    /// Pulls by each of them, into stores that lack the image.
    fn pull(&self, agent: &str) {
        let (lab, host) = (self.lab, &self.host);
        let image = format!("{host}/{IMAGE}:v1");
        let digest = layout::digest(&lab.path("image"), "v1");
        if self.has_podman {
            // It names no registry to a mirror.
            let mirror = format!("{agent}/{}", host.replace(':', "_"));
            let conf = format!(
                "unqualified-search-registries = []\n[[registry]]\nprefix = {host:?}\nlocation = {host:?}\n\
                 insecure = true\n[[registry.mirror]]\nlocation = {mirror:?}\ninsecure = true\n"
            );
            fs::write(lab.path("registries.conf"), conf).unwrap();
            lab.ok(&format!("podman pull --creds reader:bc {image}"));
            let seen = lab.ok(&format!(
                "podman image inspect --format {{{{.Digest}}}} {image}"
            ));
            assert_eq!(seen.trim(), digest);
            lab.ok("podman rmi --all --force");
        }
        if self.containerd.is_some() {
            let dir = format!("{}/{host}", lab.hosts());
            fs::create_dir_all(&dir).unwrap();
            let hosts = format!(
                "server = \"http://{host}\"\n[host.\"http://{agent}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
            );
            fs::write(format!("{dir}/hosts.toml"), hosts).unwrap();
            let (ctr, hosts) = (lab.ctr(), lab.hosts());
            lab.ok(&format!(
                "{ctr} images pull --snapshotter native --hosts-dir {hosts} --user reader:bc {image}"
            ));
            let listed = lab.ok(&format!("{ctr} images list name=={image}"));
            assert!(listed.contains(&digest), "{listed}");
            forget_all(lab);
        }
    }
}
