//! What is simulated.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use kraken_proto::tracker::handout::TrackerConfig;
use kraken_proto::{Config, PieceLength};

/// One simulated cluster: hosts, blobs, network and faults. Equal plans give equal reports.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the report calls it.
    pub name: String,
    /// All chance comes from here.
    pub seed: u64,
    /// Hosts that want blobs.
    pub agents: usize,
    /// Seeders.
    pub origins: usize,
    /// On how many of the origins each blob is.
    pub owners: usize,
    /// Trackers; each blob belongs to one of them.
    pub trackers: usize,
    /// What there is to pull.
    pub blobs: Vec<Blob>,
    /// When the agents start.
    pub arrival: Arrival,
    /// What lies between the hosts.
    pub network: Network,
    /// Whether each agent has a reader that goes through every blob from its first byte.
    pub readers: bool,
    /// How many agents each agent knows of from earlier pulls, beside the origins; with 0 it knows
    /// nobody but the trackers.
    pub known_peers: usize,
    /// Whether agents must ask peers what a blob consists of before they can begin, as when neither
    /// trackers nor origins tell; otherwise they know.
    pub metainfo_from_peers: bool,
    /// How the agents behave.
    pub agent: Config,
    /// How the origins behave.
    pub origin: Config,
    /// How the trackers behave.
    pub tracker: TrackerConfig,
    /// What goes wrong.
    pub faults: Faults,
    /// How long after the last host has finished the swarm may settle.
    pub settle: Duration,
    /// The run ends now at the latest.
    pub limit: Duration,
}

/// One blob, and who pulls it when.
#[derive(Debug, Clone, PartialEq)]
pub struct Blob {
    /// Its length in bytes.
    pub length: u64,
    /// The distance of its piece boundaries; by default what the product chooses for the length.
    pub piece_length: PieceLength,
    /// How long after its own start a host asks for it.
    pub after: Duration,
    /// The share of the agents that pull it, from 0 to 1.
    pub share: f64,
}

impl From<u64> for Blob {
    /// A blob of this length that everybody pulls at once.
    fn from(length: u64) -> Self {
        Self {
            length,
            piece_length: PieceLength::for_blob(length),
            after: Duration::ZERO,
            share: 1.0,
        }
    }
}

/// When the agents start.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// Spread by chance, evenly over this time.
    pub within: Duration,
    /// These agents start at a time of their own.
    pub late: Vec<(usize, Duration)>,
}

/// What lies between the hosts. Rates in bytes per second.
#[derive(Debug, Clone)]
pub struct Network {
    /// What an agent can send.
    pub up: u64,
    /// What an agent can receive.
    pub down: u64,
    /// What an origin can send, and as much again receive.
    pub origin: u64,
    /// What a host can hash and write.
    pub disk: u64,
    /// The round trip of a pair is drawn from here, once.
    pub rtt: RangeInclusive<Duration>,
    /// Each message and piece is late by up to this much more, by chance.
    pub jitter: Duration,
    /// The share of packets of 1,400 bytes that are lost; each costs one more round trip and a half.
    pub loss: f64,
    /// How much of the time that an interface takes is left to chance: 0 is constant, 1 is
    /// exponential with the same mean.
    pub noise: f64,
    /// Hosts that stand still for a moment now and then.
    pub pauses: Option<Pauses>,
    /// Hosts with a slower interface.
    pub slow: Option<Slow>,
    /// Pairs with a thin path between them.
    pub thin_paths: Vec<ThinPaths>,
    /// Racks behind uplinks.
    pub racks: Option<Racks>,
}

/// Hosts that stand still: they neither send, receive nor decide anything.
#[derive(Debug, Clone)]
pub struct Pauses {
    /// How often per host and second.
    pub per_second: f64,
    /// For how long.
    pub length: RangeInclusive<Duration>,
}

/// Agents with a slower interface.
#[derive(Debug, Clone)]
pub struct Slow {
    /// The share of the agents, from 0 to 1.
    pub share: f64,
    /// What each can send, in bytes per second.
    pub up: u64,
    /// What each can receive, in bytes per second.
    pub down: u64,
}

/// Pairs of hosts between which little gets through.
#[derive(Debug, Clone)]
pub struct ThinPaths {
    /// The share of the pairs, from 0 to 1.
    pub share: f64,
    /// What gets through in each direction, in bytes per second.
    pub rate: u64,
}

/// Agents in racks; the origins stand outside of them.
#[derive(Debug, Clone)]
pub struct Racks {
    /// Agents in a rack.
    pub hosts: usize,
    /// How many times the agents of a rack could fill its uplink; the same the other way.
    pub oversubscription: f64,
    /// Whether the hosts know in which rack they are.
    pub known: bool,
}

