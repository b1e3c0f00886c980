//! Clusters of processes, and small things that the tests share.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, StatusCode};
use kraken::client::{Checked, Registry};
use kraken_core::net::http::{HttpBody, HttpClient, HttpResponse};
use kraken_core::net::{CertAuthority, Identity};
use kraken_core::storage::FsStore;
use kraken_core::{Digest, PeerId};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The repository that the tests push to.
pub(crate) const REPOSITORY: &str = "faults/blobs";

/// How long a process may take to start or to end, or anything else that is waited for.
const PROCESS: Duration = Duration::from_secs(30);
/// How long a command may take: more than `kraken doctor` gives an agent, which has to say itself what hangs.
const COMMAND: Duration = Duration::from_secs(90);

/// Bounds a whole test.
pub(crate) async fn within<T>(seconds: u64, what: &str, test: impl Future<Output = T>) -> T {
    let bounded = tokio::time::timeout(Duration::from_secs(seconds), Box::pin(test));
    bounded
        .await
        .unwrap_or_else(|_| panic!("{what}: not done within {seconds} s"))
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    until_in(PROCESS, what, ask).await
}

async fn until_in<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Bytes that are the same for the same seed.
pub(crate) fn random(len: usize, seed: u64) -> Bytes {
    kraken_storage::testkit::bytes(len, seed).into()
}

/// A body in chunks of 1 MiB.
pub(crate) fn chunks(bytes: &Bytes) -> Vec<std::io::Result<Bytes>> {
    let step = 1 << 20;
    (0..bytes.len())
        .step_by(step)
        .map(|at| Ok(bytes.slice(at..bytes.len().min(at + step))))
        .collect()
}

/// Pushes a blob through the proxy.
pub(crate) async fn push(proxy: &str, bytes: &Bytes) -> Digest {
    let registry = Registry::new(proxy).unwrap();
    let body = futures::stream::iter(chunks(bytes));
    let (digest, length) = registry.push_blob(REPOSITORY, body).await.unwrap();
    assert_eq!((digest, length), (Digest::of(bytes), bytes.len() as u64));
    digest
}

/// Pulls a blob from an agent or the proxy, checks its digest and gives its length.
pub(crate) async fn pull(registry: &str, digest: Digest) -> u64 {
    let client = Registry::new(registry).unwrap();
    let (length, mut body) = client.blob(REPOSITORY, digest).await.unwrap();
    let mut checked = Checked::new(digest);
    while let Some(chunk) = body.next().await {
        checked.update(&chunk.unwrap());
    }
    assert_eq!(checked.finish().unwrap(), length);
    length
}

/// One request over plain HTTP.
pub(crate) async fn ask(method: Method, url: &str, body: HttpBody) -> HttpResponse {
    let request = Request::builder().method(method).uri(url);
    let request = request.body(body).unwrap();
    let client = HttpClient::new(None).unwrap();
    client.send(request).await.unwrap()
}

/// Asks an agent for something of an image of another registry, as containerd does.
pub(crate) async fn get_mirrored(
    agent: &str,
    (host, image): (&str, &str),
    what: &str,
) -> (StatusCode, Bytes) {
    let url = format!("http://{agent}/v2/{image}/{what}?ns={host}");
    let answer = ask(Method::GET, &url, HttpBody::Empty).await;
    let status = answer.status();
    (status, answer.bytes(64 << 20).await.unwrap())
}

/// Pulls an image of another registry through an agent, and gives its manifest's digest.
pub(crate) async fn pull_mirrored(agent: &str, image: (&str, &str), tag: &str) -> Digest {
    let (status, manifest) = get_mirrored(agent, image, &format!("manifests/{tag}")).await;
    let said = String::from_utf8_lossy(&manifest);
    assert_eq!(status, StatusCode::OK, "{said}");
    let digest = Digest::of(&manifest);
    let (status, again) = get_mirrored(agent, image, &format!("manifests/{digest}")).await;
    assert!(status == StatusCode::OK && again == manifest);
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    for blob in layers.chain([&manifest["config"]]) {
        let wanted: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
        let (status, bytes) = get_mirrored(agent, image, &format!("blobs/{wanted}")).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(Digest::of(&bytes), wanted);
    }
    digest
}

/// The store of a process that has ended.
pub(crate) async fn open_store(path: &Path) -> FsStore {
    until("the store is free", async || FsStore::open(path).await.ok()).await
}

