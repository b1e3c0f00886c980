//! A cluster of real processes, each at a host of its own, under faults: what was acknowledged must
//! be there in the end, and no byte may be wrong.
//!
//! `cargo run --release -p kraken-benches --bin chaos -- --minutes 10 --seed 1 [--json]`, as root: it
//! makes network namespaces, which go when it ends. Every five seconds something goes wrong for one
//! to four seconds, drawn from the seed; the kinds take turns.
//!
//! A pull or a push counts as failed when the process that was asked was well: a client cannot be
//! helped by an agent that is dead. Acknowledged blobs and tags are looked for in the end, through
//! agents and proxies.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring tool"
)]

mod cluster;
mod delay;
mod disk;
mod faults;
mod load;
mod net;
mod plans;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures::StreamExt as _;
use kraken_benches::process::{Outcome, end_with_parent, exit_code, on_runtime};
use kraken_daemon::{agent, build_index, origin, process, proxy, tracker};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use cluster::{Cluster, Member, Role, Sizes};
use load::{Attempt, Book, Shared, Target};
use plans::{Joined, Minority, Played, Restored, Spread};

/// A cluster under faults.
#[derive(Debug, Parser)]
struct Options {
    /// How long, after a quiet minute.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Where all chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What goes wrong.
    #[arg(long, value_enum, default_value_t = Plan::Random)]
    plan: Plan,
    /// How many origins; each blob has three copies.
    #[arg(long, default_value_t = 3)]
    origins: usize,
    /// How many trackers.
    #[arg(long, default_value_t = 2)]
    trackers: usize,
    /// How many build-indexes; each tag has three copies.
    #[arg(long, default_value_t = 3)]
    build_indexes: usize,
    /// How many agents.
    #[arg(long, default_value_t = 8)]
    agents: usize,
    /// Seconds from one fault to the next.
    #[arg(long, default_value_t = 5)]
    every: u64,
    /// Where the processes keep what they have, and their logs; a temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// In a child: which process it is.
    #[arg(long, hide = true, requires = "config")]
    role: Option<Role>,
    /// In a child: its configuration.
    #[arg(long, hide = true)]
    config: Option<PathBuf>,
    /// In a child: to hold up what arrives for so many milliseconds.
    #[arg(long, hide = true)]
    delay: Option<u64>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Plan {
    /// One fault after the other, drawn from the seed.
    Random,
    /// Two origins are killed at once and stay dead; how long until each blob has its copies again.
    TwoOrigins,
    /// Each process is restarted in turn, in good order.
    Rolling,
    /// All trackers are dead for a minute.
    NoTrackers,
    /// All origins are dead for a minute, and the trackers forget what they knew; what agents hold is
    /// pulled.
    NoOrigins,
    /// One origin with a proxy and an agent is cut off from all the others for a minute.
    Minority,
    /// An origin joins the others under load.
    Join,
}

#[derive(Debug, Serialize)]
struct Report {
    faults: BTreeMap<&'static str, usize>,
    /// Whether what the plan is there to show was seen.
    is_shown: bool,
    /// Blobs and tags.
    acknowledged: usize,
    lost: usize,
    wrong: usize,
    /// Processes that ended by themselves, or did not when they were asked to.
    ended: usize,
    pulls: usize,
    failed_pulls: usize,
    /// Of processes that something was wrong with.
    failed_pulls_at_faults: usize,
    pushes: usize,
    failed_pushes: usize,
    failed_pushes_at_faults: usize,
    pull_p99_quiet_s: f64,
    pull_p99_fault_s: f64,
    pull_p99_ratio: f64,
    /// Through agents that nothing was wrong with themselves.
    pull_p99_well_s: f64,
    push_p99_quiet_s: f64,
    push_p99_fault_s: f64,
    /// From the death of two origins until all that was acknowledged before had three copies again,
    /// and what was copied for it, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<Restored>,
    /// What became of the blobs that agents held when all origins died.
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<Spread>,
    /// What a minority did while it was alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    minority: Option<Minority>,
    /// What moved when an origin joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    joined: Option<Joined>,
    /// From the end of the load until all that was acknowledged was found.
    converged_s: f64,
    reasons: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ran = match (options.role, &options.config) {
        _ if options.delay.is_some() => {
            let delay = options.delay.unwrap_or_default();
            delay::hold_up(Duration::from_millis(delay)).map(|()| true)
        }
        (Some(role), Some(config)) => on_runtime(be(role, config)).map(|()| true),
        _ => run(&options),
    };
    exit_code("chaos", ran)
}

/// In a child: the life of one process.
async fn be(role: Role, config: &Path) -> Outcome<()> {
    process::init_log("info");
    end_with_parent()?;
    match role {
        Role::Origin => process::run_until_signal(config, origin::start).await?,
        Role::Tracker => process::run_until_signal(config, tracker::start).await?,
        Role::BuildIndex => process::run_until_signal(config, build_index::start).await?,
        Role::Proxy => process::run_until_signal(config, proxy::start).await?,
        Role::Agent => process::run_until_signal(config, agent::start).await?,
    }
    Ok(())
}

fn run(options: &Options) -> Outcome<bool> {
    let scratch = tempfile::tempdir()?;
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| scratch.path().to_path_buf());
    std::fs::create_dir_all(&dir)?;
    let sizes = Sizes {
        origins: options.origins,
        trackers: options.trackers,
        build_indexes: options.build_indexes,
        proxies: 2,
        agents: options.agents,
        // What is pushed in random faults is more: blobs go and come again.
        agent_store: if options.plan == Plan::Random {
            "200MB"
        } else {
            "2GB"
        },
        joins_later: options.plan == Plan::Join,
    };
    let mut cluster = Cluster::new(&dir, sizes)?;
    if faults::clock_library().is_none() {
        eprintln!("no clock will go wrong: install libfaketime for that");
    }
    if options.plan == Plan::Rolling {
        cluster.keep_sockets()?;
    }
    for at in cluster.first() {
        cluster.start(at)?;
    }
    // Before any other thread begins: they are where the first one is.
    cluster.net.enter(cluster.outside())?;
    let report = on_runtime(async {
        tokio::select! {
            report = play(options, cluster) => report,
            // What was started ends with the cluster.
            () = process::stop_signal() => Err("stopped by a signal".into()),
        }
    })?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report:#?}");
    }
    let is_kept = report.lost == 0 && report.wrong == 0 && report.acknowledged > 0;
    let is_kept = is_kept && report.is_shown;
    Ok(is_kept && report.ended == 0)
}

