//! What is simulated.

use std::ops::Range;
use std::time::Duration;

use kraken_proto::Config;

/// One simulated swarm: hosts, blobs, network and faults. Equal plans give equal reports.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All chance comes from here.
    pub seed: u64,
    /// Hosts that want every blob.
    pub agents: usize,
    /// Seeders; each blob is on at most three of them.
    pub origins: usize,
    /// The lengths of the blobs in bytes.
    pub blobs: Vec<u64>,
    /// What a host can send, and as much again what it can receive, in bytes per second.
    pub cap: u64,
    /// What a host can hash and write, in bytes per second.
    pub disk: u64,
    /// Agents start evenly spread by chance over this time.
    pub spread: Duration,
    /// The last agent starts only now.
    pub latecomer: Option<Duration>,
    /// Whether each agent has a reader that goes through every blob from its first byte.
    pub readers: bool,
    /// How the agents behave.
    pub agent: Config,
    /// How the origins behave.
    pub origin: Config,
    /// What goes wrong.
    pub faults: Faults,
    /// How long after the last host has finished the swarm may settle.
    pub settle: Duration,
    /// The run ends now at the latest.
    pub limit: Duration,
}

/// What goes wrong. Times count from the start of the run, agents and origins from 0.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Agents that crash.
    pub crashes: Vec<Crash>,
    /// Agents whose pieces never verify.
    pub liars: Vec<usize>,
    /// Origins that die, and when.
    pub killed_origins: Vec<(usize, Duration)>,
    /// When the tracker answers nobody.
    pub outage: Option<Range<Duration>>,
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
}

impl Default for Plan {
    /// 20 hosts and 3 origins at 300 MB/s, one blob of 16 MiB.
    fn default() -> Self {
        Self {
            seed: 1,
            agents: 20,
            origins: 3,
            blobs: vec![16 << 20],
            cap: 300_000_000,
            disk: 1_000_000_000,
            spread: Duration::from_millis(200),
            latecomer: None,
            readers: false,
            agent: Config::lan(),
            origin: Config::origin(),
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
}
