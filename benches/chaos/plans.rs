//! What goes wrong in which order, plan by plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kraken_core::Digest;
use kraken_core::proto::rng::Rng;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::{Cluster, Role};
use crate::faults::Fault;
use crate::load::{self, Acknowledged, Shared, Target};
use crate::net::Wrong;
use crate::{Options, Outcome, Plan, answers};

/// What a plan did, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Played {
    pub(crate) faults: BTreeMap<&'static str, usize>,
    pub(crate) restored: Option<Restored>,
    pub(crate) spread: Option<Spread>,
    pub(crate) minority: Option<Minority>,
    pub(crate) joined: Option<Joined>,
}

impl Played {
    /// Whether what the plan is there to show was seen; the rest is in the report.
    pub(crate) fn is_shown(&self) -> bool {
        let spread = self.spread.as_ref();
        let minority = self.minority.as_ref();
        let joined = self.joined.as_ref();
        spread.is_none_or(|it| it.blobs > 0 && it.copies_after > it.copies_before)
            && minority.is_none_or(|it| it.pushes_acknowledged == 0 && it.pushes_refused > 0)
            && minority.is_none_or(|it| it.pulls_served > 0 && it.pulls_failed == 0)
            && joined.is_none_or(|it| it.moved > 0)
    }
}

pub(crate) async fn play(
    options: &Options,
    cluster: &mut Cluster,
    book: &Shared,
) -> Outcome<Played> {
    let mut played = Played::default();
    match options.plan {
        Plan::Random => played.faults = trouble(options, cluster, book).await?,
        Plan::Rolling => played.faults = roll(cluster, book).await?,
        Plan::TwoOrigins => {
            played.restored = Some(lose_two(cluster, book).await?);
            played.faults.insert("kill", 2);
        }
        Plan::NoTrackers => played.faults = lose_trackers(cluster, book).await?,
        Plan::NoOrigins => {
            let (faults, spread) = lose_origins(cluster, book).await?;
            (played.faults, played.spread) = (faults, Some(spread));
        }
        Plan::Minority => {
            played.minority = Some(part(cluster, book).await?);
            played.faults.insert("partition", 1);
        }
        Plan::Join => played.joined = Some(join(cluster, book).await?),
    }
    Ok(played)
}

/// How long all of one kind are dead.
const DEAD: Duration = Duration::from_secs(60);

fn of(cluster: &Cluster, role: Role) -> Vec<usize> {
    let members = cluster.members.iter().enumerate();
    let of = members.filter(|(_, member)| member.role == role);
    of.map(|(at, _)| at).collect()
}

/// SIGKILL to all of one kind.
fn kill_all(cluster: &mut Cluster, role: Role, book: &Shared) -> Outcome<Vec<usize>> {
    let all = of(cluster, role);
    for at in &all {
        eprintln!("kill {}", cluster.members[*at].name);
        load::open(book).fault_began(*at);
        cluster.kill(*at)?;
    }
    Ok(all)
}

async fn start_again(cluster: &mut Cluster, all: &[usize], book: &Shared) -> Outcome<()> {
    for at in all {
        cluster.start(*at)?;
    }
    for at in all {
        answers(&cluster.members[*at]).await?;
        load::open(book).fault_ended(*at);
    }
    Ok(())
}

/// Pushes and pulls go on while no tracker answers: whoever wants a blob asks peers that it knows.
async fn lose_trackers(
    cluster: &mut Cluster,
    book: &Shared,
) -> Outcome<BTreeMap<&'static str, usize>> {
    let trackers = kill_all(cluster, Role::Tracker, book)?;
    sleep(DEAD).await;
    start_again(cluster, &trackers, book).await?;
    Ok(BTreeMap::from([("kill", trackers.len())]))
}

/// What became of the blobs that agents held when all origins died.
#[derive(Debug, Serialize)]
pub(crate) struct Spread {
    blobs: usize,
    /// How many agents held them, summed up, then and a minute later.
    copies_before: usize,
    copies_after: usize,
}

