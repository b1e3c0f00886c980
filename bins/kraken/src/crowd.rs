//! Hosts that are not there, to look at the console with more of them than one has: they announce and
//! report to a real tracker as agents do, and what they move is made up.
//!
//! A host gets bytes from those that the tracker handed out to it, within what each of them can send, and
//! the less the less they have that it lacks. When all hosts have a blob, the next one begins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use kraken_core::net::announce::TrackerApi as _;
use kraken_core::net::http::{HttpClient, HttpServer, serve, with_health};
use kraken_core::net::origin::OriginCluster;
use kraken_core::origin::RingMember;
use kraken_core::proto::rng::Rng;
use kraken_core::proto::tracker::report::{BlobReport, HostReport, Source, Traffic};
use kraken_core::proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, PeerId, PeerInfo, PeerRole, Progress,
};
use kraken_core::{Digest, Namespace, Tracker};
use kraken_daemon::StartError;
use kraken_daemon::console::{self, ConsoleConfig, Shown};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Failure;

/// The most hosts.
pub const MOST: u32 = 16_000;
/// How many origins there are.
const ORIGINS: u32 = 3;
/// The length of each blob, and its pieces.
const LENGTH: u64 = 4 << 30;
const PIECES: u32 = 1024;
/// What a host can send and receive, and what an origin can send, in bytes per second.
const HOST_RATE: u64 = 150 << 20;
const ORIGIN_RATE: u64 = 400 << 20;
/// Hosts in a zone.
const RACK: u32 = 250;
/// Whom a host takes pieces from at a time, and of whom it tells.
const LINKS: usize = 8;
const TOLD: usize = 24;
/// The time between two steps.
const STEP: Duration = Duration::from_millis(500);
/// Hosts ask for a blob within so many steps.
const ARRIVAL: usize = 40;
/// How many steps all hosts rest when they have a blob.
const REST: u32 = 40;

/// A tracker with a console, and hosts that are not there.
#[derive(Debug)]
pub struct Crowd {
    tracker: Tracker,
    pages: HttpServer,
    origins: Vec<HttpServer>,
    shutdown: CancellationToken,
}

impl Crowd {
    /// Starts so many hosts, with a console at `listen`.
    ///
    /// # Errors
    /// [`Failure`] says what to mend.
    pub fn start(hosts: u32, listen: SocketAddr) -> Result<Self, Failure> {
        if hosts == 0 || hosts > MOST {
            return Err(Failure::Argument(format!(
                "--simulate: between 1 and {MOST}, not {hosts}"
            )));
        }
        let shutdown = CancellationToken::new();
        let origins: Vec<_> = (0..ORIGINS)
            .map(|number| origin(number, &shutdown))
            .collect::<Result<_, _>>()?;
        let ring = origins.iter().enumerate().map(|(number, server)| {
            let url = format!("http://{}", server.local_addr());
            RingMember::new(
                format!("origin-{}", number + 1),
                url.parse().expect("a URL"),
            )
        });
        let http = HttpClient::new(None).map_err(StartError::from)?;
        let cluster = OriginCluster::new(ring, http.clone(), 2);
        let tracker = Tracker::builder(cluster.clone())
            .takes_reports(true)
            .spawn();
        let shown = Shown {
            look: tracker.look().expect("it takes reports"),
            origins: cluster,
            http,
        };
        let pages = console::start(ConsoleConfig::new(listen), shown, shutdown.clone())?;
        let living = Life::new(hosts, tracker.clone()).run();
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(living));
        Ok(Self {
            tracker,
            pages,
            origins,
            shutdown,
        })
    }

    /// Where the console answers.
    pub fn console(&self) -> SocketAddr {
        self.pages.local_addr()
    }

    /// Ends it.
    pub async fn stop(self) {
        self.shutdown.cancel();
        for server in self.origins.into_iter().chain([self.pages]) {
            if let Err(error) = server.stopped().await {
                tracing::warn!(%error, "a server did not end well");
            }
        }
        self.tracker.shutdown().await;
    }
}

/// An origin that answers the tracker's questions, and has no blob.
fn origin(number: u32, shutdown: &CancellationToken) -> Result<HttpServer, Failure> {
    let peer = peer(MOST + number, PeerRole::Origin);
    let router = Router::new().route("/internal/peercontext", get(async move || Json(peer)));
    let router = with_health(router, || async { Ok(()) });
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = serve(any, router, None, shutdown.clone()).map_err(StartError::from)?;
    Ok(server)
}

