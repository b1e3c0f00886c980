//! An origin and four build-indexes at loopback, each a process of its own; three are on the list.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use kraken_benches::process::{pause, signal};
use kraken_core::net::CertAuthority;
use kraken_core::net::Identity;
use kraken_core::net::http::{HttpBody, HttpClient};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{Outcome, Role};

/// Build-indexes, of which one is not on the list.
pub(crate) const INDEXES: usize = 4;
/// How long a process may take to end in good order, to know the tags, or a list to stand.
const PATIENCE: Duration = Duration::from_secs(90);

struct Member {
    name: String,
    role: Role,
    addr: SocketAddr,
    child: Option<Child>,
}

/// The processes; they end with this. The build-indexes are the first, the origin is behind them.
pub(crate) struct Cluster {
    dir: PathBuf,
    authority: CertAuthority,
    members: Vec<Member>,
    /// Who is on the list.
    pub(crate) listed: BTreeSet<usize>,
    pub(crate) http: HttpClient,
    /// Processes that ended by themselves, or not when they were asked to.
    pub(crate) bad_ends: usize,
}

impl Cluster {
    /// Starts the origin and the first three build-indexes, and waits until they know the tags.
    pub(crate) async fn start(dir: &Path) -> Outcome<Self> {
        let authority = CertAuthority::create()?;
        fs::write(dir.join("ca.crt"), authority.to_pem().0)?;
        let (cert, key) = authority.issue("operator", &["127.0.0.1".into()])?;
        let identity = Identity::from_pem(&cert, &key, &authority.to_pem().0)?;
        let member = |role: Role, number: usize| Member {
            name: format!("{}-{number}", role.name()),
            role,
            addr: free_addr(number + usize::from(role == Role::Origin) * INDEXES),
            child: None,
        };
        let indexes = (1..=INDEXES).map(|number| member(Role::BuildIndex, number));
        let members = indexes.chain([member(Role::Origin, 1)]).collect();
        let mut cluster = Self {
            dir: dir.to_path_buf(),
            authority,
            members,
            listed: (0..INDEXES - 1).collect(),
            http: HttpClient::new(Some(&identity))?,
            bad_ends: 0,
        };
        for at in 0..cluster.members.len() {
            cluster.certify(at)?;
        }
        cluster.configure(&cluster.listed)?;
        let first = [
            &[INDEXES],
            &cluster.listed.iter().copied().collect::<Vec<_>>()[..],
        ]
        .concat();
        for at in &first {
            cluster.run(*at)?;
        }
        for at in &first {
            cluster.ready(*at).await?;
        }
        Ok(cluster)
    }

    /// Where a member answers.
    pub(crate) fn url(&self, at: usize) -> String {
        format!("https://{}", self.members[at].addr)
    }

    pub(crate) fn origin(&self) -> String {
        self.url(INDEXES)
    }

