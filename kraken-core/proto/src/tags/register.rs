//! An owner's side of a register.

use serde::{Deserialize, Serialize};

use super::record::TagState;

/// Names one attempt to read or change registers; a later attempt should have a larger one, and no
/// two attempts may have the same.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ballot {
    /// Grows from attempt to attempt.
    pub round: u64,
    /// Drawn anew by each life of whoever attempts.
    pub proposer: u64,
}

/// What an owner holds of one tag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// It has promised to take nothing of an earlier attempt than this.
    pub promised: Ballot,
    /// The attempt that it last took a state of; zero when it has none.
    pub accepted: Ballot,
    /// That state; nothing is a state, too: of a tag that was never set.
    pub state: Option<TagState>,
    /// It was told to take it by who attempted. Otherwise it is what others held when this owner came
    /// back with an empty disk, and says nothing of what most owners hold.
    pub voted: bool,
}

/// An owner has heard of a later attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbid(pub Ballot);

impl Register {
    /// The first half of an attempt: promises to take nothing earlier.
    ///
    /// # Errors
    /// A later one came before.
    pub fn prepare(&mut self, ballot: Ballot) -> Result<(), Outbid> {
        if ballot < self.promised {
            return Err(Outbid(self.promised));
        }
        self.promised = ballot;
        Ok(())
    }

    /// The second half: takes the state.
    ///
    /// # Errors
    /// A later attempt came before.
    pub fn accept(&mut self, ballot: Ballot, state: Option<TagState>) -> Result<(), Outbid> {
        if ballot < self.promised {
            return Err(Outbid(self.promised));
        }
        self.promised = ballot;
        self.accepted = ballot;
        self.state = state;
        self.voted = true;
        Ok(())
    }

    /// What an owner that comes back with an empty disk is told, see [`super::rejoin`]. Attempts
    /// that are under way find this owner outbid: one that the other had promised to before it lost
    /// its disk must not come to its end with half of its promises forgotten.
    pub fn hand_over(&mut self) -> Self {
        self.promised.round = self.promised.round.saturating_add(1);
        self.clone()
    }

    /// An owner that comes back learns what another one holds, before it answers anybody.
    pub fn learn(&mut self, other: &Self) {
        self.promised = self.promised.max(other.promised);
        if other.accepted > self.accepted {
            self.accepted = other.accepted;
            self.state.clone_from(&other.state);
            self.voted = false;
        }
    }

    /// An owner of a cluster that begins takes what was kept elsewhere, before it answers anybody. Whether
    /// it holds just that now.
    pub fn restore(&mut self, kept: &TagState) -> bool {
        if self.accepted <= Ballot::RESTORED && !self.voted {
            let merged = self.state.as_ref().map(|it| it.merged(kept));
            self.promised = self.promised.max(Ballot::RESTORED);
            self.accepted = Ballot::RESTORED;
            self.state = Some(merged.unwrap_or_else(|| kept.clone()));
        }
        self.state.as_ref() == Some(kept)
    }
}

impl Ballot {
    /// What was kept elsewhere counts as taken in this attempt: all others are later.
    const RESTORED: Self = Self {
        round: 1,
        proposer: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::digest::Digest;
    use crate::tags::record::{Record, Version};

    fn state(version: u64) -> TagState {
        TagState::first(Record {
            version: Version::new(version),
            cluster: "east".into(),
            digest: Some(Digest::of(&version.to_le_bytes())),
        })
    }

    #[test]
    fn what_is_restored_is_earlier_than_all_attempts_and_the_latest_of_what_was_kept() {
        let mut register = Register::default();
        assert!(register.restore(&state(2)));
        assert!(register.restore(&state(2)));
        assert!(!register.restore(&state(1)), "it holds something later");
        assert!(
            !register.restore(&state(3)),
            "it holds what was before as well"
        );
        let restored = register.state.clone().unwrap();
        let versions: Vec<_> = restored.records().map(|it| it.version.get()).collect();
        assert_eq!(versions, [3, 2, 1]);
        assert!(!register.voted);
        let first = Ballot {
            round: 2,
            proposer: 0,
        };
        register.prepare(first).unwrap();
        register.accept(first, Some(state(4))).unwrap();
        assert!(!register.restore(&state(5)), "it was voted for since");
        assert_eq!(register.state, Some(state(4)));
        let mut other = Register::default();
        other.restore(&state(3));
        let mut learning = other.clone();
        learning.learn(&register);
        assert_eq!(learning.state, Some(state(4)));
        register.learn(&other);
        assert_eq!(register.state, Some(state(4)));
    }
}
