//! What a plan file may say. Every key is explained in `docs/simulator.md`.

use serde::Deserialize;
use toml::Spanned;

use super::policy::{Knobs, Policy, TrackerKnobs};
use super::values::{
    Count, Factor, Loss, Millis, MillisRange, PerSecond, Pieces, Seconds, Share, Size,
};

/// A host or an origin by its number, checked against how many there are.
pub(super) type Index = Spanned<Count<0, 99_999>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanFile {
    pub(super) name: Option<String>,
    pub(super) seed: Option<Count<0, { i64::MAX as u64 }>>,
    pub(super) hosts: Option<Count<1, 100_000>>,
    pub(super) origins: Option<Count<0, 1000>>,
    pub(super) owners: Option<Spanned<Count<1, 1000>>>,
    pub(super) trackers: Option<Count<1, 1000>>,
    pub(super) known_peers: Option<Count<0, 1000>>,
    pub(super) metainfo_from_peers: Option<bool>,
    pub(super) readers: Option<bool>,
    #[serde(default)]
    pub(super) policy: Policy,
    pub(super) limit_seconds: Option<Seconds>,
    pub(super) settle_seconds: Option<Seconds>,
    pub(super) blobs: Option<Spanned<Vec<BlobFile>>>,
    pub(super) caps: Option<CapsFile>,
    pub(super) arrival: Option<ArrivalFile>,
    pub(super) network: Option<NetworkFile>,
    pub(super) faults: Option<FaultsFile>,
    pub(super) agent: Option<Knobs>,
    pub(super) origin: Option<Knobs>,
    pub(super) tracker: Option<TrackerKnobs>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlobFile {
    pub(super) size: Size,
    pub(super) count: Option<Count<1, 10_000>>,
    pub(super) piece_length: Option<Pieces>,
    pub(super) after_seconds: Option<Seconds>,
    pub(super) share: Option<Share>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CapsFile {
    pub(super) up: Option<Size>,
    pub(super) down: Option<Size>,
    pub(super) origin: Option<Size>,
    pub(super) disk: Option<Size>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArrivalFile {
    pub(super) within_seconds: Option<Seconds>,
    #[serde(default)]
    pub(super) late: Vec<LateFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LateFile {
    pub(super) host: Index,
    pub(super) at_seconds: Seconds,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkFile {
    pub(super) rtt_ms: Option<MillisRange>,
    pub(super) jitter_ms: Option<Millis>,
    pub(super) loss: Option<Loss>,
    pub(super) noise: Option<Share>,
    pub(super) pauses: Option<PausesFile>,
    pub(super) slow: Option<SlowFile>,
    #[serde(default)]
    pub(super) thin_paths: Vec<ThinPathsFile>,
    pub(super) racks: Option<RacksFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PausesFile {
    pub(super) per_second: PerSecond,
    pub(super) length_ms: MillisRange,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SlowFile {
    pub(super) share: Share,
    pub(super) up: Size,
    pub(super) down: Size,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ThinPathsFile {
    pub(super) share: Share,
    pub(super) rate: Size,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RacksFile {
    pub(super) hosts: Count<1, 100_000>,
    pub(super) oversubscription: Factor,
    pub(super) known: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultsFile {
    #[serde(default)]
    pub(super) crashes: Vec<CrashFile>,
    pub(super) churn: Option<Spanned<ChurnFile>>,
    #[serde(default)]
    pub(super) liars: Vec<Index>,
    #[serde(default)]
    pub(super) killed_origins: Vec<KilledOriginFile>,
    #[serde(default)]
    pub(super) outages: Vec<Spanned<OutageFile>>,
    pub(super) partition: Option<Spanned<PartitionFile>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CrashFile {
    pub(super) host: Index,
    pub(super) at_seconds: Seconds,
    #[serde(default)]
    pub(super) silent: bool,
    pub(super) back_after_seconds: Option<Seconds>,
    pub(super) hand_over_seconds: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChurnFile {
    pub(super) share: Share,
    pub(super) from_seconds: Seconds,
    pub(super) to_seconds: Seconds,
    pub(super) silent: Option<Share>,
    pub(super) back_after_seconds: Option<Seconds>,
    pub(super) hand_over_seconds: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KilledOriginFile {
    pub(super) origin: Index,
    pub(super) at_seconds: Seconds,
    #[serde(default)]
    pub(super) silent: bool,
    pub(super) back_after_seconds: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutageFile {
    pub(super) from_seconds: Seconds,
    pub(super) to_seconds: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartitionFile {
    pub(super) share: Share,
    pub(super) from_seconds: Seconds,
    pub(super) to_seconds: Seconds,
}