/// Blobs that are pulled while no origin lives.
const HELD: usize = 60;

async fn lose_origins(
    cluster: &mut Cluster,
    book: &Shared,
) -> Outcome<(BTreeMap<&'static str, usize>, Spread)> {
    load::open(book).pushes_rest = true;
    // What is being pushed ends, and what is being pulled.
    sleep(Duration::from_secs(10)).await;
    let agents = of(cluster, Role::Agent);
    let copies = |image: &Acknowledged| {
        let members = agents.iter().map(|at| &cluster.members[*at]);
        members.filter_map(|it| it.blob_bytes(image.blob)).count()
    };
    // Those that few have, first.
    let mut held: Vec<_> = load::open(book).acknowledged.clone();
    held.retain(|image| copies(image) > 0);
    held.sort_by_key(copies);
    held.truncate(HELD);
    load::open(book).only = Some(Vec::new());
    // Pulls end.
    sleep(Duration::from_secs(5)).await;
    let copies_before = held.iter().map(copies).sum();
    let origins = kill_all(cluster, Role::Origin, book)?;
    // And trackers that never heard what these blobs consist of.
    let trackers = kill_all(cluster, Role::Tracker, book)?;
    start_again(cluster, &trackers, book).await?;
    load::open(book).only = Some(held.clone());
    sleep(DEAD).await;
    let copies = |image: &Acknowledged| {
        let members = agents.iter().map(|at| &cluster.members[*at]);
        members.filter_map(|it| it.blob_bytes(image.blob)).count()
    };
    let spread = Spread {
        blobs: held.len(),
        copies_before,
        copies_after: held.iter().map(copies).sum(),
    };
    start_again(cluster, &origins, book).await?;
    load::open(book).only = None;
    load::open(book).pushes_rest = false;
    sleep(Duration::from_secs(10)).await;
    let faults = BTreeMap::from([("kill", origins.len() + trackers.len())]);
    Ok((faults, spread))
}

/// What a minority did while it was alone.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Minority {
    /// Blobs that its proxy did not acknowledge: most owners are on the other side.
    pushes_refused: usize,
    pushes_acknowledged: usize,
    /// Pulls through its agent of blobs that it had, or the origin alone.
    pulls_served: usize,
    pulls_failed: usize,
}

/// How long a minority is alone.
const ALONE: Duration = Duration::from_secs(60);

async fn part(cluster: &mut Cluster, book: &Shared) -> Outcome<Minority> {
    let first = |role| of(cluster, role).into_iter().next();
    let minority = [Role::Origin, Role::Proxy, Role::Agent].map(first);
    let [Some(origin), Some(proxy), Some(agent)] = minority else {
        return Err("a minority needs an origin, a proxy and an agent".into());
    };
    let held: Vec<_> = {
        let acknowledged = load::open(book).acknowledged.clone();
        let has = |at: usize, blob: Digest| cluster.members[at].blob_bytes(blob).is_some();
        let (here, there): (Vec<_>, Vec<_>) = acknowledged
            .into_iter()
            .filter(|it| has(origin, it.blob))
            .partition(|it| has(agent, it.blob));
        // Those of the agent one by one with those that it has to get.
        let mixed = here.into_iter().rev().zip(there.into_iter().rev());
        mixed.flat_map(|(here, there)| [here, there]).collect()
    };
    let alone = [origin, proxy, agent];
    let others: Vec<_> = (0..cluster.members.len())
        .filter(|at| !alone.contains(at))
        .map(|at| cluster.members[at].host)
        .collect();
    for at in alone {
        load::open(book).fault_began(at);
        let host = cluster.members[at].host;
        cluster.net.set(host, &Wrong::Apart(others.clone()), true)?;
    }
    let targets = [proxy, agent].map(|at| Target {
        at,
        http: cluster.members[at].http(),
    });
    let until = Instant::now() + ALONE;
    let [at_proxy, at_agent] = &targets;
    let (pushes, pulls) = tokio::join!(
        push_alone(&at_proxy.http, until),
        pull_alone(&at_agent.http, until, &held, book)
    );
    let seen = Minority {
        pushes_refused: pushes.0,
        pushes_acknowledged: pushes.1,
        pulls_served: pulls.0,
        pulls_failed: pulls.1,
    };
    for at in alone {
        let host = cluster.members[at].host;
        cluster
            .net
            .set(host, &Wrong::Apart(others.clone()), false)?;
        load::open(book).fault_ended(at);
    }
    sleep(Duration::from_secs(10)).await;
    Ok(seen)
}

