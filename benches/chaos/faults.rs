//! What goes wrong, where, when and for how long: all of it drawn from a seed.

use std::time::Duration;

use kraken_core::proto::rng::Rng;

use crate::cluster::{Cluster, Member, Role};
use crate::net::Wrong;
use crate::{Outcome, disk};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL, and a start later.
    Kill,
    /// SIGKILL, and a start with an empty disk.
    Wipe,
    /// SIGTERM, and a start at once.
    Restart,
    /// SIGSTOP for a while.
    Pause,
    /// Nothing gets through.
    Partition,
    /// Nothing from one other host arrives.
    OneWay,
    /// One packet in ten is lost.
    Loss,
    /// 20 Mbit/s.
    SlowLink,
    /// Others keep the disk busy.
    BusyDisk,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Kill,
        Self::Wipe,
        Self::Restart,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Loss,
        Self::SlowLink,
        Self::BusyDisk,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Wipe => "wipe",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Loss => "loss",
            Self::SlowLink => "slow-link",
            Self::BusyDisk => "busy-disk",
        }
    }

    /// Whom it hits. A disk is lost where others have copies; tags have one keeper.
    fn may_hit(self, member: &Member) -> bool {
        match self {
            Self::Wipe => matches!(member.role, Role::Origin | Role::Agent),
            Self::BusyDisk => member.role == Role::Origin,
            _ => true,
        }
    }
}

/// A fault as it was drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Which member.
    pub(crate) at: usize,
    /// Whom it does not hear any more.
    other: usize,
    pub(crate) lasts: Duration,
}

impl Fault {
    /// The next one: the kinds in turn, so that each comes as often as the others.
    pub(crate) fn draw(rng: &mut Rng, number: usize, members: &[Member]) -> Self {
        let kind = Kind::ALL[number % Kind::ALL.len()];
        let may: Vec<_> = (0..members.len())
            .filter(|at| kind.may_hit(&members[*at]))
            .collect();
        let at = may[rng.below(may.len())];
        let other = (at + 1 + rng.below(members.len() - 1)) % members.len();
        let lasts = Duration::from_millis(1000 + rng.below(3000) as u64);
        Self {
            kind,
            at,
            other,
            lasts,
        }
    }

    fn wrong(&self, cluster: &Cluster) -> Option<Wrong> {
        match self.kind {
            Kind::Partition => Some(Wrong::Cut),
            Kind::OneWay => Some(Wrong::Deaf(cluster.members[self.other].host)),
            Kind::Loss => Some(Wrong::Loss(10)),
            Kind::SlowLink => Some(Wrong::Slow(20)),
            _ => None,
        }
    }

    pub(crate) fn begin(&self, cluster: &mut Cluster) -> Outcome<Option<disk::Hog>> {
        match self.kind {
            Kind::Kill => cluster.kill(self.at)?,
            Kind::Wipe => {
                cluster.kill(self.at)?;
                cluster.wipe(self.at)?;
            }
            Kind::Restart => {
                cluster.stop(self.at)?;
                cluster.start(self.at)?;
            }
            Kind::Pause => cluster.pause(self.at, true)?,
            Kind::BusyDisk => return Ok(Some(disk::Hog::start(&cluster.dir)?)),
            Kind::Partition | Kind::OneWay | Kind::Loss | Kind::SlowLink => {}
        }
        if let Some(wrong) = self.wrong(cluster) {
            cluster
                .net
                .set(cluster.members[self.at].host, wrong, true)?;
        }
        Ok(None)
    }

    pub(crate) fn end(&self, cluster: &mut Cluster) -> Outcome<()> {
        match self.kind {
            Kind::Kill | Kind::Wipe => cluster.start(self.at)?,
            Kind::Pause => cluster.pause(self.at, false)?,
            _ => {}
        }
        if let Some(wrong) = self.wrong(cluster) {
            cluster
                .net
                .set(cluster.members[self.at].host, wrong, false)?;
        }
        Ok(())
    }
}
