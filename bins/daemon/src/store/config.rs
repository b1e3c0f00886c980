//! What a configuration says about where blobs are kept.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use kraken_core::proto::cache::ledger::{Lifetimes, Order};
use kraken_core::proto::{Config, PieceLength};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::LEAST;
use crate::limits::Rate;
use crate::units::{self, Written};

/// One of several directories for blobs, each on a disk of its own.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The directory. Its text places the blobs: keep it.
    pub path: PathBuf,
    /// Its share of the blobs relative to the others; 0 takes no new ones.
    #[serde(default)]
    pub weight: Weight,
    /// How much of the disk they may take; as `store_limit` when absent.
    #[serde(default)]
    pub limit: Option<StoreLimit>,
}

/// A share: a number, 0 or more.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
#[schemars(with = "f64")]
pub struct Weight(f64);

impl Weight {
    pub(crate) const fn share(self) -> f64 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1.0)
    }
}

impl TryFrom<f64> for Weight {
    type Error = String;

    fn try_from(weight: f64) -> Result<Self, String> {
        match weight.is_finite() && weight >= 0.0 {
            true => Ok(Self(weight)),
            false => Err(format!("weight is a number, 0 or more, not {weight}")),
        }
    }
}

/// When blobs go, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvictionConfig {
    /// From which part of `store_limit` on blobs go although nothing needs their room.
    #[serde(default)]
    #[schemars(default = "usual_high", extend("x-conditional" = true))]
    pub high: Option<Percent>,
    /// Until which part; five hundredths below `high` when only that is set.
    #[serde(default)]
    #[schemars(default = "usual_low", extend("x-conditional" = true))]
    pub low: Option<Percent>,
    /// Which blobs go first.
    #[serde(default)]
    pub order: OrderConfig,
    /// How long a blob stays after it came; for ever when absent.
    #[serde(default)]
    pub time_to_live: Option<Age>,
    /// How long a blob stays after it was used last; for ever when absent.
    #[serde(default)]
    pub time_to_idle: Option<Age>,
}

/// The marks when none is set.
const HIGH: Percent = Percent(95);
const LOW: Percent = Percent(90);

const fn usual_high() -> Percent {
    HIGH
}

const fn usual_low() -> Percent {
    LOW
}

/// From where on blobs go, and until where, in hundredths of the limit.
pub(super) fn marks(eviction: &EvictionConfig) -> (u8, u8) {
    let high = eviction.high.unwrap_or(HIGH).0;
    // With a high mark alone, as far below it as by default.
    let low = || high.saturating_sub(HIGH.0 - LOW.0);
    (high, eviction.low.map_or_else(low, |percent| percent.0))
}

impl EvictionConfig {
    pub(crate) fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            to_live: self.time_to_live.map(|age| age.0),
            to_idle: self.time_to_idle.map(|age| age.0),
        }
    }
}

/// Which blobs go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderConfig {
    /// Those that were not used for the longest time.
    #[default]
    Recent,
    /// Those that are cheap to fetch again for the room they take, and seldom used.
    Cost,
}

impl From<OrderConfig> for Order {
    fn from(config: OrderConfig) -> Self {
        match config {
            OrderConfig::Recent => Self::Recent,
            OrderConfig::Cost => Self::Cost,
        }
    }
}

/// A part in hundredths: `90%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "part, such as `90%`")]
pub struct Percent(pub(super) u8);

units::serialize_as_text!(Percent, |percent| format!("{}%", percent.0));

impl TryFrom<String> for Percent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').map(str::trim_end);
        match number.and_then(|number| number.parse().ok()) {
            Some(percent @ 1..=100) => Ok(Self(percent)),
            _ => Err(format!(
                "high and low are parts such as 90%, 1% to 100%, not {text}"
            )),
        }
    }
}

/// A time such as `12h` or `30d`, a minute or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "time", extend("examples" = ["12h"]))]
pub struct Age(pub(crate) Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::time_text(self.0))
    }
}

units::serialize_as_text!(Age, |age| units::time_text(age.0));

impl TryFrom<String> for Age {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match units::time(&text)? {
            time if time < Duration::from_secs(60) => {
                Err(format!("a time of {text} is too short: 1m at least"))
            }
            time => Ok(Self(time)),
        }
    }
}

/// How much of a disk to take: `200GiB`, a plain number of bytes, or `80%` of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written", title = "size or part", extend("examples" = ["200GiB", "80%"]))]
pub enum StoreLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the volume, between 1 and 100.
    Percent(u8),
}

