//! Every process of a cluster at a host of its own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kraken_benches::process::{pause, signal};
use kraken_core::Digest;
use kraken_core::net::CertAuthority;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::net::{Net, addr};
use crate::{Outcome, faults};

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Role {
    Origin,
    Tracker,
    BuildIndex,
    Proxy,
    Agent,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Tracker => "tracker",
            Self::BuildIndex => "build-index",
            Self::Proxy => "proxy",
            Self::Agent => "agent",
        }
    }
}

/// How many there are of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) origins: usize,
    pub(crate) trackers: usize,
    pub(crate) build_indexes: usize,
    pub(crate) proxies: usize,
    pub(crate) agents: usize,
    /// What an agent may keep.
    pub(crate) agent_store: &'static str,
    /// The last origin is not among the others at first.
    pub(crate) joins_later: bool,
}

/// One process.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The host that it is at.
    pub(crate) host: usize,
    store: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// The socket of its HTTP, where a supervisor keeps that open over restarts.
    socket: Option<TcpListener>,
}

impl Member {
    /// The length of a blob that an origin or an agent has whole on its disk.
    pub(crate) fn blob_bytes(&self, digest: Digest) -> Option<u64> {
        let hex = digest.hex();
        let sealed = match self.role {
            Role::Origin => "blobs/sealed",
            _ => "sealed",
        };
        let path = self.store.join(sealed).join(&hex[..2]).join(&hex);
        fs::metadata(path).ok().map(|it| it.len())
    }

    /// Whether it answers without TLS.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.role, Role::Proxy | Role::Agent)
    }

    /// `host:port` of its HTTP.
    pub(crate) fn http(&self) -> String {
        format!("{}:7600", addr(self.host))
    }
}

/// A cluster; it ends with this.
pub(crate) struct Cluster {
    pub(crate) net: Net,
    pub(crate) members: Vec<Member>,
    /// Where everything is kept.
    pub(crate) dir: PathBuf,
    sizes: Sizes,
    bad_ends: usize,
}

/// How long a process may take to end in good order.
const STOP: Duration = Duration::from_secs(30);

impl Cluster {
    /// Writes the configurations; nothing runs yet. The last host is for whoever uses the cluster.
    pub(crate) fn new(dir: &Path, sizes: Sizes) -> Outcome<Self> {
        let kinds = [
            (Role::Origin, sizes.origins),
            (Role::Tracker, sizes.trackers),
            (Role::BuildIndex, sizes.build_indexes),
            (Role::Proxy, sizes.proxies),
            (Role::Agent, sizes.agents),
        ];
        let mut members = Vec::new();
        for (role, count) in kinds {
            for number in 1..=count {
                let name = format!("{}-{number}", role.name());
                members.push(Member {
                    role,
                    host: members.len() + 1,
                    store: dir.join(&name),
                    config: dir.join(format!("{name}.yaml")),
                    log: dir.join(format!("{name}.log")),
                    name,
                    child: None,
                    socket: None,
                });
            }
        }
        let net = Net::new(members.len() + 1)?;
        let cluster = Self {
            net,
            members,
            dir: dir.to_path_buf(),
            sizes,
            bad_ends: 0,
        };
        cluster.configure(dir)?;
        cluster.list_origins(sizes.origins - usize::from(sizes.joins_later))?;
        Ok(cluster)
    }

    /// The host from which the cluster is used.
    pub(crate) fn outside(&self) -> usize {
        self.members.len() + 1
    }

