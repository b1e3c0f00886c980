//! dockerd: its pushes and pulls, plain and by TLS, its mirror of Docker Hub, and what is preloaded.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kraken_core::net::CertAuthority;
use serde_json::{Value, json};

use crate::common::{self, free_addr};
use crate::lab::{self, Daemon, Lab};
use crate::namespace::{self, say};
use crate::relay::Relay;
use crate::tokens::{Keys, docker_registry, runtime};
use crate::{PASSED, WORDS, layout, make_image, make_index};

const KRAKEN: &str = env!("CARGO_BIN_EXE_kraken");
const PROGRAMS: [&str; 10] = [
    "dockerd",
    "docker",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "docker-registry",
    "skopeo",
    "umoci",
    "busybox",
    "ip",
];
/// dockerd does not check who answers on 127.0.0.0/8.
const FAR: &str = "10.88.1.1";
/// How long it may take to read its configuration again.
const RELOAD: Duration = Duration::from_secs(60);
/// Where it looks for authorities; in the namespaces this is empty.
const CERTS: &str = "/etc/docker/certs.d";

#[test]
fn real_dockerd() {
    if !namespace::inside() {
        if namespace::lacks("dockerd", &PROGRAMS) {
            return;
        }
        let Some(output) = namespace::run_inside("docker::real_dockerd") else {
            return;
        };
        assert!(output.contains(PASSED), "the inner run did nothing");
        return;
    }
    let lab = Lab::new();
    make_image(&lab);
    make_index(&lab);
    lab.ok(&format!("ip addr add {FAR}/32 dev lo"));
    let keys = Keys::new(&lab.path("keys"), &["ann"]);
    let (hub, socket) = (free_addr().to_string(), lab.path("docker.sock"));
    let _hub = docker_registry(&lab, &hub, None);
    let runtime = runtime();
    let cluster = runtime.block_on(mirroring_hub(&hub, &socket));
    let image = format!("oci:{}:v1", lab.path("image"));
    for target in [
        format!("{}/library/app:v1", cluster.host("proxy")),
        format!("{hub}/library/app:v1"),
    ] {
        lab.skopeo_push(&image, &target, "");
    }
    let _containerd = lab.plain_containerd();
    let mut docker = Docker::start(&lab, socket);
    let (proxy, agent) = (cluster.host("proxy"), cluster.host("agent-1"));
    say("dockerd: pulls and runs");
    pulls(&docker, &agent);
    say("dockerd: pulls an index by its digest");
    pulls_index(&docker, (&proxy, &agent));
    say("dockerd: builds and pushes");
    pushes(&docker, &cluster);
    say("dockerd: pulls from Docker Hub through the agent");
    mirror(&mut docker, (&cluster, &agent));
    say("dockerd: is preloaded");
    preload(&docker, (&cluster, &hub));
    say("dockerd: speaks TLS");
    tls(&docker, &cluster, &keys);
    println!("{PASSED}");
}

/// A cluster that takes a registry for Docker Hub, and whose agents preload dockerd.
async fn mirroring_hub(hub: &str, socket: &str) -> common::Lab {
    common::Lab::start_with(2, 2, |role, config| match role {
        "origin" => {
            let registry = json!({"url": format!("http://{hub}"), "prefix": "docker.io/"});
            let rest = config["backend"].take();
            config["backends"] = json!([
                {"namespace": "^docker\\.io/", "backend": {"registry": registry}, "timeout": "5s"},
                {"namespace": "", "backend": rest},
            ]);
            config.as_object_mut().unwrap().remove("backend");
        }
        "build-index" => {
            config["upstream_tags"] = json!([{"repositories": "^docker\\.io/"}]);
        }
        "agent" => {
            config["upstreams"] = json!(["docker.io"]);
            config["docker_listen"] = json!(free_addr());
            config["preload"] = json!({"runtime": "docker", "socket": socket});
        }
        _ => {}
    })
    .await
}

fn dockerd(lab: &Lab, socket: &str) -> Daemon {
    let mut command = lab.client("dockerd");
    let path = |name: &str| lab.path(&format!("docker/{name}"));
    command.args(["--config-file", &lab.path("root/etc/docker/daemon.json")]);
    command.args(["--data-root", &path("data"), "--exec-root", &path("exec")]);
    command.args(["--pidfile", &path("pid"), "--host"]);
    command.arg(format!("unix://{socket}"));
    command.args(["--containerd", &lab.path("containerd.sock")]);
    command.args(["--storage-driver", "vfs", "--bridge", "none"]);
    command.args(["--iptables=false", "--ip6tables=false"]);
    command.args(["--cgroup-parent", &format!("/{}", lab::CGROUP)]);
    let mut daemon = Daemon::start("dockerd", command, lab);
    daemon.wait_until(|log| log.contains("API listen on"));
    daemon
}

