//! A cluster on this host: origins and build-indexes, each a process, and the relays by which other
//! clusters reach them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, PoisonError};

use kraken_core::net::http::HttpClient;
use kraken_core::net::origin::{OriginCluster, RingMember};
use kraken_core::net::{CertAuthority, Identity};
use kraken_registry::tags::client::TagClient;
use serde_json::{Value, json};

use crate::Outcome;
use crate::relay::{Gate, Relay};
use crate::topology::{Direction, Rule};

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Role {
    Origin,
    BuildIndex,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::BuildIndex => "build-index",
        }
    }
}

/// How many origins and build-indexes a cluster has; each of them has a copy of everything.
const EACH: usize = 3;

/// One process.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) http: SocketAddr,
    peers: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    store: PathBuf,
    relay: Arc<Relay>,
    child: Option<Child>,
}

impl Member {
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.http)
    }

    /// The same, as other clusters are told it.
    fn url_outside(&self) -> String {
        format!("https://{}", self.relay.listens)
    }
}

/// A cluster; its processes end with it.
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) members: Vec<Member>,
    pub(crate) gate: Gate,
    /// Processes that ended by themselves.
    bad_ends: usize,
}

/// Ports that are free: below those that the system gives to whoever connects, as one may be taken
/// while its process is dead.
pub(crate) struct Ports(std::ops::Range<u16>);

impl Ports {
    pub(crate) fn new() -> Self {
        let spread = u16::try_from(std::process::id() % 100).unwrap_or_default();
        Self(12_000 + spread * 150..32_000)
    }

    fn next(&mut self) -> Outcome<SocketAddr> {
        let free = self.0.find(|port| {
            let addr = (Ipv4Addr::LOCALHOST, *port);
            TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok()
        });
        let port = free.ok_or("no port is free")?;
        Ok((Ipv4Addr::LOCALHOST, port).into())
    }
}

impl Cluster {
    /// Finds places for all of it; nothing runs yet.
    pub(crate) async fn new(name: &'static str, dir: &Path, ports: &mut Ports) -> Outcome<Self> {
        let gate = Gate::new();
        let mut members = Vec::new();
        for role in [Role::Origin, Role::BuildIndex] {
            for number in 1..=EACH {
                let name = format!("{name}-{}-{number}", role.name());
                let http = ports.next()?;
                members.push(Member {
                    role,
                    http,
                    peers: ports.next()?,
                    config: dir.join(format!("{name}.yaml")),
                    log: dir.join(format!("{name}.log")),
                    store: dir.join(&name),
                    relay: Relay::start(http, gate.clone()).await?,
                    name,
                    child: None,
                });
            }
        }
        Ok(Self {
            name,
            members,
            gate,
            bad_ends: 0,
        })
    }

    pub(crate) fn of(&self, role: Role) -> impl Iterator<Item = &Member> {
        let members = self.members.iter();
        members.filter(move |member| member.role == role)
    }

    /// Where other clusters reach the build-indexes.
    pub(crate) fn indexes_outside(&self) -> Vec<String> {
        self.of(Role::BuildIndex).map(Member::url_outside).collect()
    }

    /// Bytes that other clusters have sent to the origins.
    pub(crate) fn received(&self) -> u64 {
        self.of(Role::Origin).map(|it| it.relay.received()).sum()
    }

    /// Bytes that other clusters have fetched from the origins.
    pub(crate) fn given(&self) -> u64 {
        self.of(Role::Origin).map(|it| it.relay.given()).sum()
    }

    /// Writes the configurations. `copies` are the keys of build-indexes that say what is copied.
    pub(crate) fn configure(
        &self,
        dir: &Path,
        authority: &CertAuthority,
        copies: &Value,
    ) -> Outcome<()> {
        let named = |it: &Member, url: String| json!({"name": it.name, "url": url});
        let origins = self.of(Role::Origin);
        let direct: Vec<_> = origins.map(|it| named(it, it.url())).collect();
        let origins = self.of(Role::Origin);
        let relayed: Vec<_> = origins.map(|it| named(it, it.url_outside())).collect();
        let indexes = self.of(Role::BuildIndex);
        let indexes: Vec<_> = indexes.map(|it| named(it, it.url())).collect();
        for member in &self.members {
            let host = [Ipv4Addr::LOCALHOST.to_string()];
            let (cert, key) = authority.issue(member.role.name(), &host)?;
            let path = |suffix: &str| dir.join(format!("{}.{suffix}", member.name));
            fs::write(path("crt"), cert)?;
            fs::write(path("key"), key)?;
            let mut config = json!({
                "tls": {"cert": path("crt"), "key": path("key"), "ca": dir.join("ca.crt")},
                "name": member.name,
                "store": member.store,
                "listen": member.http,
                "replicas": EACH,
            });
            let mut set = |key: &str, value: Value| config[key] = value;
            match member.role {
                Role::Origin => {
                    set("peer_listen", json!(member.peers));
                    set("origins", json!(direct));
                    let backend = dir.join(format!("{}-backend", self.name));
                    set("backend", json!({"local_disk": backend}));
                }
                Role::BuildIndex => {
                    set("origins", json!(relayed));
                    set("build_indexes", json!(indexes));
                    set("cluster", json!(self.name));
                    for (key, clusters) in copies.as_object().into_iter().flatten() {
                        set(key, clusters.clone());
                    }
                }
            }
            // JSON is YAML.
            fs::write(&member.config, config.to_string())?;
        }
        Ok(())
    }