/// A certificate of `authority` for loopback.
pub(crate) fn identity(authority: &CertAuthority, role: &str) -> Identity {
    let (cert, key) = authority.issue(role, &["127.0.0.1".into()]).unwrap();
    Identity::from_pem(&cert, &key, &authority.to_pem().0).unwrap()
}

/// The authority of a cluster that was started in `dir`.
pub(crate) fn authority_in(dir: &Path) -> CertAuthority {
    let read = |name: &str| fs::read_to_string(dir.join("tls").join(name)).unwrap();
    CertAuthority::from_pem(&read("ca.crt"), &read("ca.key")).unwrap()
}

/// An address that nobody has, for TCP and UDP. It lies below the range from which the kernel
/// draws, so that no outgoing connection takes it before the process that it is meant for.
pub(crate) fn free_addr() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + next % 22_000).unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// What a run of the binary left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `kraken` to its end.
pub(crate) async fn kraken(arguments: &[&str]) -> Ran {
    kraken_with(&[], arguments).await
}

/// The same with these variables.
pub(crate) async fn kraken_with(variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let mut process = Process::spawn_with(variables, arguments, (&out, &err));
    let what = format!("the end of kraken {arguments:?}");
    let status = until_in(COMMAND, &what, async || process.ended()).await;
    Ran {
        status,
        stdout: fs::read_to_string(out).unwrap(),
        stderr: fs::read_to_string(err).unwrap(),
    }
}