/// A dockerd whose configuration somebody wrote before.
struct Docker<'a> {
    lab: &'a Lab,
    socket: String,
    daemon: Daemon,
}

impl<'a> Docker<'a> {
    fn start(lab: &'a Lab, socket: String) -> Self {
        let config = lab.path("root/etc/docker/daemon.json");
        fs::create_dir_all(Path::new(&config).parent().unwrap()).unwrap();
        fs::write(config, json!({"max-download-attempts": 2}).to_string()).unwrap();
        Self {
            lab,
            daemon: dockerd(lab, &socket),
            socket,
        }
    }

    fn restart(&mut self) {
        self.daemon.interrupt();
        self.daemon = dockerd(self.lab, &self.socket);
    }

    fn line(&self, words: &str) -> String {
        format!("docker --host unix://{} {words}", self.socket)
    }

    /// Runs the command line; what it prints.
    fn ok(&self, words: &str) -> String {
        self.lab.ok(&self.line(words)).trim().to_owned()
    }

    /// What the command line says when it fails.
    fn fails(&self, words: &str) -> String {
        self.lab.fails(&self.line(words))
    }

    fn inspect(&self, image: &str, what: &str) -> String {
        self.ok(&format!("image inspect --format {{{{.{what}}}}} {image}"))
    }

    /// What an image prints when it is run.
    fn run(&self, image: &str, words: &str) -> String {
        self.ok(&format!("run --rm --network none {image} {words}"))
    }

    /// Leaves it without images.
    fn forget_all(&self) {
        self.ok("system prune --all --force");
        assert_eq!(self.ok("images --quiet"), "");
    }

    fn mirrors(&self) -> String {
        self.ok("info --format {{.RegistryConfig.Mirrors}}")
    }

    /// Lets it read its configuration again, and waits until it has this mirror.
    fn reload(&self, mirror: &str) {
        self.daemon.signal("HUP");
        let wanted = format!("[http://{mirror}/]");
        let end = Instant::now() + RELOAD;
        while self.mirrors() != wanted {
            let log = self.daemon.log();
            assert!(Instant::now() < end, "its mirrors are not {wanted}\n{log}");
        }
    }
}

fn pulls(docker: &Docker<'_>, agent: &str) {
    let layout = docker.lab.path("image");
    let image = format!("{agent}/library/app:v1");
    // The second time it only asks whether the tag has moved.
    for _ in 0..2 {
        docker.ok(&format!("pull {image}"));
    }
    let digests = docker.inspect(&image, "RepoDigests");
    assert!(
        digests.contains(&layout::digest(&layout, "v1")),
        "{digests}"
    );
    assert_eq!(docker.run(&image, ""), WORDS);
    let noise = layout::sha256(&fs::read(docker.lab.path("noise")).unwrap());
    let sum = docker.run(&image, "/bin/busybox sha256sum /data/noise");
    assert!(noise.ends_with(sum.split_whitespace().next().unwrap()));
    let said = docker.fails(&format!("pull {agent}/library/app:none"));
    assert!(
        said.contains("manifest unknown") || said.contains("not found"),
        "{said}"
    );
    docker.forget_all();
}

fn pulls_index(docker: &Docker<'_>, (proxy, agent): (&str, &str)) {
    let lab = docker.lab;
    let layout = lab.path("image");
    let target = format!("{proxy}/library/multi:v1");
    let digest = lab.skopeo_push(&format!("oci:{layout}:multi"), &target, "--all");
    for (tag, arch) in [("v1", "amd64"), ("arm", "arm64")] {
        for image in [
            format!("{agent}/library/multi@{digest}"),
            format!("{agent}/library/multi:v1"),
        ] {
            docker.ok(&format!("pull --platform linux/{arch} {image}"));
            assert_eq!(docker.inspect(&image, "Architecture"), arch);
            let layers = docker.inspect(&image, "RootFS.Layers");
            let wanted = layout::diff_ids(&layout, tag).join(" ");
            assert_eq!(layers, format!("[{wanted}]"));
            let digests = docker.inspect(&image, "RepoDigests");
            assert!(digests.contains(&digest), "{digests}");
            docker.forget_all();
        }
    }
}

