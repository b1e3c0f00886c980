//! Makes a plan of what a file says.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::error::Fault;
use super::policy::Policy;
use super::schema::{
    ArrivalFile, BlobFile, CapsFile, ChurnFile, CrashFile, FaultsFile, Index, KilledOriginFile,
    NetworkFile, OutageFile, PartitionFile, PausesFile, PlanFile, RacksFile, SlowFile,
    ThinPathsFile,
};
use super::values::{Count, Seconds};
use crate::plan::{
    Blob, Churn, Crash, Faults, KilledOrigin, Network, Partition, Pauses, Plan, Racks, Slow,
    ThinPaths,
};

/// The plan, where everything that a file names exists.
pub(super) fn plan(file: PlanFile) -> Result<Plan, Fault> {
    let mut plan = Plan::default();
    let policy = file.policy;
    set(&mut plan.name, file.name);
    set(&mut plan.seed, file.seed);
    set(&mut plan.agents, file.hosts);
    set(&mut plan.origins, file.origins);
    set(&mut plan.trackers, file.trackers);
    set(&mut plan.known_peers, file.known_peers);
    set(&mut plan.metainfo_from_peers, file.metainfo_from_peers);
    set(&mut plan.readers, file.readers);
    set(&mut plan.limit, file.limit_seconds);
    set(&mut plan.settle, file.settle_seconds);
    owners(&mut plan, file.owners)?;
    match file.blobs {
        Some(blobs) => plan.blobs = self::blobs(blobs, policy)?,
        None => plan.blobs.iter_mut().for_each(|blob| {
            blob.piece_length = policy.piece_length(blob.length);
        }),
    }
    caps(&mut plan.network, file.caps);
    arrival(&mut plan, file.arrival)?;
    if let Some(network) = file.network {
        self::network(&mut plan.network, network);
    }
    if let Some(faults) = file.faults {
        plan.faults = self::faults(&plan, faults)?;
    }
    policy.apply(&mut plan);
    if let Some(knobs) = file.agent {
        knobs.apply(&mut plan.agent);
    }
    if let Some(knobs) = file.origin {
        knobs.apply(&mut plan.origin);
    }
    if let Some(knobs) = file.tracker {
        knobs.apply(&mut plan.tracker);
    }
    Ok(plan)
}

/// What the file says, if it says it.
fn set<T, V: Into<T>>(place: &mut T, value: Option<V>) {
    if let Some(value) = value {
        *place = value.into();
    }
}

fn owners(plan: &mut Plan, file: Option<Spanned<Count<1, 1000>>>) -> Result<(), Fault> {
    let Some(file) = file else { return Ok(()) };
    let span = file.span();
    plan.owners = file.into_inner().into();
    if plan.owners <= plan.origins {
        return Ok(());
    }
    let what = format!(
        "a blob can be on {} origins at most: that is how many there are",
        plan.origins
    );
    Err(Fault { span, what })
}

fn blobs(files: Spanned<Vec<BlobFile>>, policy: Policy) -> Result<Vec<Blob>, Fault> {
    let span = files.span();
    let mut blobs = Vec::new();
    for file in files.into_inner() {
        let length = file.size.into();
        let piece_length = file.piece_length.map(|it| it.0);
        let blob = Blob {
            length,
            piece_length: piece_length.unwrap_or_else(|| policy.piece_length(length)),
            after: file.after_seconds.map_or(Duration::ZERO, Into::into),
            share: file.share.map_or(1.0, Into::into),
        };
        let count = file.count.map_or(1, Into::into);
        blobs.extend(std::iter::repeat_n(blob, count));
    }
    let what = match blobs.len() {
        0 => "a plan needs at least one blob".to_owned(),
        len if len > MOST_BLOBS => format!("a plan can have {MOST_BLOBS} blobs, not {len}"),
        _ => return Ok(blobs),
    };
    Err(Fault { span, what })
}

/// The most blobs of a plan.
const MOST_BLOBS: usize = 10_000;

fn caps(network: &mut Network, file: Option<CapsFile>) {
    let Some(file) = file else { return };
    set(&mut network.up, file.up);
    set(&mut network.down, file.down);
    set(&mut network.origin, file.origin);
    set(&mut network.disk, file.disk);
}

fn arrival(plan: &mut Plan, file: Option<ArrivalFile>) -> Result<(), Fault> {
    let Some(file) = file else { return Ok(()) };
    set(&mut plan.arrival.within, file.within_seconds);
    for late in file.late {
        let host = index(&late.host, plan.agents, "hosts")?;
        plan.arrival.late.push((host, late.at_seconds.into()));
    }
    Ok(())
}