    pub(crate) fn start(&mut self, at: usize) -> Outcome<()> {
        let member = &mut self.members[at];
        let log = File::options();
        let log = log.clone().create(true).append(true).open(&member.log)?;
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
        let child = Command::new(std::env::current_exe()?)
            .arg("--role")
            .arg(member.role.name())
            .arg("--config")
            .arg(&member.config)
            .env("RUST_LOG", level)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        member.child = Some(child);
        self.tell_own();
        Ok(())
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self, at: usize) -> Outcome<()> {
        if let Some(mut child) = self.members[at].child.take() {
            self.bad_ends += usize::from(child.try_wait()?.is_some());
            child.kill()?;
            child.wait()?;
        }
        self.tell_own();
        Ok(())
    }

    /// How many processes ended by themselves so far.
    pub(crate) fn ended(&mut self) -> usize {
        let running = self.members.iter_mut().filter_map(|it| it.child.as_mut());
        let ended = running.filter_map(|child| child.try_wait().ok().flatten());
        self.bad_ends + ended.count()
    }

    fn tell_own(&self) {
        let indexes = self.of(Role::BuildIndex).filter_map(|it| it.child.as_ref());
        let own = indexes.map(Child::id).collect();
        *self.gate.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// A client of this cluster, past the relays.
    pub(crate) fn client(&self, http: &HttpClient) -> Outcome<Client> {
        let mut origins = Vec::new();
        for member in self.of(Role::Origin) {
            origins.push(RingMember::new(&member.name, member.url().parse()?));
        }
        let origins = OriginCluster::new(origins, http.clone(), EACH);
        let watched = origins.clone();
        tokio::spawn(async move { watched.watch().await });
        let indexes: Vec<_> = self.of(Role::BuildIndex).map(Member::url).collect();
        Ok(Client {
            name: self.name,
            origins,
            tags: TagClient::new(http.raw(), indexes.clone()),
            indexes,
            http: http.clone(),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            let _ = self.kill(at);
        }
    }
}

/// Who pushes to a cluster and looks at it, as its proxies do.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) origins: OriginCluster,
    pub(crate) tags: TagClient,
    pub(crate) indexes: Vec<String>,
    pub(crate) http: HttpClient,
}

/// Makes an authority for all clusters, and a client that it knows.
pub(crate) fn authority(dir: &Path) -> Outcome<(CertAuthority, HttpClient)> {
    let authority = CertAuthority::create()?;
    let ca = authority.to_pem().0;
    fs::write(dir.join("ca.crt"), &ca)?;
    let (cert, key) = authority.issue("proxy", &[Ipv4Addr::LOCALHOST.to_string()])?;
    let identity = Identity::from_pem(&cert, &key, &ca)?;
    Ok((authority, HttpClient::new(Some(&identity))?))
}

/// How images get from one cluster to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copying<'a> {
    pub(crate) rules: &'a [Rule],
    pub(crate) direction: Direction,
    /// Bytes a second, in the words of the configuration.
    pub(crate) limit: Option<&'a str>,
}

impl Copying<'_> {
    /// What a cluster's build-indexes are told of the others.
    pub(crate) fn keys(&self, clusters: &[Cluster], at: usize) -> Value {
        let tags = |rule: &Rule| json!([format!("^{}", rule.prefix)]);
        let leaving = self.rules.iter().filter(|rule| rule.from == at);
        let coming = self.rules.iter().filter(|rule| rule.to == at);
        match self.direction {
            Direction::Sent => {
                let remotes = leaving.map(|rule| {
                    let to = &clusters[rule.to];
                    let indexes = to.indexes_outside();
                    self.limited(
                        json!({"name": to.name, "build_indexes": indexes, "tags": tags(rule)}),
                    )
                });
                json!({"remotes": remotes.collect::<Value>()})
            }
            Direction::Fetched => {
                let remotes = leaving.map(|rule| {
                    let name = clusters[rule.to].name;
                    json!({"name": name, "fetches": true, "tags": tags(rule)})
                });
                let sources = coming.map(|rule| {
                    let from = &clusters[rule.from];
                    let name = format!("from-{}", from.name);
                    self.limited(json!({"name": name, "build_indexes": from.indexes_outside()}))
                });
                let (remotes, sources): (Value, Value) = (remotes.collect(), sources.collect());
                json!({"remotes": remotes, "sources": sources})
            }
        }
    }

    /// Bytes that went from cluster to cluster so far, with TLS and HTTP around them.
    pub(crate) fn copied(&self, clusters: &[Cluster]) -> u64 {
        match self.direction {
            // The first cluster has all from the start.
            Direction::Sent => clusters.iter().skip(1).map(Cluster::received).sum(),
            Direction::Fetched => clusters.iter().map(Cluster::given).sum(),
        }
    }

    fn limited(&self, mut way: Value) -> Value {
        if let Some(limit) = self.limit {
            way["limit"] = json!(limit);
        }
        way
    }
}
