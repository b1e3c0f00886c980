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
}
