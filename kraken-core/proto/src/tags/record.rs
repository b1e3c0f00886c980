//! What a tag points to, since when, and to what it pointed before.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::blob::digest::Digest;

/// When a tag was changed: a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014).
///
/// 48 bits of milliseconds since 1970 and 16 bits that count changes within one of them. Of one tag,
/// a later change has a larger version, however wrong the clocks of those who change it are.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(u64);

const COUNTER_BITS: u32 = 16;

impl Version {
    /// Before every change.
    pub const ZERO: Self = Self(0);

    /// The number, as it is told to clients.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The version of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The first version after this one that is not before `millis` since 1970.
    #[must_use]
    pub const fn next(self, millis: u64) -> Self {
        let (after, now) = (self.0.saturating_add(1), millis << COUNTER_BITS);
        Self(if after > now { after } else { now })
    }

    /// The milliseconds since 1970 that it names.
    pub const fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

/// One state of a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When it was set.
    pub version: Version,
    /// In which cluster; of two records with one version, the one with the larger name is the later.
    pub cluster: String,
    /// What the tag points to; nothing once it has been removed.
    pub digest: Option<Digest>,
}

/// What an owner keeps of a tag: its state, and those before, the latest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagState {
    /// What the tag is now.
    pub now: Record,
    /// What it was before, at most [`TagState::HISTORY`] of these.
    pub before: VecDeque<Record>,
}

impl TagState {
    /// Earlier states that are kept.
    pub const HISTORY: usize = 10;

    /// A state without any before it.
    pub const fn first(now: Record) -> Self {
        let before = VecDeque::new();
        Self { now, before }
    }

    /// This state, all earlier ones behind it.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        std::iter::once(&self.now).chain(&self.before)
    }

    /// The same with one more record, in its place by version.
    #[must_use]
    fn with(&self, record: Record) -> Self {
        let mut all: Vec<_> = self.records().cloned().collect();
        if !all.contains(&record) {
            all.push(record);
        }
        all.sort_unstable_by(|one, other| other.cmp(one));
        let mut all = all.into_iter();
        Self {
            now: all.next().unwrap_or_else(|| self.now.clone()),
            before: all.take(Self::HISTORY).collect(),
        }
    }
}

/// What must hold of a tag for it to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    #[default]
    Any,
    /// It was last changed at this version.
    Version(Version),
    /// It was last changed, or removed, at this version, zero if never: whoever asks twice, because
    /// no answer came, then does not undo what others did in between.
    At(Version),
    /// It does not exist.
    Absent,
    /// It does not exist, because it must never change: an immutable tag.
    Immutable,
}

/// What is to become of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is only looked at.
    Read,
    /// It is to point to `digest`, or to be removed without one.
    Set {
        /// What it is to point to.
        digest: Option<Digest>,
        /// What must hold.
        condition: Condition,
        /// The time, in milliseconds since 1970.
        millis: u64,
        /// The name of this cluster.
        cluster: String,
    },
    /// Records of another cluster join the history; the latest of all is what the tag points to.
    Merge(Vec<Record>),
}

/// Why a tag was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It changed in the meantime.
    #[error("the tag was changed at version {}", .0.get())]
    Changed(Version),
    /// It does not exist.
    #[error("the tag does not exist")]
    Unknown,
    /// It exists.
    #[error("the tag exists")]
    Exists,
    /// It exists and must never point to anything else.
    #[error("the tag is immutable and points to something else")]
    Immutable,
}

impl Change {
    /// What the tag is afterwards; `None` when it was never set and stays so.
    ///
    /// # Errors
    /// [`Refusal`]: it stays as it is.
    pub fn apply(&self, state: Option<&TagState>) -> Result<Option<TagState>, Refusal> {
        match self {
            Self::Read => Ok(state.cloned()),
            Self::Set {
                digest,
                condition,
                millis,
                cluster,
            } => set(state, *digest, *condition, *millis, cluster),
            Self::Merge(records) => {
                let mut records = records.iter().cloned();
                let first = state
                    .cloned()
                    .or_else(|| records.next().map(TagState::first));
                Ok(first.map(|state| records.fold(state, |state, record| state.with(record))))
            }
        }
    }
}

fn set(
    state: Option<&TagState>,
    digest: Option<Digest>,
    condition: Condition,
    millis: u64,
    cluster: &str,
) -> Result<Option<TagState>, Refusal> {
    let now = state.and_then(|state| state.now.digest);
    if digest == now {
        // It is as it is wanted: also when an earlier attempt has done it and nobody heard of it.
        return Ok(state.cloned());
    }
    let version = state.map_or(Version::ZERO, |state| state.now.version);
    match condition {
        Condition::Version(_) if now.is_none() => return Err(Refusal::Unknown),
        Condition::Version(wanted) if wanted != version => return Err(Refusal::Changed(version)),
        Condition::At(wanted) if wanted != version => return Err(Refusal::Changed(version)),
        Condition::Absent if now.is_some() => return Err(Refusal::Exists),
        Condition::Immutable if now.is_some() => return Err(Refusal::Immutable),
        _ => {}
    }
    let record = Record {
        version: version.next(millis),
        cluster: cluster.to_owned(),
        digest,
    };
    let next = state.map(|state| state.with(record.clone()));
    Ok(Some(next.unwrap_or_else(|| TagState::first(record))))
}