/// A process of ours; it dies with this.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn spawn(arguments: &[&str], out: &Path, err: &Path) -> Self {
        Self::spawn_with(&[], arguments, (out, err))
    }

    fn spawn_with(
        variables: &[(&str, &str)],
        arguments: &[&str],
        (out, err): (&Path, &Path),
    ) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_kraken"))
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(File::create(out).unwrap())
            .stderr(File::create(err).unwrap())
            .spawn();
        Self(child.unwrap())
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// SIGKILL, and its end.
    fn kill(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A member of a [`Lab`].
#[derive(Debug)]
struct Member {
    role: &'static str,
    /// Where it answers HTTP.
    addr: SocketAddr,
    /// With TLS.
    is_secure: bool,
    config: PathBuf,
}

/// A cluster of which every member is a process of its own.
#[derive(Debug)]
pub(crate) struct Lab {
    dir: TempDir,
    authority: CertAuthority,
    http: HttpClient,
    members: BTreeMap<String, Member>,
    running: BTreeMap<String, Process>,
}

impl Lab {
    /// Starts origins, a tracker, a build-index, a proxy and agents, and waits until all of them
    /// answer.
    pub(crate) async fn start(origins: usize, agents: usize) -> Self {
        Self::start_with(origins, agents, |_, _| {}).await
    }

    /// The same, with more in the configurations: `add` gets a role and what is configured for it.
    pub(crate) async fn start_with(
        origins: usize,
        agents: usize,
        add: impl Fn(&str, &mut Value),
    ) -> Self {
        let authority = CertAuthority::create().unwrap();
        Self::start_under(&authority, free_addr(), (origins, agents), add).await
    }

    /// The same with certificates of this authority, and its build-index at this address: for clusters that
    /// know each other.
    pub(crate) async fn start_under(
        authority: &CertAuthority,
        index: SocketAddr,
        (origins, agents): (usize, usize),
        add: impl Fn(&str, &mut Value),
    ) -> Self {
        let (cert, key) = authority.to_pem();
        let authority = CertAuthority::from_pem(&cert, &key).unwrap();
        let http = HttpClient::new(Some(&identity(&authority, "operator"))).unwrap();
        let mut lab = Self {
            dir: tempfile::tempdir().unwrap(),
            authority,
            http,
            members: BTreeMap::new(),
            running: BTreeMap::new(),
        };
        fs::write(lab.path("ca.crt"), lab.authority.to_pem().0).unwrap();
        let (spare, _) = lab.authority.issue("agent", &[]).unwrap();
        let list = lab.authority.revoke(&spare, None).unwrap();
        fs::write(lab.path("ca.crl"), list).unwrap();
        let names_of = |role: &str, count: usize| -> Vec<_> {
            (1..=count)
                .map(|number| format!("{role}-{number}"))
                .collect()
        };
        let addrs: Vec<_> = (0..origins).map(|_| free_addr()).collect();
        let entry = |(name, addr): (&String, &SocketAddr)| json!({"name": name, "url": format!("https://{addr}")});
        let origin_names = names_of("origin", origins);
        let entries: Vec<_> = origin_names.iter().zip(&addrs).map(entry).collect();
        let ring = json!({"origins": entries, "replicas": 2});
        for (name, addr) in origin_names.iter().zip(addrs) {
            let mut config = ring.clone();
            config["name"] = json!(name);
            config["store"] = json!(lab.path(name));
            config["backend"] = json!({"local_disk": lab.path("backend")});
            config["peer_listen"] = json!(free_addr());
            config["listen"] = json!(addr);
            add("origin", &mut config);
            lab.add("origin", name, addr, config);
        }
        let [tracker, proxy] = [(); 2].map(|()| free_addr());
        let mut config = ring.clone();
        config["listen"] = json!(tracker);
        add("tracker", &mut config);
        lab.add("tracker", "tracker", tracker, config);
        let mut config = ring.clone();
        config["listen"] = json!(index);
        config["store"] = json!(lab.path("build-index"));
        add("build-index", &mut config);
        lab.add("build-index", "build-index", index, config);
        let indexes = json!([format!("https://{index}")]);
        let mut config = ring;
        config["listen"] = json!(proxy);
        config["build_indexes"] = indexes.clone();
        add("proxy", &mut config);
        lab.add("proxy", "proxy", proxy, config);
        for name in names_of("agent", agents) {
            let addr = free_addr();
            let mut config = json!({
                "store": lab.path(&name), "peer_listen": free_addr(), "registry_listen": addr,
                "trackers": [format!("https://{tracker}")], "build_indexes": indexes,
            });
            add("agent", &mut config);
            lab.add("agent", &name, addr, config);
        }
        for name in lab.members.keys().cloned().collect::<Vec<_>>() {
            lab.spawn(&name);
        }
        for name in lab.members.keys().cloned().collect::<Vec<_>>() {
            lab.healthy(&name).await;
        }
        lab.sees_origins(origins).await;
        lab
    }

    /// A path in the cluster's directory; a member's store is there under its name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `host:port` of a member's HTTP.
    pub(crate) fn host(&self, name: &str) -> String {
        self.members[name].addr.to_string()
    }

    /// The configuration file of a member.
    pub(crate) fn config(&self, name: &str) -> &Path {
        &self.members[name].config
    }

    /// The identity that a member proves to its peers.
    pub(crate) fn peer_id(&self, name: &str) -> PeerId {
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        let identity = Identity::from_files(path("crt"), path("key"), self.path("ca.crt"));
        identity.unwrap().peer_id()
    }

    /// Bytes of memory that a member has in use.
    pub(crate) fn memory(&self, name: &str) -> u64 {
        let process = self.running[name].0.id();
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib << 10
    }

    /// Bytes that a member has written since its start, to files and elsewhere.
    pub(crate) fn written(&self, name: &str) -> u64 {
        let process = self.running[name].0.id();
        let counts = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
        let mut counts = counts.lines();
        let written = counts.find_map(|line| line.strip_prefix("wchar: "));
        written.unwrap().parse().unwrap()
    }

    /// The authority of its certificates.
    pub(crate) fn authority(&self) -> &CertAuthority {
        &self.authority
    }

    /// The names of all members.
    pub(crate) fn names(&self) -> Vec<String> {
        self.members.keys().cloned().collect()
    }

    /// Puts a file in its directory in the place of another, at once.
    pub(crate) fn replace(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Waits until all members have taken new certificates, authorities or lists so many times.
    pub(crate) async fn taken(&self, times: u64) {
        for name in self.members.keys() {
            until(&format!("{name} takes what is new"), async || {
                let taken = "kraken_certificate_reloads_total{result=\"taken\"}";
                (self.counter(name, taken).await? >= times).then_some(())
            })
            .await;
        }
    }

    /// Shows another certificate to the members from now on.
    pub(crate) fn ask_as(&mut self, identity: &Identity) {
        self.http = HttpClient::new(Some(identity)).unwrap();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) {
        self.running.remove(name).expect("it runs").kill();
    }

    /// Starts a member that was killed, on what it left.
    pub(crate) async fn restart(&mut self, name: &str) {
        self.spawn(name);
        self.healthy(name).await;
    }

    /// Waits until the tracker knows so many origins.
    pub(crate) async fn sees_origins(&mut self, count: usize) {
        until("the tracker knows the origins", async || {
            let live = self
                .counter("tracker", "kraken_tracker_live_origins")
                .await?;
            (live == count as u64).then_some(())
        })
        .await;
    }

    /// A number from a member's metrics; `None` when it does not answer.
    pub(crate) async fn counter(&self, member: &str, name: &str) -> Option<u64> {
        let text = self.get(member, "/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    }

    /// The bytes of verified pieces that an agent took since its start.
    pub(crate) async fn fetched(&self, agent: &str) -> Option<u64> {
        let origins = "kraken_piece_bytes_from_origins_total";
        let agents = "kraken_piece_bytes_from_agents_total";
        Some(self.counter(agent, origins).await? + self.counter(agent, agents).await?)
    }

    /// What a member that wants a certificate answers to a JSON document.
    pub(crate) async fn post(&self, member: &str, path: &str, body: &Value) -> String {
        let url = format!("https://{}{path}", self.members[member].addr);
        let request = Request::post(url).header("content-type", "application/json");
        let body = HttpBody::Bytes(body.to_string().into());
        let request = request.body(body).unwrap();
        let patience = Duration::from_secs(60);
        let answer = self.http.send_within(request, patience).await.unwrap();
        let bytes = answer.bytes(1 << 20).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a member says as JSON.
    pub(crate) async fn get_json(&self, member: &str, path: &str) -> Option<Value> {
        serde_json::from_str(&self.get(member, path).await?).ok()
    }

    /// Whether a member says that it is ready, or why it is not.
    pub(crate) async fn readiness(&self, member: &str) -> Result<(), String> {
        let request = Request::get(self.url(member, "/readiness"));
        let request = request.body(HttpBody::Empty).unwrap();
        let answer = self.http.send(request).await.unwrap();
        let status = answer.status();
        let said = answer.bytes(1 << 20).await.unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        if status.is_success() {
            Ok(())
        } else {
            Err(said)
        }
    }

    fn url(&self, member: &str, path: &str) -> String {
        let member = &self.members[member];
        let scheme = if member.is_secure { "https" } else { "http" };
        format!("{scheme}://{}{path}", member.addr)
    }

    async fn get(&self, member: &str, path: &str) -> Option<String> {
        let request = Request::get(self.url(member, path));
        let request = request.body(HttpBody::Empty).unwrap();
        let answer = self.http.ask(request).await.ok()?;
        let bytes = answer.bytes(1 << 20).await.ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn add(&mut self, role: &'static str, name: &str, addr: SocketAddr, mut config: Value) {
        let names = ["127.0.0.1".to_string()];
        let (cert, key) = self.authority.issue(role, &names).unwrap();
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        fs::write(path("crt"), cert).unwrap();
        fs::write(path("key"), key).unwrap();
        config["tls"] = json!({"cert": path("crt"), "key": path("key"), "ca": self.path("ca.crt"), "crl": self.path("ca.crl")});
        // JSON is YAML.
        let file = path("yaml");
        fs::write(&file, config.to_string()).unwrap();
        let is_outside = matches!(role, "agent" | "proxy");
        let member = Member {
            role,
            addr,
            is_secure: !is_outside || config.get("client_tls").is_some(),
            config: file,
        };
        self.members.insert(name.to_string(), member);
    }

    fn spawn(&mut self, name: &str) {
        let member = &self.members[name];
        let config = member.config.to_str().unwrap();
        let arguments = ["run", member.role, "--config", config];
        let (out, err) = (self.path(&format!("{name}.out")), self.log(name));
        let process = Process::spawn(&arguments, &out, &err);
        self.running.insert(name.to_string(), process);
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.err"))
    }

    async fn healthy(&mut self, name: &str) {
        let end = Instant::now() + PROCESS;
        while self.get(name, "/health").await.is_none() {
            let ended = self.running.get_mut(name).and_then(Process::ended);
            let late = Instant::now() > end;
            if ended.is_some() || late {
                let log = fs::read_to_string(self.log(name)).unwrap_or_default();
                panic!("{name} does not answer (its end: {ended:?}); its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