fn pushes(docker: &Docker<'_>, cluster: &common::Lab) {
    let lab = docker.lab;
    let context = lab.path("docker-context");
    fs::create_dir(&context).unwrap();
    fs::copy(lab.path("noise"), format!("{context}/noise")).unwrap();
    let busybox = namespace::find("busybox").unwrap();
    fs::copy(busybox, format!("{context}/busybox")).unwrap();
    let lines = format!(
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY noise /data/noise\nCMD [\"/bin/busybox\", \"echo\", \"{WORDS}\"]\n"
    );
    fs::write(format!("{context}/Dockerfile"), lines).unwrap();
    let build = docker.line(&format!("build --tag built:v1 {context}"));
    lab.ok(&format!("env DOCKER_BUILDKIT=0 {build}"));
    let relay = Relay::start(cluster.host("proxy"));
    // The second time all is there, and under the other name the blobs are.
    for target in ["team/built:v1", "team/built:v1", "other/built:v1"] {
        let target = format!("{}/{target}", relay.addr);
        docker.ok(&format!("tag built:v1 {target}"));
        docker.ok(&format!("push {target}"));
    }
    let said = relay.said().concat();
    assert!(
        said.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{said}"
    );
    let noise = layout::sha256(&fs::read(lab.path("noise")).unwrap());
    for name in ["team/built", "other/built"] {
        let unpacked = lab.path(&format!("docker-{}", name.replace('/', "-")));
        let source = format!("{}/{name}:v1", cluster.host("agent-2"));
        lab.skopeo_pull(&source, &format!("oci:{unpacked}:v1"), "");
        lab.ok(&format!(
            "umoci unpack --image {unpacked}:v1 {unpacked}/bundle"
        ));
        let found = fs::read(format!("{unpacked}/bundle/rootfs/data/noise")).unwrap();
        assert_eq!(layout::sha256(&found), noise, "{name}");
    }
    docker.forget_all();
    let back = format!("{}/team/built:v1", cluster.host("agent-1"));
    docker.ok(&format!("pull {back}"));
    assert_eq!(docker.run(&back, ""), WORDS);
    docker.forget_all();
}

/// `kraken runtime` at a dockerd that runs.
fn mirror(docker: &mut Docker<'_>, (cluster, agent): (&common::Lab, &str)) {
    let lab = docker.lab;
    let root = lab.path("root");
    let config = format!("{root}/etc/docker/daemon.json");
    let before = fs::read_to_string(&config).unwrap();
    // There is no way to the real one.
    docker.fails("pull library/app:v1");
    let runtime = |what: &str| format!("{KRAKEN} runtime {what} --runtime docker --root {root}");
    let hub = docker_listen(cluster);
    let to = format!("--agent {agent} --docker {hub}");
    lab.ok(&format!("{} {to} --upstream docker.io", runtime("install")));
    docker.reload(&hub);
    docker.ok("pull library/app:v1");
    assert_eq!(docker.run("library/app:v1", ""), WORDS);
    let digests = docker.inspect("library/app:v1", "RepoDigests");
    let digest = layout::digest(&lab.path("image"), "v1");
    assert!(digests.contains(&digest), "{digests}");
    docker.forget_all();
    docker.ok(&format!("pull library/app@{digest}"));
    docker.forget_all();
    let said = lab.ok(&runtime("check"));
    assert!(said.contains("the agent mirrors docker.io"), "{said}");
    lab.ok(&runtime("remove"));
    assert_eq!(fs::read_to_string(&config).unwrap(), before);
    // It keeps a mirror until then.
    docker.restart();
    assert_eq!(docker.mirrors(), "[]");
    docker.fails("pull library/app:v1");
    // For what comes after.
    lab.ok(&format!("{} {to} --upstream docker.io", runtime("install")));
    docker.reload(&hub);
}

/// Where the first agent answers as Docker Hub.
fn docker_listen(cluster: &common::Lab) -> String {
    let config: Value =
        serde_json::from_slice(&fs::read(cluster.config("agent-1")).unwrap()).unwrap();
    config["docker_listen"].as_str().unwrap().to_owned()
}

fn preload(docker: &Docker<'_>, (cluster, hub): (&common::Lab, &str)) {
    let lab = docker.lab;
    let (layout, agent) = (lab.path("image"), cluster.host("agent-2"));
    let image = format!("oci:{layout}:v1");
    let target = format!("{}/team/preloaded:v1", cluster.host("proxy"));
    let digest = lab.skopeo_push(&image, &target, "");
    let ask = format!("{KRAKEN} preload --agent {agent}");
    let here = format!("{ask} --runtime docker --socket {}", docker.socket);
    let by_digest = format!("team/preloaded@{digest}");
    // By the agent, as its configuration says, and from here.
    for preload in [&ask, &here] {
        for name in ["team/preloaded:v1", &by_digest] {
            let said = lab.ok(&format!("{preload} {name}"));
            let name = format!("{agent}/{name}");
            assert_eq!(said, format!("the runtime has {name}\n"));
            assert_eq!(docker.run(&name, ""), WORDS);
            docker.forget_all();
        }
        let said = lab.fails(&format!("{preload} team/preloaded:none"));
        assert!(
            said.contains("manifest unknown") || said.contains("not found"),
            "{said}"
        );
    }
    // By its mirror of Docker Hub, under the name that containers use.
    lab.skopeo_push(&image, &format!("{hub}/library/hub:v1"), "");
    lab.ok(&format!("{here} --registry docker.io library/hub:v1"));
    assert_eq!(docker.run("library/hub:v1", ""), WORDS);
    docker.forget_all();
}

/// A process of the cluster with TLS, beside the one whose configuration it takes.
fn with_tls(
    (lab, keys): (&Lab, &Keys),
    cluster: &common::Lab,
    (name, member): (&'static str, &str),
) -> (Daemon, String) {
    let text = fs::read(cluster.config(member)).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    let addr = format!("{FAR}:{}", free_addr().port());
    let file = |what: &str| lab.path(&format!("far/{what}"));
    config["client_tls"] = json!({
        "cert": file("server.crt"), "key": file("server.key"), "clients_ca": file("clients.crt"),
    });
    let role = match name {
        "far-proxy" => {
            config["listen"] = json!(addr);
            config["access"] = json!({
                "users_file": keys.users,
                "tokens": {"realm": format!("https://{addr}/v2/token"), "keys": [keys.key]},
                "rules": [{"may": ["pull"]}, {"users": ["ann", "ci"], "may": ["pull", "push"]}],
            });
            "proxy"
        }
        _ => {
            config["registry_listen"] = json!(addr);
            config["peer_listen"] = json!(free_addr());
            config["store"] = json!(file("store"));
            config["access"] = json!({"rules": [{"may": ["pull"]}]});
            config.as_object_mut().unwrap().remove("docker_listen");
            "agent"
        }
    };
    let path = file(&format!("{name}.yaml"));
    fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(KRAKEN);
    command.args(["run", role, "--config", &path]);
    let mut daemon = Daemon::start(name, command, lab);
    daemon.wait_until(|log| log.contains("started"));
    (daemon, addr)
}

fn tls(docker: &Docker<'_>, cluster: &common::Lab, keys: &Keys) {
    let lab = docker.lab;
    let write = |path: &str, text: &str| {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let [servers, clients] = [(); 2].map(|()| CertAuthority::create().unwrap());
    let ca = servers.to_pem().0;
    let (cert, key) = servers.issue("server", &[FAR.into()]).unwrap();
    for (name, text) in [
        ("server.crt", &cert),
        ("server.key", &key),
        ("ca.crt", &ca),
        ("clients.crt", &clients.to_pem().0),
    ] {
        write(&lab.path(&format!("far/{name}")), text);
    }
    let (_proxy, proxy) = with_tls((lab, keys), cluster, ("far-proxy", "proxy"));
    let (_agent, agent) = with_tls((lab, keys), cluster, ("far-agent", "agent-1"));
    let app = format!("{}/library/app:v1", cluster.host("agent-1"));
    docker.ok(&format!("pull {app}"));
    let target = format!("{proxy}/team/far:v1");
    docker.ok(&format!("tag {app} {target}"));
    let said = docker.fails(&format!("push {target}"));
    assert!(said.contains("x509"), "{said}");
    for host in [&proxy, &agent] {
        write(&format!("{CERTS}/{host}/ca.crt"), &ca);
    }
    docker.fails(&format!("push {target}"));
    let login = |password: &str| format!("login --username ann --password {password} {proxy}");
    docker.fails(&login("wrong"));
    docker.ok(&login("bc"));
    docker.ok(&format!("push {target}"));
    by_docker_login(lab, &proxy);
    docker.ok(&format!("logout {proxy}"));
    let again = format!("{proxy}/team/certified:v1");
    docker.ok(&format!("tag {app} {again}"));
    docker.fails(&format!("push {again}"));
    let (cert, key) = clients.issue("ci", &["ci".into()]).unwrap();
    write(&format!("{CERTS}/{proxy}/client.cert"), &cert);
    write(&format!("{CERTS}/{proxy}/client.key"), &key);
    docker.ok(&format!("push {again}"));
    docker.forget_all();
    for image in [target, format!("{agent}/team/certified:v1")] {
        docker.ok(&format!("pull {image}"));
        assert_eq!(docker.run(&image, ""), WORDS);
    }
}

/// The tool by the login that docker keeps.
fn by_docker_login(lab: &Lab, proxy: &str) {
    let (layout, ca) = (lab.path("image"), lab.path("far/ca.crt"));
    let to = format!("--proxy https://{proxy} --ca {ca}");
    lab.ok(&format!(
        "{KRAKEN} push {layout} team/by-kraken:v1 --image v1 {to}"
    ));
    let raw = lab.ok(&format!(
        "skopeo inspect --raw --tls-verify=false docker://{proxy}/team/by-kraken:v1"
    ));
    let digest = layout::sha256(raw.as_bytes());
    assert_eq!(digest, layout::digest(&layout, "v1"));
}
