//! What a tracker costs: memory for each host and blob, and announces per second on one core.
//!
//! `cargo run --release -p kraken-benches --bin tracker -- [--hosts 10000] [--blobs 100] [--json]`
//! measures the machine alone, and then a tracker as a process: over HTTP with mutual TLS, pinned to
//! one core, while hosts on the others announce without a pause.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring tool"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kraken_benches::memory::resident;
use kraken_core::net::http::HttpClient;
use kraken_core::net::{CertAuthority, Identity};
use kraken_core::proto::tracker::handout::{Tracker, TrackerConfig};
use kraken_core::proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, Digest, Namespace, PeerId, PeerInfo, PeerRole,
    Timestamp,
};
use kraken_daemon::{process, tracker};
use serde::Serialize;
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What a tracker costs.
#[derive(Debug, Parser)]
struct Options {
    /// How many hosts.
    #[arg(long, default_value_t = 10_000)]
    hosts: u32,
    /// How many blobs each of them has.
    #[arg(long, default_value_t = 100)]
    blobs: u32,
    /// How long announces are made over HTTP, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// In a child: the tracker's configuration.
    #[arg(long, hide = true)]
    config: Option<std::path::PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Hosts times blobs.
    pairs: u64,
    memory_mib: f64,
    bytes_per_pair: f64,
    /// Of a host that wants one blob, by the machine alone.
    announces_per_second: f64,
    /// The same over HTTP with mutual TLS.
    http_announces_per_second: f64,
    /// What the tracker used of its core meanwhile.
    http_cores: f64,
    /// What it could do if it had a core to itself for as long as it used one.
    http_announces_per_core_second: f64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ran = match &options.config {
        Some(config) => process_of(config),
        None => measure(&options).and_then(|report| {
            match options.json {
                true => println!("{}", serde_json::to_string(&report)?),
                false => println!("{report:#?}"),
            }
            Ok(())
        }),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tracker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn process_of(config: &Path) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(process::run_until_signal(config, tracker::start))?)
}

fn measure(options: &Options) -> Outcome<Report> {
    let before = resident()?;
    let mut machine = Tracker::new(TrackerConfig::default(), 1);
    let mut nanos = 0;
    let mut now = || {
        nanos += 1000;
        Timestamp::from_nanos(nanos)
    };
    let nobody = |_: &Digest| Vec::new();
    for host in 0..options.hosts {
        let request = AnnounceRequest {
            peer: peer(host),
            blobs: (0..options.blobs)
                .map(|it| blob(it, AnnounceState::Seeding))
                .collect(),
        };
        machine.announce(now(), &request, &nobody)?;
    }
    let pairs = u64::from(options.hosts) * u64::from(options.blobs);
    if machine.stats().peers as u64 != pairs {
        return Err("the tracker did not keep all of them".into());
    }
    let memory = (resident()? - before) as f64;
    let began = Instant::now();
    let mut announces = 0_u32;
    while began.elapsed() < Duration::from_secs(3) {
        for _ in 0..1000 {
            let request = AnnounceRequest {
                peer: peer(announces * 7919 % options.hosts),
                blobs: vec![blob(announces % options.blobs, AnnounceState::Leeching)],
            };
            machine.announce(now(), &request, &nobody)?;
            announces += 1;
        }
    }
    let announces_per_second = f64::from(announces) / began.elapsed().as_secs_f64();
    drop(machine);
    let (http, cores) = over_http(options)?;
    Ok(Report {
        pairs,
        memory_mib: memory / f64::from(1 << 20),
        bytes_per_pair: memory / pairs as f64,
        announces_per_second,
        http_announces_per_second: http,
        http_cores: cores,
        http_announces_per_core_second: http / cores,
    })
}

/// A tracker as a child; it ends with this.
struct Served {
    child: Child,
    url: String,
    identity: Identity,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let authority = CertAuthority::create()?;
        let (cert, key) = authority.issue("tracker", &["127.0.0.1".into()])?;
        let ca = authority.to_pem().0;
        let path = |name: &str| dir.path().join(name);
        for (name, text) in [("crt", &cert), ("key", &key), ("ca", &ca)] {
            std::fs::write(path(name), text)?;
        }
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 17_601));
        let config = json!({
            "listen": listen,
            // Nobody is there: agents alone are handed out.
            "origins": [{"name": "origin-1", "url": "https://127.0.0.1:1"}],
            // One client announces for all hosts.
            "tls": {"cert": path("crt"), "key": path("key"), "ca": path("ca"), "roles": "unchecked"},
        });
        std::fs::write(path("yaml"), config.to_string())?;
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(std::env::current_exe()?);
        command
            .arg("--config")
            .arg(path("yaml"))
            .stderr(Stdio::null());
        Ok(Self {
            child: command.spawn()?,
            url: format!("https://{listen}"),
            identity: Identity::from_pem(&cert, &key, &ca)?,
            _dir: dir,
        })
    }

    /// What it has used, in seconds of a core.
    fn used(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || -> Outcome<f64> { Ok(fields.next().ok_or("no time")?.parse()?) };
        Ok((ticks()? + ticks()?) / 100.0)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hosts that announce at once.
const AT_ONCE: usize = 64;

/// Announces per second, and the cores that the tracker used.
fn over_http(options: &Options) -> Outcome<(f64, f64)> {
    let served = Served::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let (hosts, blobs) = (options.hosts, options.blobs);
    runtime.block_on(async {
        let client = HttpClient::new(Some(&served.identity))?;
        let tracker = kraken_core::net::announce::TrackerClient::new([&served.url], client)?;
        let announce = async |number: u32| {
            use kraken_core::net::Discovery as _;
            let request = AnnounceRequest {
                peer: peer(number % hosts),
                blobs: vec![blob(number % blobs, AnnounceState::Leeching)],
            };
            tracker.announce(request).await
        };
        for _ in 0..100 {
            if announce(0).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        announce(0).await?;
        let (count, goes_on) = (Arc::new(AtomicU64::new(0)), AtomicBool::new(true));
        let (began, used) = (Instant::now(), served.used()?);
        let hosts = (0..AT_ONCE as u32).map(async |first| {
            let mut number = first;
            while goes_on.load(Ordering::Relaxed) {
                announce(number).await?;
                number = number.wrapping_add(AT_ONCE as u32);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Ok(())
        });
        let end = async {
            tokio::time::sleep(Duration::from_secs(options.seconds)).await;
            goes_on.store(false, Ordering::Relaxed);
            Outcome::Ok(())
        };
        tokio::try_join!(futures::future::try_join_all(hosts), end)?;
        let took = began.elapsed().as_secs_f64();
        let cores = (served.used()? - used) / took;
        Ok((count.load(Ordering::Relaxed) as f64 / took, cores))
    })
}

fn peer(number: u32) -> PeerInfo {
    let [a, b, c, d] = number.to_be_bytes();
    PeerInfo {
        id: PeerId::from_bytes(*Digest::of(&number.to_be_bytes()).as_bytes()),
        addr: SocketAddr::from(([10, b.max(a), c, d], 7610)),
        role: PeerRole::Agent,
        zone: None,
    }
}

fn blob(number: u32, state: AnnounceState) -> AnnounceBlob {
    AnnounceBlob {
        namespace: Namespace::default(),
        digest: Digest::of(&number.to_be_bytes()),
        state,
        links: 3,
        progress: None,
        needy: false,
    }
}