    fn path(&self, at: usize, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}{suffix}", self.members[at].name))
    }

    fn certify(&self, at: usize) -> Outcome<()> {
        let role = self.members[at].role.name();
        let (cert, key) = self.authority.issue(role, &["127.0.0.1".into()])?;
        fs::write(self.path(at, ".crt"), cert)?;
        Ok(fs::write(self.path(at, ".key"), key)?)
    }

    /// Writes the configurations with this list of build-indexes; who runs has read its own already.
    fn configure(&self, listed: &BTreeSet<usize>) -> Outcome<()> {
        let named = |at: usize| json!({"name": self.members[at].name, "url": self.url(at)});
        let list: Vec<_> = listed.iter().map(|at| named(*at)).collect();
        for (at, member) in self.members.iter().enumerate() {
            let mut config = json!({
                "name": member.name,
                "listen": member.addr,
                "store": self.path(at, ""),
                "origins": [named(INDEXES)],
                "replicas": 1,
                "tls": {
                    "cert": self.path(at, ".crt"), "key": self.path(at, ".key"),
                    "ca": self.dir.join("ca.crt"),
                },
            });
            match member.role {
                Role::Origin => {
                    config["peer_listen"] = json!(free_addr(2 * INDEXES));
                    config["backend"] = json!({"local_disk": self.dir.join("backend")});
                }
                Role::BuildIndex => config["build_indexes"] = json!(list),
            }
            // JSON is YAML.
            fs::write(self.path(at, ".yaml"), config.to_string())?;
        }
        Ok(())
    }

    /// Starts one.
    pub(crate) fn run(&mut self, at: usize) -> Outcome<()> {
        let log = self.path(at, ".log");
        let log = File::options().create(true).append(true).open(log)?;
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
        let child = Command::new(std::env::current_exe()?)
            .args(["--role", self.members[at].role.name(), "--config"])
            .arg(self.path(at, ".yaml"))
            .env("RUST_LOG", level)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.members[at].child = Some(child);
        Ok(())
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
    pub(crate) async fn stop(&mut self, at: usize) -> Outcome<()> {
        let Some(mut child) = self.members[at].child.take() else {
            return Ok(());
        };
        signal(&child, Signal::TERM)?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = child.try_wait()? {
                self.bad_ends += usize::from(!status.success());
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.bad_ends += 1;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn pause(&self, at: usize, is_paused: bool) -> Outcome<()> {
        match &self.members[at].child {
            Some(child) => pause(child, is_paused),
            None => Ok(()),
        }
    }

    /// Removes what one that has ended kept.
    pub(crate) fn wipe(&self, at: usize) -> Outcome<()> {
        Ok(fs::remove_dir_all(self.path(at, ""))?)
    }

    /// Edits the list everywhere; the next start of each goes by it.
    pub(crate) fn list(&mut self, listed: BTreeSet<usize>) -> Outcome<()> {
        self.configure(&listed)?;
        self.listed = listed;
        Ok(())
    }

    /// Waits until one is ready, or says that it can be stopped.
    pub(crate) async fn ready(&self, at: usize) -> Outcome<()> {
        let mut last = String::new();
        let is_ready = async |last: &mut String| {
            let (status, text) = self.ask(at, "/readiness").await?;
            *last = format!("{status}: {text}");
            Ok(status == StatusCode::OK || text.contains("can be stopped"))
        };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let said: Outcome<bool> = is_ready(&mut last).await;
            if said.is_ok_and(|it| it) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        let name = &self.members[at].name;
        Err(format!("{name} does not get ready, see its log; the last it said: {last}").into())
    }

    /// Waits until all on the list say that it stands.
    pub(crate) async fn settled(&self) -> Outcome<()> {
        let names: Vec<_> = self
            .listed
            .iter()
            .map(|at| self.members[*at].name.as_str())
            .collect();
        let until = Instant::now() + PATIENCE;
        for at in &self.listed {
            loop {
                let told = self.ask(*at, "/internal/tags/standing").await;
                let told: Value = serde_json::from_str(&told.map(|it| it.1).unwrap_or_default())
                    .unwrap_or_default();
                let lists = &told["lists"];
                let members = lists["settled"]["members"].as_object();
                let stands = members.is_some_and(|it| it.keys().eq(names.iter().copied()));
                if stands && lists["next"].is_null() {
                    break;
                }
                if Instant::now() > until {
                    return Err(format!("the list {names:?} does not stand: {told}").into());
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn ask(&self, at: usize, path: &str) -> Outcome<(StatusCode, String)> {
        let request = Request::get(format!("{}{path}", self.url(at))).body(HttpBody::Empty)?;
        let asked = async {
            let answer = self.http.send(request).await?;
            let status = answer.status();
            let bytes = answer.bytes(1 << 20).await?;
            Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
        };
        timeout(Duration::from_secs(2), asked).await?
    }

    /// How many processes ended by themselves so far, or did not when they were asked to.
    pub(crate) fn ended(&mut self) -> usize {
        let running = self.members.iter_mut().filter_map(|it| it.child.as_mut());
        let ended = running.filter_map(|child| child.try_wait().ok().flatten());
        self.bad_ends + ended.count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            let _ = self.pause(at, false);
            let _ = self.kill(at);
        }
    }
}

/// An address that nobody has, for TCP and UDP. It lies below the range from which the kernel draws, so that
/// no outgoing connection takes it while the process that it is meant for is dead.
fn free_addr(number: usize) -> SocketAddr {
    let first = std::process::id() as usize * 64 + number * 4;
    let ports = (first..).map(|it| 10_000 + u16::try_from(it % 22_000).unwrap_or_default());
    let addrs = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut free = addrs.filter(|it| TcpListener::bind(it).is_ok() && UdpSocket::bind(it).is_ok());
    free.next()
        .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into())
}