/// What goes wrong. Times count from the start of the run, agents and origins from 0.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Agents that crash.
    pub crashes: Vec<Crash>,
    /// Agents that crash, by chance.
    pub churn: Option<Churn>,
    /// Agents whose pieces never verify.
    pub liars: Vec<usize>,
    /// Origins that die.
    pub killed_origins: Vec<KilledOrigin>,
    /// When no tracker answers anybody.
    pub outages: Vec<Range<Duration>>,
    /// When a share of the hosts (the first ones) cannot talk to the others.
    pub partition: Option<Partition>,
}

/// One crash of one agent.
#[derive(Debug, Clone)]
pub struct Crash {
    /// Which agent.
    pub agent: usize,
    /// When.
    pub at: Duration,
    /// Whether the other sides of its connections notice only after a timeout.
    pub silent: bool,
    /// How long after the crash it starts again, with the pieces it had.
    pub back_after: Option<Duration>,
    /// For how long before it hands over what others lack; zero for one that just goes.
    pub hand_over: Duration,
}

/// Crashes by chance.
#[derive(Debug, Clone)]
pub struct Churn {
    /// The share of the agents, from 0 to 1; each crashes once.
    pub share: f64,
    /// When.
    pub during: Range<Duration>,
    /// The share of the crashes that the other sides notice only after a timeout.
    pub silent: f64,
    /// How long after the crash each starts again, with the pieces it had.
    pub back_after: Option<Duration>,
    /// For how long before it each hands over what others lack; zero for those that just go.
    pub hand_over: Duration,
}

/// The end of one origin, or its restart.
#[derive(Debug, Clone)]
pub struct KilledOrigin {
    /// Which origin.
    pub origin: usize,
    /// When.
    pub at: Duration,
    /// Whether the other sides of its connections notice only after a timeout.
    pub silent: bool,
    /// How long after that it starts again; never without.
    pub back_after: Option<Duration>,
}

/// A cut through the network.
#[derive(Debug, Clone)]
pub struct Partition {
    /// The share of the agents on the far side, away from origins and trackers.
    pub share: f64,
    /// When.
    pub during: Range<Duration>,
}

impl Default for Network {
    /// 300 MB/s both ways, round trips of 0.5 to 1 ms, hashing and writing at 1,000 MB/s.
    fn default() -> Self {
        Self {
            up: 300_000_000,
            down: 300_000_000,
            origin: 300_000_000,
            disk: 1_000_000_000,
            rtt: Duration::from_micros(500)..=Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss: 0.0,
            noise: 0.0,
            pauses: None,
            slow: None,
            thin_paths: Vec::new(),
            racks: None,
        }
    }
}

impl Default for Plan {
    /// 20 hosts and 3 origins at 300 MB/s, one blob of 16 MiB.
    fn default() -> Self {
        Self {
            name: "swarm".to_owned(),
            seed: 1,
            agents: 20,
            origins: 3,
            owners: 3,
            trackers: 1,
            blobs: vec![Blob::from(16 << 20)],
            arrival: Arrival {
                within: Duration::from_millis(200),
                late: Vec::new(),
            },
            network: Network::default(),
            readers: false,
            known_peers: 0,
            metainfo_from_peers: false,
            agent: Config::lan(),
            origin: Config::origin(),
            tracker: TrackerConfig::default(),
            faults: Faults::default(),
            settle: Duration::from_millis(500),
            limit: Duration::from_secs(120),
        }
    }
}

impl Plan {
    /// `agents` hosts that pull the default blob.
    pub fn swarm(seed: u64, agents: usize) -> Self {
        Self {
            seed,
            agents,
            ..Self::default()
        }
    }

    /// The same, and every `nth` agent crashes while it downloads and comes back: every second of
    /// them silently.
    pub fn crashing(seed: u64, agents: usize, nth: usize) -> Self {
        let crash = |(number, agent)| Crash {
            agent,
            at: Duration::from_millis(170 + 13 * (number as u64 % 7)),
            silent: number % 2 == 0,
            back_after: Some(Duration::from_millis(400)),
            hand_over: Duration::ZERO,
        };
        let crashes = (0..agents)
            .step_by(nth.max(1))
            .enumerate()
            .map(crash)
            .collect();
        let faults = Faults {
            crashes,
            ..Faults::default()
        };
        Self {
            faults,
            ..Self::swarm(seed, agents)
        }
    }

    /// The same, and these agents lie.
    pub fn lying(seed: u64, agents: usize, liars: Vec<usize>) -> Self {
        let faults = Faults {
            liars,
            ..Faults::default()
        };
        Self {
            faults,
            ..Self::swarm(seed, agents)
        }
    }

    /// Whether a blob is on an origin.
    pub(crate) fn owns(&self, origin: usize, blob: usize) -> bool {
        (0..self.owners.min(self.origins)).any(|place| (blob + place) % self.origins == origin)
    }
}