/// How long the cluster runs before the first fault.
const QUIET: Duration = Duration::from_secs(60);
/// How long it may take to find all that was acknowledged when nothing is wrong any more.
const CONVERGE: Duration = Duration::from_secs(300);

async fn play(options: &Options, mut cluster: Cluster) -> Outcome<Report> {
    if options.plan == Plan::TwoOrigins && options.origins < 5 {
        return Err("two of five: give --origins 5".into());
    }
    if options.plan == Plan::Join && options.origins < 4 {
        return Err("one joins three others: give --origins 4".into());
    }
    for at in cluster.first() {
        answers(&cluster.members[at]).await?;
    }
    let book = Shared::default();
    let targets = |role: Role| -> Vec<_> {
        let members = cluster.members.iter().enumerate();
        let of = members.filter(|(_, member)| member.role == role);
        of.map(|(at, member)| Target {
            at,
            http: member.http(),
        })
        .collect()
    };
    let (proxies, agents) = (targets(Role::Proxy), targets(Role::Agent));
    let mut load = tokio::task::JoinSet::new();
    for number in 0..2 {
        let seed = options.seed * 1000 + number;
        load.spawn(load::push(book.clone(), proxies.clone(), seed));
    }
    for number in 2..6 {
        let seed = options.seed * 1000 + number;
        load.spawn(load::pull(book.clone(), agents.clone(), seed));
    }
    sleep(QUIET).await;
    let outcome = plans::play(options, &mut cluster, &book).await?;
    let load_ended = load.try_join_next().is_some();
    load.shutdown().await;
    let began = Instant::now();
    let lost = missing(&book, &agents, &proxies).await;
    let converged_s = began.elapsed().as_secs_f64();
    let book = std::mem::take(&mut *load::open(&book));
    let is_shown = outcome.is_shown();
    let mut report = report(&book, outcome, (lost, converged_s));
    let failed = match options.plan {
        Plan::Random => 0,
        Plan::Rolling => report.failed_pulls + report.failed_pushes,
        _ => report.failed_pulls,
    };
    report.is_shown = is_shown && failed == 0;
    report.ended = cluster.ended();
    if load_ended {
        return Err("a client of the cluster ended by itself".into());
    }
    Ok(report)
}