    fn of(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.role == role)
    }

    /// The members that run from the start.
    pub(crate) fn first(&self) -> Vec<usize> {
        let late = self.sizes.joins_later.then(|| self.sizes.origins - 1);
        let all = 0..self.members.len();
        all.filter(|at| late != Some(*at)).collect()
    }

    /// Keeps the sockets that users of the cluster connect to, as systemd does for a service with a
    /// unit for its socket.
    pub(crate) fn keep_sockets(&mut self) -> Outcome<()> {
        let net = &self.net;
        for member in self.members.iter_mut().filter(|it| it.is_plain()) {
            let addr = member.http();
            let host = member.host;
            let bound = std::thread::scope(|scope| {
                let bind = || {
                    net.enter(host).map_err(|error| error.to_string())?;
                    TcpListener::bind(addr).map_err(|error| error.to_string())
                };
                scope.spawn(bind).join()
            });
            let bound = bound.map_err(|_| "a socket cannot be opened")?;
            member.socket = Some(bound?);
        }
        Ok(())
    }

    /// Lets the first origins be the ring.
    pub(crate) fn list_origins(&self, count: usize) -> Outcome<()> {
        let origins = self.of(Role::Origin).take(count);
        let list: Vec<_> = origins
            .map(|it| json!({"name": it.name, "url": format!("https://{}", it.http())}))
            .collect();
        // Whoever reads it while it is written finds what was there before.
        let beside = self.dir.join("origins.new");
        fs::write(&beside, json!(list).to_string())?;
        Ok(fs::rename(beside, self.dir.join("origins.yaml"))?)
    }

    fn configure(&self, dir: &Path) -> Outcome<()> {
        let authority = CertAuthority::create()?;
        let ca = dir.join("ca.crt");
        fs::write(&ca, authority.to_pem().0)?;
        let url = |member: &Member| format!("https://{}", member.http());
        let named = |it: &Member| json!({"name": it.name, "url": url(it)});
        let indexes: Vec<_> = self.of(Role::BuildIndex).map(named).collect();
        let urls = |role| self.of(role).map(url).collect::<Vec<_>>();
        for member in &self.members {
            let (cert, key) = authority.issue(member.role.name(), &[addr(member.host)])?;
            let path = |suffix: &str| dir.join(format!("{}.{suffix}", member.name));
            fs::write(path("crt"), cert)?;
            fs::write(path("key"), key)?;
            let mut config = json!({
                "tls": {"cert": path("crt"), "key": path("key"), "ca": ca},
            });
            let peers = format!("{}:7610", addr(member.host));
            let mut set = |key: &str, value: Value| config[key] = value;
            match member.role {
                Role::Origin => {
                    set("name", json!(member.name));
                    set("store", json!(member.store));
                    set("backend", json!({"local_disk": dir.join("backend")}));
                    set("peer_listen", json!(peers));
                    set("heal", json!({"after": "10s"}));
                }
                Role::Agent => {
                    set("store", json!(member.store));
                    set("store_limit", json!(self.sizes.agent_store));
                    set("peer_listen", json!(peers));
                    set("registry_listen", json!(member.http()));
                    set("trackers", json!(urls(Role::Tracker)));
                    set("build_indexes", json!(urls(Role::BuildIndex)));
                }
                Role::BuildIndex => {
                    set("store", json!(member.store));
                    set("name", json!(member.name));
                    set("build_indexes", json!(indexes));
                }
                Role::Proxy => set("build_indexes", json!(urls(Role::BuildIndex))),
                Role::Tracker => {}
            }
            if member.is_plain() {
                // Its users are at another host.
                set(
                    "access",
                    json!({"rules": [{"may": ["pull", "push", "delete"]}]}),
                );
            }
            if member.role != Role::Agent {
                set("listen", json!(member.http()));
                set("origins_file", json!(dir.join("origins.yaml")));
                set("replicas", json!(3));
            }
            // JSON is YAML.
            fs::write(&member.config, config.to_string())?;
        }
        Ok(())
    }

    pub(crate) fn start(&mut self, at: usize) -> Outcome<()> {
        let member = &self.members[at];
        let log = File::options()
            .create(true)
            .append(true)
            .open(&member.log)?;
        let program = std::env::current_exe()?;
        let mut command = self.net.at(member.host, program);
        let mut stdin = Stdio::null();
        if let Some(socket) = &member.socket {
            command = handed_over(&command);
            stdin = OwnedFd::from(socket.try_clone()?).into();
        }
        command
            .arg("--role")
            .arg(member.role.name())
            .arg("--config")
            .arg(&member.config);
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
        if let Some(library) = faults::clock_library() {
            let clock = self.clock(at);
            fs::write(&clock, "+0")?;
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command
            .env("RUST_LOG", level)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.members[at].child = Some(child);
        Ok(())
    }

    /// Where it is said how wrong the clock of a process is.
    fn clock(&self, at: usize) -> PathBuf {
        self.dir.join(format!("{}.clock", self.members[at].name))
    }

    /// Lets the clock of a process go wrong by so many seconds, within one.
    pub(crate) fn set_clock(&self, at: usize, seconds: i64) -> Outcome<()> {
        Ok(fs::write(self.clock(at), format!("{seconds:+}"))?)
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self, at: usize) -> Outcome<()> {
        if let Some(mut child) = self.members[at].child.take() {
            self.bad_ends += usize::from(child.try_wait()?.is_some());
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and its end, which is to be a good one.
    pub(crate) fn stop(&mut self, at: usize) -> Outcome<()> {
        let Some(mut child) = self.members[at].child.take() else {
            return Ok(());
        };
        signal(&child, Signal::TERM)?;
        let until = Instant::now() + STOP;
        loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => break,
                None if Instant::now() > until => {
                    child.kill()?;
                    child.wait()?;
                    break;
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.bad_ends += 1;
        Ok(())
    }

    /// How many processes ended by themselves so far, or did not when they were asked to.
    pub(crate) fn ended(&mut self) -> usize {
        let running = self.members.iter_mut().filter_map(|it| it.child.as_mut());
        let ended = running.filter_map(|child| child.try_wait().ok().flatten());
        self.bad_ends + ended.count()
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn pause(&self, at: usize, is_paused: bool) -> Outcome<()> {
        match &self.members[at].child {
            Some(child) => pause(child, is_paused),
            None => Ok(()),
        }
    }

    /// Removes what a process that has ended kept.
    pub(crate) fn wipe(&self, at: usize) -> Outcome<()> {
        Ok(fs::remove_dir_all(&self.members[at].store)?)
    }
}

/// The same command, which gets what is its standard input as a socket of sd_listen_fds(3).
fn handed_over(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 0</dev/null";
    shell.args(["-c", script, "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

// nsenter replaces itself with the program: its id is the program's.
impl Drop for Cluster {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            let _ = self.pause(at, false);
            let _ = self.kill(at);
        }
    }
}