impl TryFrom<Written> for StoreLimit {
    type Error = String;

    fn try_from(Written(text): Written) -> Result<Self, String> {
        let limit = match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim_end().parse().ok().map(Self::Percent),
            None => units::size(&text).ok().map(Self::Bytes),
        };
        match limit {
            Some(Self::Bytes(0)) => {
                Err("a store_limit of 0 keeps nothing: for no limit, leave the key out".into())
            }
            Some(Self::Bytes(bytes)) if bytes < LEAST => Err(format!(
                "a store_limit of {text} is too little, as the longest manifest alone takes {}: is the unit missing, \
                 as in 200GiB?",
                units::size_text(LEAST)
            )),
            Some(limit @ (Self::Bytes(_) | Self::Percent(1..=100))) => Ok(limit),
            _ => Err(format!(
                "store_limit is a size such as 200GiB, or 1% to 100% of the volume, not {text}"
            )),
        }
    }
}

/// How fast blobs on disk are read back: `20MB/s`, a plain number of bytes per second, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written", title = "rate or `off`", extend("examples" = ["20MB/s", "off"]))]
pub struct ScrubRate(pub(super) Option<NonZeroU64>);

impl Default for ScrubRate {
    fn default() -> Self {
        Self(NonZeroU64::new(20_000_000))
    }
}

units::serialize_as_text!(ScrubRate, |scrub| {
    let rate = scrub
        .0
        .map(|rate| format!("{}/s", units::size_text(rate.get())));
    rate.unwrap_or_else(|| "off".into())
});

impl TryFrom<Written> for ScrubRate {
    type Error = String;

    fn try_from(Written(text): Written) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        match units::rate(&text) {
            Ok(1..) => Rate::try_from(Written(text)).map(|Rate(rate)| Self(Some(rate))),
            _ => Err(format!(
                "scrub is bytes per second such as 20MB/s, or off, not {text}"
            )),
        }
    }
}

/// Memory in front of the disks: `2GiB`, or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written", title = "size", extend("examples" = ["2GiB"]))]
pub struct Memory(pub(crate) u64);

impl Memory {
    /// The pieces of a large blob that are on their way at once: less would hold them up.
    fn least() -> u64 {
        let pieces = Config::default().inflight as u64;
        pieces * PieceLength::for_blob(1 << 30).bytes()
    }
}

impl TryFrom<Written> for Memory {
    type Error = String;