/// Looks for all that was acknowledged until all is found, or the time is over; gives how much is not.
async fn missing(book: &Shared, agents: &[Target], proxies: &[Target]) -> usize {
    let mut left = load::open(book).acknowledged.clone();
    let end = Instant::now() + CONVERGE;
    let mut round = 0;
    loop {
        let looks = left.into_iter().enumerate().map(async |(turn, image)| {
            let agent = &agents[(turn + round) % agents.len()];
            let proxy = &proxies[(turn + round) % proxies.len()];
            // Agents may have kept it; a proxy has it from an origin, or from the backend.
            let pulled = timeout(PATIENCE, load::pull_blob(&proxy.http, image.blob)).await;
            let pulled = match pulled {
                Ok(Ok(true)) => timeout(PATIENCE, load::pull_blob(&agent.http, image.blob)).await,
                other => other,
            };
            let tagged = timeout(PATIENCE, load::is_tagged(&proxy.http, &image)).await;
            match (pulled, tagged) {
                (Ok(Ok(true)), Ok(Ok(true))) => None,
                (Ok(Ok(false)), _) | (_, Ok(Ok(false))) => {
                    load::open(book).wrong += 1;
                    None
                }
                _ => Some(image),
            }
        });
        let looks = futures::stream::iter(looks).buffer_unordered(LOOKS);
        left = looks.filter_map(std::future::ready).collect().await;
        if left.is_empty() || Instant::now() > end {
            return left.len();
        }
        round += 1;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Questions in the end at once.
const LOOKS: usize = 8;
/// How long one question in the end may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn report(book: &Book, outcome: Played, (lost, converged_s): (usize, f64)) -> Report {
    let failed = |attempts: &[Attempt], at_fault: bool| {
        let failed = attempts.iter().filter(|it| !it.is_good);
        failed.filter(|it| book.is_excused(it) == at_fault).count()
    };
    let p99 = |attempts: &[Attempt], in_trouble: bool| {
        let good = attempts.iter().filter(|it| it.is_good);
        let of = good.filter(|it| book.was_in_trouble(it) == in_trouble);
        let mut times: Vec<_> = of.map(Attempt::took).collect();
        times.sort_unstable();
        let at = (times.len() * 99 / 100).min(times.len().saturating_sub(1));
        times.get(at).map_or(0.0, Duration::as_secs_f64)
    };
    let well: Vec<_> = book
        .pulls
        .iter()
        .filter(|it| !book.was_hit(it))
        .copied()
        .collect();
    let well = p99(&well, true);
    let (quiet, trouble) = (p99(&book.pulls, false), p99(&book.pulls, true));
    let mut reasons = book.reasons.clone();
    reasons.truncate(20);
    Report {
        faults: outcome.faults,
        is_shown: false,
        acknowledged: book.acknowledged.len(),
        lost,
        wrong: book.wrong,
        ended: 0,
        pulls: book.pulls.len(),
        failed_pulls: failed(&book.pulls, false),
        failed_pulls_at_faults: failed(&book.pulls, true),
        pushes: book.pushes.len(),
        failed_pushes: failed(&book.pushes, false),
        failed_pushes_at_faults: failed(&book.pushes, true),
        pull_p99_quiet_s: quiet,
        pull_p99_fault_s: trouble,
        pull_p99_well_s: well,
        pull_p99_ratio: if quiet > 0.0 { trouble / quiet } else { 0.0 },
        push_p99_quiet_s: p99(&book.pushes, false),
        push_p99_fault_s: p99(&book.pushes, true),
        restored: outcome.restored,
        spread: outcome.spread,
        minority: outcome.minority,
        joined: outcome.joined,
        converged_s,
        reasons,
    }
}

/// Asks a process whether it is there.
async fn asked(member: &Member) -> Outcome<()> {
    let mut stream = TcpStream::connect(member.http()).await?;
    if !member.is_plain() {
        return Ok(());
    }
    let request = "GET /health HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let is_well = answer.starts_with("HTTP/1.1 200");
    is_well.then_some(()).ok_or_else(|| answer.into())
}

/// Waits until a process answers; those that want a certificate need only accept.
pub(crate) async fn answers(member: &Member) -> Outcome<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let asked = timeout(Duration::from_secs(1), asked(member)).await;
        if asked.is_ok_and(|it| it.is_ok()) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{} does not start: see its log", member.name).into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}
