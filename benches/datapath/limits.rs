//! Whether a limit holds, and what it costs.
//!
//! The rates are those of two agents, one that has a blob and one that fetches it over QUIC, with
//! the limit at either: how far the bytes of any two seconds are from it. The cost is that of the
//! limit alone, with eight pieces that pass at once and nothing else to do.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use clap::Args;
use kraken_benches::rate::Watched;
use kraken_core::net::{Quic, Throttle, Transport as _};
use kraken_core::{Agent, Digest, Limits, MetaInfo, PeerInfo};

use crate::Outcome;
use crate::lab::{self, Lab};
use crate::made::{self, MadeStore};
use crate::measure::{Measure, median};
use crate::peers::{Named, crowd_name};
use crate::process::{self, Child, cpu_seconds};

const MB: u64 = 1_000_000;
const RATES: [u64; 2] = [20 * MB, 300 * MB];
const WINDOW: Duration = Duration::from_secs(2);
/// How long each is watched.
const WATCH: Duration = Duration::from_secs(5);
/// What the first moments are: connections, and the buckets' first filling.
const SETTLE: Duration = Duration::from_secs(1);
/// The most that any window may be off, and that the limit may take of a core.
const BOUND: f64 = 0.02;
const PIECES: usize = 8;

pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut measures = Vec::new();
    for rate in RATES {
        // More than passes meanwhile.
        let meta = made::meta(rate * 2 * WATCH.as_secs());
        for side in [Side::Upload, Side::Download] {
            let off = || runtime.block_on(transfer(lab, &meta, rate, side));
            let name = format!("limits/{}-{}", side.name(), rate / MB);
            let off = repeated(lab, &name, off)?;
            measures.push(within(name, "off its rate", off));
        }
        let name = format!("limits/cost-{}", rate / MB);
        let cost = repeated(lab, &name, || alone(rate))?;
        measures.push(within(name, "of a core", cost));
    }
    Ok(measures)
}

fn within(name: String, unit: &'static str, ours: Option<f64>) -> Measure {
    Measure::of(name, unit, (ours, Some(BOUND)), 1.0).note("peer: the bound")
}

fn repeated(lab: &Lab, name: &str, run: impl Fn() -> Outcome<f64>) -> Outcome<Option<f64>> {
    let mut samples = Vec::new();
    for round in 0..lab.effort.repeats {
        let sample = run()?;
        eprintln!("  round {round}: {name} {sample:.4}");
        samples.push(sample);
    }
    Ok(median(samples))
}

#[derive(Clone, Copy)]
enum Side {
    Upload,
    Download,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }

    fn limits(self, rate: u64) -> Limits {
        let rate = NonZeroU64::new(rate);
        match self {
            Self::Upload => Limits::NONE.with_upload(rate),
            Self::Download => Limits::NONE.with_download(rate),
        }
    }
}

/// How far the window that is farthest from the rate is from it.
async fn transfer(lab: &Lab, meta: &MetaInfo, rate: u64, side: Side) -> Outcome<f64> {
    let limits = side.limits(rate);
    let (seeder, sender) = agent(lab, (0, meta), Vec::new(), limits)?;
    seeder.seed_all().await?;
    let (leecher, receiver) = agent(lab, (1, meta), vec![seeder.local().clone()], limits)?;
    drop(leecher.open(meta.digest()).await?);
    tokio::time::sleep(SETTLE).await;
    let watched = Watched::of(WATCH, WINDOW, || match side {
        Side::Upload => sender.throttle().upload().passed(),
        Side::Download => receiver.throttle().download().passed(),
    });
    let watched = watched.await;
    leecher.shutdown().await;
    seeder.shutdown().await;
    Ok(watched.off(rate))
}

fn agent(
    lab: &Lab,
    (number, meta): (usize, &MetaInfo),
    peers: Vec<PeerInfo>,
    limits: Limits,
) -> Outcome<(Agent, Quic)> {
    let identity = lab::identity(lab.path(), &crowd_name(number))?;
    let quic = Quic::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &identity)?;
    let store = MadeStore::new(meta.clone(), peers.is_empty());
    let meta = meta.clone();
    let builder = Agent::builder(store, quic.clone()).discovery(Named { meta, peers });
    Ok((builder.limits(limits).spawn()?, quic))
}

fn alone(rate: u64) -> Outcome<f64> {
    let mut child = Child::role(["limit", &rate.to_string()])?;
    Ok(child.hear("share")?.concat().parse()?)
}

/// Only a limit, and those who want to pass.
#[derive(Args)]
pub(crate) struct Limit {
    rate: NonZeroU64,
}

impl Limit {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("limit", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let throttle = Throttle::new();
        throttle.upload().set_rate(Some(self.rate));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(throttle.clone().run());
        for piece in 0..PIECES {
            let passage = throttle.upload().piece(Digest::of(&[0]), piece == 0);
            tasks.spawn(async move {
                loop {
                    passage.pass(passage.chunk()).await;
                }
            });
        }
        tokio::time::sleep(SETTLE).await;
        let (before, begun) = (cpu_seconds(), Instant::now());
        tokio::time::sleep(WATCH).await;
        let share = (cpu_seconds() - before) / begun.elapsed().as_secs_f64();
        println!("share {share}");
        Ok(())
    }
}