fn peer(number: u32, role: PeerRole) -> PeerInfo {
    let [_, a, b, c] = number.to_be_bytes();
    let zone = match role {
        PeerRole::Agent => format!("rack-{:02}", number / RACK + 1).parse().ok(),
        PeerRole::Origin => None,
    };
    PeerInfo {
        id: PeerId::from_bytes(*Digest::of(&number.to_be_bytes()).as_bytes()),
        addr: SocketAddr::from(([10, a, b, c], 7600)),
        role,
        zone,
    }
}

/// A host that is not there.
struct Host {
    info: PeerInfo,
    /// The step at which it asks for the blob.
    starts: usize,
    /// Bytes that it has.
    have: u64,
    links: Vec<u32>,
    from: BTreeMap<u32, u64>,
    /// What it moved since its start, and of this blob.
    total: Traffic,
    moved: Traffic,
    /// What it can still send in this step.
    up: u64,
    announces: Instant,
    reports: Instant,
}

/// All hosts; behind them the origins, which have everything.
struct Life {
    tracker: Tracker,
    hosts: Vec<Host>,
    agents: usize,
    numbers: BTreeMap<PeerId, u32>,
    rng: Rng,
    blob: Digest,
    round: u32,
    step: usize,
    resting: u32,
}

impl Life {
    fn new(agents: u32, tracker: Tracker) -> Self {
        let numbers = (0..agents).map(|it| (it, PeerRole::Agent));
        let numbers = numbers.chain((0..ORIGINS).map(|it| (MOST + it, PeerRole::Origin)));
        let now = Instant::now();
        let host = |(number, role)| Host {
            info: peer(number, role),
            starts: 0,
            have: 0,
            links: Vec::new(),
            from: BTreeMap::new(),
            total: Traffic::default(),
            moved: Traffic::default(),
            up: 0,
            announces: now,
            reports: now,
        };
        let hosts: Vec<_> = numbers.map(host).collect();
        let by_id = hosts.iter().map(|host| host.info.id);
        let mut life = Self {
            tracker,
            numbers: by_id.zip(0..).collect(),
            agents: agents as usize,
            hosts,
            rng: Rng::seeded(1),
            blob: Digest::of(b"made up"),
            round: 0,
            step: 0,
            resting: 0,
        };
        life.begin();
        life
    }