    fn try_from(Written(text): Written) -> Result<Self, String> {
        match units::size(&text)? {
            0 => Err("a memory of 0 holds nothing: for none, leave the key out".into()),
            bytes if bytes < Self::least() => Err(format!(
                "a memory of {text} is too little, as the pieces that come at once take {}: is the unit missing, as in \
                 2GiB?",
                units::size_text(Self::least())
            )),
            bytes => Ok(Self(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use kraken_core::proto::cache::ledger::Ceiling;

    use super::*;
    use crate::agent::AgentConfig;
    use crate::config::parse;
    use crate::config::tests::AGENT;
    use crate::store::ceiling;

    #[test]
    fn a_limit_on_the_disk_is_a_size_or_a_part_of_the_volume() {
        let with = |line: &str| {
            let config = parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
            config.map(|config| config.store_limit)
        };
        assert_eq!(with(""), Ok(None));
        let bytes = |bytes| Ok(Some(StoreLimit::Bytes(bytes)));
        assert_eq!(with("store_limit: 200GiB"), bytes(200 << 30));
        assert_eq!(with("store_limit: 4194304"), bytes(4 << 20));
        let percent = |percent| Ok(Some(StoreLimit::Percent(percent)));
        assert_eq!(with("store_limit: 80%"), percent(80));
        assert_eq!(with("store_limit: 100 %"), percent(100));
        for wrong in [
            "0%",
            "101%",
            "-5",
            "half",
            "80 percent",
            "'%'",
            "''",
            "0",
            "0.8",
            "200",
            "4MB",
        ] {
            let error = with(&format!("store_limit: {wrong}")).unwrap_err();
            assert!(error.contains("store_limit"), "{wrong}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let later = dir.path().join("not/there/yet");
        let none = EvictionConfig::default();
        let of = |limit| ceiling(Some(limit), &none, &later).unwrap().unwrap().most();
        let (whole, half) = (of(StoreLimit::Percent(100)), of(StoreLimit::Percent(50)));
        assert!(
            whole > 0 && half.abs_diff(whole / 2) <= 50,
            "{half} of {whole}"
        );
        assert_eq!(of(StoreLimit::Bytes(7)), 7);
    }

    #[test]
    fn the_scrub_has_a_rate_or_is_off() {
        let with = |line: &str| {
            let config = parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
            config.map(|config| config.scrub.0.map(NonZeroU64::get))
        };
        assert_eq!(with(""), Ok(Some(20_000_000)));
        assert_eq!(with("scrub: 100MB"), Ok(Some(100_000_000)));
        assert_eq!(with("scrub: 100MB/s"), Ok(Some(100_000_000)));
        assert_eq!(with("scrub: 4194304"), Ok(Some(4 << 20)));
        assert_eq!(with("scrub: off"), Ok(None));
        for wrong in ["0", "-1", "fast", "1.5", "true"] {
            let error = with(&format!("scrub: {wrong}")).unwrap_err();
            assert!(error.contains("20MB/s, or off"), "{wrong}: {error}");
        }
        let error = with("scrub: 4096").unwrap_err();
        assert!(error.contains("is the unit missing"), "{error}");
    }

    #[test]
    fn eviction_has_marks_an_order_and_lifetimes() {
        let with = |line: &str| {
            let config = parse::<AgentConfig>(&format!("{AGENT}eviction: {line}\n"));
            config.map(|config| config.eviction)
        };
        let text = "{high: 80%, low: 60 %, order: cost, time_to_live: 30d, time_to_idle: 12h}";
        let config = with(text).unwrap();
        assert_eq!(
            (config.high, config.low),
            (Some(Percent(80)), Some(Percent(60)))
        );
        assert_eq!(Order::from(config.order), Order::Cost);
        let days = |days: u64| Some(Duration::from_secs(days * 24 * 3600));
        assert_eq!(config.lifetimes().to_live, days(30));
        assert_eq!(
            config.lifetimes().to_idle,
            Some(Duration::from_secs(12 * 3600))
        );
        assert_eq!(with("{}"), Ok(EvictionConfig::default()));
        for (wrong, says) in [
            ("{high: 0.9}", "such as 90%"),
            ("{high: 101%}", "1% to 100%"),
            ("{order: oldest}", "recent"),
            ("{time_to_live: 30}", "30m, 30h or 30d"),
            ("{time_to_live: 5s}", "1m at least"),
            ("{time_to_live: -5h}", "such as 30s"),
            ("{ttl: 5h}", "time_to_live"),
        ] {
            let error = with(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
        let limit = Some(StoreLimit::Bytes(1000));
        // As the core has them.
        let usual = ceiling(limit, &EvictionConfig::default(), "/".as_ref());
        assert_eq!(usual.unwrap(), Some(Ceiling::of(1000)));
        let marked = ceiling(limit, &config, "/".as_ref()).unwrap().unwrap();
        assert_eq!((marked.high(), marked.low()), (800, 600));
        let only_low = with("{low: 97%}").unwrap();
        let error = ceiling(limit, &only_low, "/".as_ref())
            .unwrap_err()
            .to_string();
        assert!(error.contains("low") && error.contains("97%"), "{error}");
        let only_high = with("{high: 50%}").unwrap();
        let marked = ceiling(limit, &only_high, "/".as_ref()).unwrap().unwrap();
        assert_eq!((marked.high(), marked.low()), (500, 450));
    }

    #[test]
    fn volumes_have_weights_and_limits() {
        let with = |line: &str| {
            let config = parse::<AgentConfig>(&format!("{AGENT}volumes: {line}\n"));
            config.map(|config| config.volumes)
        };
        let volumes =
            with("[{path: /a}, {path: /b, weight: 2.5, limit: 50%}, {path: /c, weight: 0}]");
        let volumes = volumes.unwrap();
        let weights: Vec<_> = volumes.iter().map(|volume| volume.weight.share()).collect();
        assert_eq!(weights, [1.0, 2.5, 0.0]);
        assert_eq!(volumes[1].limit, Some(StoreLimit::Percent(50)));
        for (wrong, says) in [
            ("[{path: /a, weight: -1}]", "0 or more"),
            ("[{path: /a, weight: .nan}]", "0 or more"),
            ("[{paths: /a}]", "path"),
            ("[{weight: 1}]", "path"),
        ] {
            let error = with(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