/// How many pushes were refused and how many acknowledged.
async fn push_alone(proxy: &str, until: Instant) -> (usize, usize) {
    let mut rng = Rng::seeded(77);
    let (mut refused, mut acknowledged) = (0, 0);
    while Instant::now() < until {
        match load::push_blob(proxy, &mut rng).await {
            Ok(()) => acknowledged += 1,
            Err(_) => refused += 1,
        }
        sleep(Duration::from_secs(1)).await;
    }
    (refused, acknowledged)
}

/// How many pulls were served and how many failed.
async fn pull_alone(
    agent: &str,
    until: Instant,
    held: &[Acknowledged],
    book: &Shared,
) -> (usize, usize) {
    let (mut served, mut failed) = (0, 0);
    for image in held {
        if Instant::now() > until {
            break;
        }
        match load::pull_blob(agent, image.blob).await {
            Ok(true) => served += 1,
            Ok(false) => load::open(book).wrong += 1,
            Err(error) => {
                load::open(book).reasons.push(format!("alone: {error}"));
                failed += 1;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    (served, failed)
}

/// What moved when an origin joined.
#[derive(Debug, Serialize)]
pub(crate) struct Joined {
    /// Blobs that were there before.
    blobs: usize,
    /// Copies of them before, over all origins.
    copies: usize,
    /// Copies that the new one got, and the share of all that it is; one of `n` origins is to get
    /// one `n`th.
    moved: usize,
    moved_share: f64,
    /// Copies that others let go meanwhile.
    handed_over: usize,
    seconds: f64,
}

/// Longer than a round of an origin's look after its share.
const QUIET_ROUNDS: Duration = Duration::from_secs(90);
/// How long an origin that joins may take until it has what is its own.
const SETTLE: Duration = Duration::from_secs(300);

async fn join(cluster: &mut Cluster, book: &Shared) -> Outcome<Joined> {
    let origins = of(cluster, Role::Origin);
    let (new, old) = origins.split_last().ok_or("no origin")?;
    let before: Vec<_> = load::open(book).acknowledged.clone();
    let on = |cluster: &Cluster, at: usize| -> BTreeSet<Digest> {
        let has = |it: &&Acknowledged| cluster.members[at].blob_bytes(it.blob).is_some();
        before.iter().filter(has).map(|it| it.blob).collect()
    };
    let count = |cluster: &Cluster| old.iter().map(|at| on(cluster, *at).len()).sum::<usize>();
    let copies = count(cluster);
    eprintln!("{} joins", cluster.members[*new].name);
    cluster.list_origins(origins.len())?;
    cluster.start(*new)?;
    answers(&cluster.members[*new]).await?;
    let began = Instant::now();
    let (mut last, mut since) = (usize::MAX, Instant::now());
    // Until nothing has moved for a while.
    while since.elapsed() < QUIET_ROUNDS {
        if began.elapsed() > SETTLE {
            return Err("blobs still move after five minutes".into());
        }
        let now = on(cluster, *new).len() * 100_000 + count(cluster);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        sleep(Duration::from_secs(1)).await;
    }
    let moved = on(cluster, *new).len();
    Ok(Joined {
        blobs: before.len(),
        copies,
        moved,
        moved_share: moved as f64 / copies.max(1) as f64,
        handed_over: copies.saturating_sub(count(cluster)),
        seconds: (since - began).as_secs_f64(),
    })
}

/// Restarts each process in good order, one after the other. Those that clients connect to find their
/// sockets again.
async fn roll(cluster: &mut Cluster, book: &Shared) -> Outcome<BTreeMap<&'static str, usize>> {
    load::open(book).excuses_none = true;

    for at in 0..cluster.members.len() {
        eprintln!("restart {}", cluster.members[at].name);
        load::open(book).fault_began(at);
        cluster.stop(at)?;
        cluster.start(at)?;
        answers(&cluster.members[at]).await?;
        load::open(book).fault_ended(at);
        sleep(Duration::from_secs(5)).await;
    }
    Ok(BTreeMap::from([("restart", cluster.members.len())]))
}

/// What it took to have all copies again.
#[derive(Debug, Serialize)]
pub(crate) struct Restored {
    blobs: usize,
    bytes: u64,
    seconds: f64,
}

/// How long copies may take to be made again.
const RESTORE: Duration = Duration::from_secs(300);

async fn lose_two(cluster: &mut Cluster, book: &Shared) -> Outcome<Restored> {
    let before = load::open(book).acknowledged.clone();
    let origins = cluster
        .members
        .iter()
        .filter(|it| it.role == Role::Origin)
        .count();
    let began = Instant::now();
    for at in 0..2 {
        eprintln!("kill {}", cluster.members[at].name);
        load::open(book).fault_began(at);
        cluster.kill(at)?;
    }
    let living = &cluster.members[2..origins];
    let copies = |digest| {
        living
            .iter()
            .filter_map(|it| it.blob_bytes(digest))
            .collect::<Vec<_>>()
    };
    let at_first: usize = before.iter().map(|image| copies(image.blob).len()).sum();
    loop {
        let left = before
            .iter()
            .filter(|image| copies(image.blob).len() < 3)
            .count();
        if left == 0 {
            break;
        }
        if began.elapsed() > RESTORE {
            return Err(format!("{left} blobs do not have three copies").into());
        }
        sleep(Duration::from_millis(500)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (mut bytes, mut at_last) = (0, 0);
    for image in &before {
        let copies = copies(image.blob);
        at_last += copies.len();
        bytes += copies.first().copied().unwrap_or(0);
    }
    let made = at_last.saturating_sub(at_first) as u64;
    Ok(Restored {
        blobs: before.len(),
        bytes: bytes / (before.len().max(1) as u64) * made,
        seconds,
    })
}

/// One fault after the other; one ends before the next begins.
async fn trouble(
    options: &Options,
    cluster: &mut Cluster,
    book: &Shared,
) -> Outcome<BTreeMap<&'static str, usize>> {
    let mut rng = Rng::seeded(options.seed);
    let mut faults = BTreeMap::<&'static str, usize>::new();
    let end = Instant::now() + Duration::from_secs(60 * options.minutes);
    for number in 0.. {
        let next = Instant::now() + Duration::from_secs(options.every);
        if next > end {
            break;
        }
        let fault = Fault::draw(&mut rng, number, &cluster.members);
        eprintln!(
            "{} {} {:?}",
            fault.kind.name(),
            cluster.members[fault.at].name,
            fault.lasts
        );
        load::open(book).fault_began(fault.at);
        let lasting = fault.begin(cluster)?;
        sleep(fault.lasts).await;
        fault.end(cluster)?;
        // What a delay holds up is let through before it ends.
        sleep(Duration::from_millis(100)).await;
        if let Some(lasting) = lasting {
            lasting.end()?;
        }
        load::open(book).fault_ended(fault.at);
        *faults.entry(fault.kind.name()).or_default() += 1;
        sleep_until(next).await;
    }
    Ok(faults)
}