    async fn run(mut self) {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.move_bytes();
            for number in 0..self.agents {
                self.talk(number).await;
            }
            self.step += 1;
            let all = self.hosts.iter().all(|host| host.have == LENGTH);
            self.resting += u32::from(all);
            if self.resting > REST {
                self.begin();
            }
        }
    }

    /// The next blob: nobody has it but the origins.
    fn begin(&mut self) {
        self.round += 1;
        self.blob = Digest::of(format!("made up, number {}", self.round).as_bytes());
        (self.step, self.resting) = (0, 0);
        for host in &mut self.hosts {
            let is_origin = host.info.role == PeerRole::Origin;
            host.have = if is_origin { LENGTH } else { 0 };
            host.starts = self.rng.below(ARRIVAL);
            host.moved = Traffic::default();
            host.links.clear();
            host.from.clear();
            host.announces = Instant::now();
        }
    }

    /// One step: each host takes from its links what it lacks and they can give.
    fn move_bytes(&mut self) {
        let a_step = |rate: u64| rate * STEP.as_millis() as u64 / 1000;
        for host in &mut self.hosts {
            host.up = match host.info.role {
                PeerRole::Agent => a_step(HOST_RATE),
                PeerRole::Origin => a_step(ORIGIN_RATE),
            };
        }
        let first = self.rng.below(self.agents);
        for turn in 0..self.agents {
            let to = (first + turn) % self.agents;
            let mut down = a_step(HOST_RATE) * (50 + self.rng.below(50) as u64) / 100;
            let links = std::mem::take(&mut self.hosts[to].links);
            for from in &links {
                let part = down / 2;
                down -= self.pass(*from as usize, to, part);
            }
            self.hosts[to].links = links;
        }
    }

    /// Passes at most so many bytes on, and says how many.
    fn pass(&mut self, from: usize, to: usize, most: u64) -> u64 {
        let (source, host) = (&self.hosts[from], &self.hosts[to]);
        let lacks = LENGTH - host.have;
        // Of what the source has, as much is new to the host as the host lacks of the whole.
        let news = u128::from(source.have) * u128::from(lacks) / u128::from(LENGTH);
        let news = u64::try_from(news).unwrap_or(u64::MAX);
        let bytes = most.min(source.up).min(news.max(1 << 20)).min(lacks);
        if bytes == 0 || source.have == 0 {
            return 0;
        }
        let is_origin = source.info.role == PeerRole::Origin;
        let got = match is_origin {
            true => traffic(bytes, 0, 0),
            false => traffic(0, bytes, 0),
        };
        let source = &mut self.hosts[from];
        source.up -= bytes;
        source.moved = source.moved + traffic(0, 0, bytes);
        source.total = source.total + traffic(0, 0, bytes);
        let host = &mut self.hosts[to];
        host.have += bytes;
        (host.moved, host.total) = (host.moved + got, host.total + got);
        *host
            .from
            .entry(u32::try_from(from).expect("few hosts"))
            .or_default() += bytes;
        if host.have == LENGTH {
            host.announces = Instant::now();
        }
        bytes
    }

    /// Announces and reports, when it is time.
    async fn talk(&mut self, number: usize) {
        let now = Instant::now();
        let host = &self.hosts[number];
        if host.starts > self.step {
            return;
        }
        if host.announces <= now {
            let request = self.announce(number);
            if let Ok(reply) = self.tracker.announce(request).await {
                let host = &mut self.hosts[number];
                host.announces = now + Duration::from_millis(reply.interval_ms);
                let handed = reply.handouts.iter().flat_map(|handout| &handout.peers);
                let new = handed.filter_map(|peer| self.numbers.get(&peer.id).copied());
                host.links.extend(new);
                host.links.dedup();
                let surplus = host.links.len().saturating_sub(LINKS);
                host.links.drain(..surplus);
            }
        }
        if self.hosts[number].reports <= now {
            let report = self.report(number);
            if let Ok(reply) = self.tracker.report(report).await {
                self.hosts[number].reports = now + Duration::from_millis(reply.next_ms);
            }
        }
    }

    fn announce(&self, number: usize) -> AnnounceRequest {
        let host = &self.hosts[number];
        let is_done = host.have == LENGTH;
        let blob = AnnounceBlob {
            namespace: Namespace::default(),
            digest: self.blob,
            state: match is_done {
                true => AnnounceState::Seeding,
                false => AnnounceState::Leeching,
            },
            links: u32::try_from(host.links.len()).unwrap_or(u32::MAX),
            progress: Some(Progress {
                have: pieces(host.have),
                of: PIECES,
            }),
            needy: false,
        };
        AnnounceRequest {
            peer: host.info.clone(),
            blobs: vec![blob],
        }
    }

    fn report(&self, number: usize) -> HostReport {
        let host = &self.hosts[number];
        let source = |(from, bytes): (&u32, &u64)| Source {
            id: self.hosts[*from as usize].info.id,
            role: self.hosts[*from as usize].info.role,
            bytes: *bytes,
        };
        let mut sources: Vec<_> = host.from.iter().map(source).collect();
        sources.sort_by_key(|source| std::cmp::Reverse(source.bytes));
        sources.truncate(TOLD);
        HostReport {
            peer: host.info.clone(),
            name: format!("host-{:05}", number + 1),
            version: env!("CARGO_PKG_VERSION").to_string(),
            moved: host.total,
            blobs: vec![BlobReport {
                namespace: "made-up/weights".parse().expect("a namespace"),
                digest: self.blob,
                length: LENGTH,
                have: pieces(host.have),
                of: PIECES,
                moved: host.moved,
                sources,
            }],
        }
    }
}

fn traffic(from_origins: u64, from_agents: u64, sent: u64) -> Traffic {
    Traffic {
        from_origins,
        from_agents,
        sent,
    }
}

fn pieces(bytes: u64) -> u32 {
    u32::try_from(bytes * u64::from(PIECES) / LENGTH).unwrap_or(PIECES)
}
