//! Whether tags keep what is promised of them while build-indexes die, hang, lose their disks and are replaced:
//! many clients write down what they asked and were answered, and afterwards an order is searched that explains it.
//!
//! `cargo run --release -p kraken-benches --bin linear -- --seconds 120 --clients 16 --seed 1 [--json]`. It needs no
//! rights: an origin and four build-indexes run at loopback, of which three are on the list, with mutual TLS.
//! What is checked is in `kraken_benches::linearizability`. It ends with 1 when something was violated.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring tool"
)]

mod clients;
mod cluster;
mod faults;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kraken_benches::linearizability::{Answered, Asked, Operation, check};
use kraken_benches::process::{Outcome, end_with_parent, exit_code, on_runtime};
use kraken_core::proto::rng::Rng;
use kraken_daemon::{build_index, origin, process};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use clients::{Client, Seen, Shared};
use cluster::{Cluster, INDEXES};
use faults::Faults;

/// Tags under faults, and whether what clients saw can be.
#[derive(Debug, Parser)]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// How many clients, each with one request at a time.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// How many tags.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    tags: u16,
    /// Where all chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the processes keep what they have, and their logs; a temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A file to which all operations are written, one JSON object a line.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Checks the operations of such a file again, and runs nothing.
    #[arg(long)]
    check: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// In a child: which process it is.
    #[arg(long, hide = true, requires = "config")]
    role: Option<Role>,
    /// In a child: its configuration.
    #[arg(long, hide = true)]
    config: Option<PathBuf>,
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Origin,
    BuildIndex,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::BuildIndex => "build-index",
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Report {
    operations: usize,
    /// Histories among them.
    reads: usize,
    puts: usize,
    removes: usize,
    refused: usize,
    /// Puts and removes without an answer.
    unknown: usize,
    #[serde(flatten)]
    faults: Faults,
    /// States that were seen, and places where there may have been others.
    states: usize,
    gaps: usize,
    /// Steps of the searches, and tags for which one was given up.
    steps: usize,
    undecided: usize,
    /// Answers that nothing explains, such as that an image is not there.
    odd: Vec<String>,
    /// Processes that ended by themselves, or did not when they were asked to.
    ended: usize,
    violations: usize,
    found: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ran = on_runtime(async {
        match (options.role, &options.config) {
            (Some(role), Some(config)) => be(role, config).await.map(|()| true),
            _ => tokio::select! {
                ran = run(&options) => ran,
                // What was started ends with the cluster.
                () = process::stop_signal() => Err("stopped by a signal".into()),
            },
        }
    });
    exit_code("linear", ran)
}

/// In a child: the life of one process.
async fn be(role: Role, config: &Path) -> Outcome<()> {
    process::init_log("info");
    end_with_parent()?;
    match role {
        Role::Origin => process::run_until_signal(config, origin::start).await?,
        Role::BuildIndex => process::run_until_signal(config, build_index::start).await?,
    }
    Ok(())
}

async fn run(options: &Options) -> Outcome<bool> {
    if let Some(path) = &options.check {
        let operations = recorded(path)?;
        let seen = Seen {
            operations,
            ..Seen::default()
        };
        let report = report(seen);
        return printed(options, &report);
    }
    let scratch = tempfile::tempdir()?;
    let dir = options.dir.as_deref().unwrap_or_else(|| scratch.path());
    std::fs::create_dir_all(dir)?;
    let mut cluster = Cluster::start(dir).await?;
    let (listed, watched) = watch::channel(cluster.listed.iter().copied().collect());
    let shared = Shared {
        http: cluster.http.clone(),
        urls: (0..INDEXES).map(|at| cluster.url(at)).collect(),
        origin: cluster.origin(),
        listed: watched,
        zero: Instant::now(),
        tags: options.tags.into(),
    };
    let (stop, stopped) = watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..options.clients {
        let seed = options.seed * 1000 + number as u64 + 1;
        let client = Client::new(shared.clone(), number, seed);
        clients.spawn(client.work(stopped.clone()));
    }
    let rng = Rng::seeded(options.seed * 1000);
    let lasts = Duration::from_secs(options.seconds);
    let faults = faults::play(&mut cluster, rng, (lasts, &listed)).await;
    stop.send_replace(true);
    let mut seen = Seen::default();
    while let Some(client) = clients.join_next().await {
        let one = client??;
        seen.operations.extend(one.operations);
        seen.odd.extend(one.odd);
    }
    // What was seen until then may say why.
    if let Ok(faults) = &faults {
        let indexes: Vec<_> = cluster.listed.iter().copied().collect();
        let last = Client::new(shared, options.clients, options.seed)
            .look(&indexes)
            .await?;
        seen.operations.extend(last.operations);
        eprintln!("linear: {faults:?}");
    }
    if let Some(path) = &options.record {
        record(path, &seen.operations)?;
    }
    let mut report = report(seen);
    report.ended = cluster.ended();
    let why = faults.as_ref().err().map(ToString::to_string);
    report.faults = faults.unwrap_or_default();
    let is_kept = printed(options, &report)?;
    match why {
        Some(why) => Err(why.into()),
        None => Ok(is_kept),
    }
}

/// Prints a report; whether it is a good one.
fn printed(options: &Options, report: &Report) -> Outcome<bool> {
    if options.json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        println!("{report:#?}");
    }
    let is_kept = report.violations == 0 && report.undecided == 0 && report.odd.is_empty();
    Ok(is_kept && report.ended == 0 && report.operations > 0)
}

fn record(path: &Path, operations: &[(usize, Operation)]) -> Outcome<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for operation in operations {
        writeln!(file, "{}", serde_json::to_string(operation)?)?;
    }
    Ok(file.flush()?)
}

fn recorded(path: &Path) -> Outcome<Vec<(usize, Operation)>> {
    let text = std::fs::read_to_string(path)?;
    let operations = text.lines().map(serde_json::from_str);
    Ok(operations.collect::<Result<_, _>>()?)
}

fn report(seen: Seen) -> Report {
    let count =
        |fits: fn(&Operation) -> bool| seen.operations.iter().filter(|(_, it)| fits(it)).count();
    let mut report = Report {
        operations: seen.operations.len(),
        reads: count(|it| matches!(it.asked, Asked::Read | Asked::History)),
        puts: count(|it| {
            matches!(
                it.asked,
                Asked::Set {
                    digest: Some(_),
                    ..
                }
            )
        }),
        removes: count(|it| matches!(it.asked, Asked::Set { digest: None, .. })),
        refused: count(|it| matches!(it.answered, Answered::Refused(_))),
        unknown: count(|it| it.answered == Answered::Unknown),
        odd: seen.odd,
        ..Report::default()
    };
    let mut by_tag = BTreeMap::<_, Vec<_>>::new();
    for (tag, operation) in seen.operations {
        by_tag.entry(tag).or_default().push(operation);
    }
    for (tag, operations) in by_tag {
        let checked = check(&operations);
        report.states += checked.states;
        report.gaps += checked.gaps;
        report.steps += checked.steps;
        report.undecided += usize::from(checked.is_undecided);
        report.violations += checked.violations.len();
        let told = checked.violations.iter().take(TOLD);
        let told = told.map(|it| format!("v{tag}: {:?}: {}", it.kind, it.what));
        report.found.extend(told);
    }
    report
}

/// Violations of one tag that are told.
const TOLD: usize = 10;
