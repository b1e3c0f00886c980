//! What came of it.

/// What came of a [`crate::Plan`].
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// How long each agent took from its own start until it had every blob, in seconds.
    pub completions: Vec<Option<f64>>,
    /// Bytes of pieces that origins put on the wire.
    pub origin_bytes: u64,
    /// Bytes of pieces that agents put on the wire.
    pub agent_bytes: u64,
    /// Messages between hosts, pieces left out.
    pub messages: u64,
    /// Which agent banned which, both by number, in order of time.
    pub bans: Vec<(usize, usize)>,
    /// SHA-256 over the time, the host and the content of everything that happened to a host.
    pub trace: String,
    /// Whether every honest agent that was to stay has every blob.
    pub finished: bool,
    /// The virtual time at the end, in seconds.
    pub ended: f64,
    /// Rules that were broken; empty when all is well.
    pub violations: Vec<String>,
}

/// How long the hosts took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// Half of the hosts took no longer.
    pub p50: f64,
    /// 90 % of the hosts took no longer.
    pub p90: f64,
    /// 99 % of the hosts took no longer.
    pub p99: f64,
    /// No host took longer.
    pub max: f64,
}

impl Report {
    /// How long the hosts that completed took.
    pub fn percentiles(&self) -> Percentiles {
        let mut seconds: Vec<f64> = self.completions.iter().flatten().copied().collect();
        seconds.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (seconds.len() * percent).div_ceil(100).max(1) - 1;
            seconds.get(rank).copied().unwrap_or(f64::NAN)
        };
        Percentiles {
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: at(100),
        }
    }
}
