//! What goes wrong, where, when and for how long: all of it drawn from a seed.

use std::path::PathBuf;
use std::time::Duration;

use kraken_core::proto::rng::Rng;

use crate::cluster::{Cluster, Member, Role};
use crate::delay::Delay;
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
    /// What arrives is late by 20 ms.
    Delay,
    /// Others keep the disk busy.
    BusyDisk,
    /// The clock jumps by 45 minutes, and back.
    Clock,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Kill,
        Self::Wipe,
        Self::Restart,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Loss,
        Self::SlowLink,
        Self::Delay,
        Self::BusyDisk,
        Self::Clock,
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
            Self::Delay => "delay",
            Self::BusyDisk => "busy-disk",
            Self::Clock => "clock",
        }
    }

    /// Whom it hits. A disk is lost where others have copies.
    fn may_hit(self, member: &Member) -> bool {
        match self {
            Self::Wipe => matches!(member.role, Role::Origin | Role::Agent | Role::BuildIndex),
            Self::BusyDisk => member.role == Role::Origin,
            Self::Clock => clock_library().is_some(),
            _ => true,
        }
    }
}

/// What lets the clock of one process go wrong.
pub(crate) fn clock_library() -> Option<PathBuf> {
    let near = |arch: &str| format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1");
    let places = ["x86_64", "aarch64"].map(near).map(PathBuf::from);
    places.into_iter().find(|it| it.exists())
}

/// How wrong a clock goes, in seconds.
const JUMP: i64 = 45 * 60;
/// How late packets are.
const LATE: Duration = Duration::from_millis(20);

/// What does harm as long as it is there.
pub(crate) enum Lasting {
    Hog(disk::Hog),
    Delay(Delay),
}

impl Lasting {
    /// Ends it; an error when it had ended by itself, and so was no fault.
    pub(crate) fn end(self) -> Outcome<()> {
        match self {
            Self::Hog(hog) => drop(hog),
            Self::Delay(delay) => delay.end()?,
        }
        Ok(())
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
        let kinds = Kind::ALL.into_iter();
        let kinds: Vec<_> = kinds
            .filter(|it| members.iter().any(|member| it.may_hit(member)))
            .collect();
        let kind = kinds[number % kinds.len()];
        let indexes = members.iter().filter(|it| it.role == Role::BuildIndex);
        let has_copies = indexes.count() >= 3;
        let survives =
            |member: &Member| kind != Kind::Wipe || member.role != Role::BuildIndex || has_copies;
        let may: Vec<_> = (0..members.len())
            .filter(|at| kind.may_hit(&members[*at]) && survives(&members[*at]))
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
            Kind::Delay => Some(Wrong::Late),
            _ => None,
        }
    }

    /// Begins, and gives what goes on until it is ended.
    pub(crate) fn begin(&self, cluster: &mut Cluster) -> Outcome<Option<Lasting>> {
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
            Kind::BusyDisk => return Ok(Some(Lasting::Hog(disk::Hog::start(&cluster.dir)?))),
            // Half of them jump back first.
            Kind::Clock if self.other.is_multiple_of(2) => cluster.set_clock(self.at, -JUMP)?,
            Kind::Clock => cluster.set_clock(self.at, JUMP)?,
            Kind::Partition | Kind::OneWay | Kind::Loss | Kind::SlowLink | Kind::Delay => {}
        }
        if let Some(wrong) = self.wrong(cluster) {
            let host = cluster.members[self.at].host;
            cluster.net.set(host, &wrong, true)?;
            if wrong == Wrong::Late {
                return Ok(Some(Lasting::Delay(Delay::start(
                    &cluster.net,
                    host,
                    LATE,
                )?)));
            }
        }
        Ok(None)
    }

    pub(crate) fn end(&self, cluster: &mut Cluster) -> Outcome<()> {
        match self.kind {
            Kind::Kill | Kind::Wipe => cluster.start(self.at)?,
            Kind::Pause => cluster.pause(self.at, false)?,
            Kind::Clock => cluster.set_clock(self.at, 0)?,
            _ => {}
        }
        if let Some(wrong) = self.wrong(cluster) {
            let host = cluster.members[self.at].host;
            cluster.net.set(host, &wrong, false)?;
        }
        Ok(())
    }
}