fn network(network: &mut Network, file: NetworkFile) {
    set(&mut network.rtt, file.rtt_ms);
    set(&mut network.jitter, file.jitter_ms);
    set(&mut network.loss, file.loss);
    set(&mut network.noise, file.noise);
    let pauses = |it: PausesFile| Pauses {
        per_second: it.per_second.into(),
        length: it.length_ms.into(),
    };
    network.pauses = file.pauses.map(pauses);
    let slow = |it: SlowFile| Slow {
        share: it.share.into(),
        up: it.up.into(),
        down: it.down.into(),
    };
    network.slow = file.slow.map(slow);
    let thin = |it: ThinPathsFile| ThinPaths {
        share: it.share.into(),
        rate: it.rate.into(),
    };
    network.thin_paths = file.thin_paths.into_iter().map(thin).collect();
    let racks = |it: RacksFile| Racks {
        hosts: it.hosts.into(),
        oversubscription: it.oversubscription.into(),
        known: it.known.unwrap_or(true),
    };
    network.racks = file.racks.map(racks);
}

fn faults(plan: &Plan, file: FaultsFile) -> Result<Faults, Fault> {
    let mut faults = Faults::default();
    for crash in file.crashes {
        faults.crashes.push(self::crash(plan, crash)?);
    }
    for liar in file.liars {
        faults.liars.push(index(&liar, plan.agents, "hosts")?);
    }
    for killed in file.killed_origins {
        faults.killed_origins.push(killed_origin(plan, killed)?);
    }
    for outage in file.outages {
        faults.outages.push(self::outage(outage)?);
    }
    faults.churn = file.churn.map(churn).transpose()?;
    faults.partition = file.partition.map(partition).transpose()?;
    Ok(faults)
}

fn crash(plan: &Plan, file: CrashFile) -> Result<Crash, Fault> {
    Ok(Crash {
        agent: index(&file.host, plan.agents, "hosts")?,
        at: file.at_seconds.into(),
        silent: file.silent,
        back_after: file.back_after_seconds.map(Into::into),
        hand_over: file.hand_over_seconds.map_or(Duration::ZERO, Into::into),
    })
}

fn killed_origin(plan: &Plan, file: KilledOriginFile) -> Result<KilledOrigin, Fault> {
    Ok(KilledOrigin {
        origin: index(&file.origin, plan.origins, "origins")?,
        at: file.at_seconds.into(),
        silent: file.silent,
        back_after: file.back_after_seconds.map(Into::into),
    })
}

fn outage(file: Spanned<OutageFile>) -> Result<Range<Duration>, Fault> {
    let span = file.span();
    let OutageFile {
        from_seconds,
        to_seconds,
    } = file.into_inner();
    match to_seconds {
        Some(to_seconds) => during(from_seconds, to_seconds, span),
        // For longer than any plan.
        None => Ok(from_seconds.into()..Duration::MAX),
    }
}

fn churn(file: Spanned<ChurnFile>) -> Result<Churn, Fault> {
    let span = file.span();
    let file = file.into_inner();
    Ok(Churn {
        share: file.share.into(),
        during: during(file.from_seconds, file.to_seconds, span)?,
        silent: file.silent.map_or(0.0, Into::into),
        back_after: file.back_after_seconds.map(Into::into),
        hand_over: file.hand_over_seconds.map_or(Duration::ZERO, Into::into),
    })
}

fn partition(file: Spanned<PartitionFile>) -> Result<Partition, Fault> {
    let span = file.span();
    let file = file.into_inner();
    Ok(Partition {
        share: file.share.into(),
        during: during(file.from_seconds, file.to_seconds, span)?,
    })
}

/// The number of a host or an origin, which must exist.
fn index(file: &Index, len: usize, of: &str) -> Result<usize, Fault> {
    let index: usize = (*file.get_ref()).into();
    if index < len {
        return Ok(index);
    }
    let what = match len.checked_sub(1) {
        Some(last) => format!("there is no {index} among the {of}: they go from 0 to {last}"),
        None => format!("there is no {index} among the {of}: the plan has none"),
    };
    let span = file.span();
    Err(Fault { span, what })
}

fn during(from: Seconds, to: Seconds, span: Range<usize>) -> Result<Range<Duration>, Fault> {
    if from.0 < to.0 {
        return Ok(from.into()..to.into());
    }
    let (from, to) = (from.0, to.0);
    let what = format!("to_seconds ({to}) must come after from_seconds ({from})");
    Err(Fault { span, what })
}
