//! Several clusters that copy images to each other, whose processes are killed at random.
//!
//! `cargo run --release -p kraken-benches --bin replication -- --images 1000 [--clusters 3 [--loop]]
//! [--fetches] [--json]`: every origin and build-index is a process of its own on this host; clusters reach each
//! other through relays, which count. Images are pushed to the first cluster while build-indexes of all
//! clusters and origins of those that are copied to are killed and started again. Then all that is to be in
//! the others is looked for, and what is not.
//!
//! `--latest 200`: two clusters copy to each other, and the same tags are pushed in both, while they are cut
//! off from each other time and again.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring tool"
)]

mod check;
mod cluster;
mod faults;
mod images;
mod latest;
mod push;
mod relay;
mod topology;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use comfy_table::{Table, presets};
use kraken_benches::process::{Failure, Outcome, end_with_parent, exit_code, on_runtime};
use kraken_core::net::http::HttpClient;
use kraken_daemon::{build_index, origin, process};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use check::Found;
use cluster::{Client, Cluster, Copying, Ports, Role};
use faults::{Clusters, Kills, open};
use topology::{Direction, EAST, NAMES, Rule};

/// Clusters that copy to each other.
#[derive(Debug, Parser)]
struct Options {
    /// How many clusters, one behind the other.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    clusters: u8,
    /// The second copies back to the first.
    #[arg(long = "loop")]
    is_loop: bool,
    /// How many images are pushed.
    #[arg(long, default_value_t = 1000)]
    images: usize,
    /// Pushes tags in two clusters so often, instead of images.
    #[arg(long, conflicts_with_all = ["clusters", "is_loop", "images"])]
    latest: Option<usize>,
    /// Nothing goes wrong: what is sent beside the blobs themselves.
    #[arg(long, conflicts_with = "latest")]
    calm: bool,
    /// The clusters that lack images fetch them; else those that have them send them.
    #[arg(long)]
    fetches: bool,
    /// How many bytes a second each build-index sends to another cluster or fetches from it, such as `1MB`.
    #[arg(long)]
    limit: Option<String>,
    /// Seconds over which the images are pushed, at least.
    #[arg(long, default_value_t = 30)]
    over: u64,
    /// Seconds in which all must have come when nothing goes wrong any more.
    #[arg(long, default_value_t = 180)]
    patience: u64,
    /// Where all chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
}

#[derive(Debug, Serialize)]
struct Report {
    clusters: usize,
    images: usize,
    missing_tags: usize,
    missing_referrers: usize,
    missing_blobs: usize,
    misplaced: usize,
    /// What origins of other clusters were sent, or gave to those that fetch, of what had to be.
    resent_ratio: f64,
    sent_bytes: u64,
    needed_bytes: u64,
    faults: usize,
    /// From the end of the last push until all tags were equal and all was looked at.
    seconds: f64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ran = on_runtime(async {
        match (options.role, &options.config) {
            (Some(role), Some(config)) => be(role, config).await.map(|()| true),
            _ => tokio::select! {
                ran = run(&options) => ran,
                // What was started ends with the clusters.
                () = process::stop_signal() => Err("stopped by a signal".into()),
            },
        }
    });
    exit_code("replication", ran)
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
    let scratch = tempfile::tempdir()?;
    let dir = options.dir.as_deref().unwrap_or_else(|| scratch.path());
    std::fs::create_dir_all(dir)?;
    let count = match options.latest {
        Some(_) => 2,
        None => options.clusters.into(),
    };
    let rules = topology::rules(count, options.is_loop || options.latest.is_some());
    let copying = Copying {
        rules: &rules,
        direction: if options.fetches {
            Direction::Fetched
        } else {
            Direction::Sent
        },
        limit: options.limit.as_deref(),
    };
    let (clusters, http) = begin(dir, count, copying).await?;
    let clients: Vec<_> = open(&clusters)
        .iter()
        .map(|it| it.client(&http))
        .collect::<Outcome<_>>()?;
    let kills = Kills {
        groups: if options.calm {
            Vec::new()
        } else {
            groups(count, &rules)
        },
        clusters,
        http,
        seed: options.seed,
    };
    match options.latest {
        Some(puts) => push_latest(options, puts, &clients, kills).await,
        None => copy_images(options, copying, &clients, kills).await,
    }
}

/// Starts all clusters, and waits until they are ready.
async fn begin(dir: &Path, count: usize, copying: Copying<'_>) -> Outcome<(Clusters, HttpClient)> {
    let (authority, http) = cluster::authority(dir)?;
    let mut ports = Ports::new();
    let mut clusters = Vec::new();
    for name in &NAMES[..count] {
        clusters.push(Cluster::new(name, dir, &mut ports).await?);
    }
    for (at, cluster) in clusters.iter().enumerate() {
        let copies = copying.keys(&clusters, at);
        cluster.configure(dir, &authority, &copies)?;
    }
    let mut starting = Vec::new();
    for cluster in &mut clusters {
        for at in 0..cluster.members.len() {
            cluster.start(at)?;
            let member = &cluster.members[at];
            starting.push((member.name.clone(), member.url()));
        }
    }
    for (name, url) in starting {
        faults::ready(&name, &url, &http).await?;
    }
    Ok((Arc::new(Mutex::new(clusters)), http))
}

/// Who is killed: build-indexes everywhere, and origins where something is copied to.
fn groups(count: usize, rules: &[Rule]) -> Vec<faults::Group> {
    let indexes = (0..count).map(|cluster| (cluster, Role::BuildIndex));
    let origins = (0..count).filter(|cluster| rules.iter().any(|rule| rule.to == *cluster));
    let origins = origins.map(|cluster| (cluster, Role::Origin));
    indexes.chain(origins).collect()
}

async fn copy_images(
    options: &Options,
    copying: Copying<'_>,
    clients: &[Client],
    kills: Kills,
) -> Outcome<bool> {
    let clusters = kills.clusters.clone();
    let stop = CancellationToken::new();
    let killing = tokio::spawn(kills.play(stop.clone()));
    let over = Duration::from_secs(options.over);
    let book = push::push_all(&clients[EAST], options.images, options.seed, over).await;
    stop.cancel();
    let (faults, book) = (killing.await??, book?);
    let began = Instant::now();
    let end = began + Duration::from_secs(options.patience);
    let mut all = vec![check::check(&clients[EAST], &book, |_| true, end).await?];
    if let Some(reason) = all[0].reasons.first() {
        return Err(format!("where it was pushed to, {reason}").into());
    }
    all.clear();
    for (at, client) in clients.iter().enumerate().skip(1) {
        let is_wanted = |repo: &_| topology::reaches(copying.rules, at, repo);
        all.push(check::check(client, &book, is_wanted, end).await?);
    }
    let sum = |of: fn(&Found) -> usize| all.iter().map(of).sum::<usize>();
    let sent_bytes = copying.copied(&open(&clusters));
    let needed_bytes = all.iter().map(|found| found.needed_bytes).sum();
    let report = Report {
        clusters: clients.len(),
        images: options.images,
        missing_tags: sum(|found| found.missing_tags),
        missing_referrers: sum(|found| found.missing_referrers),
        missing_blobs: sum(|found| found.missing_blobs),
        misplaced: sum(|found| found.misplaced),
        resent_ratio: sent_bytes as f64 / (needed_bytes as f64).max(1.0),
        sent_bytes,
        needed_bytes,
        faults,
        seconds: began.elapsed().as_secs_f64(),
    };
    print(options, &report)?;
    let reasons: Vec<_> = all.into_iter().flat_map(|found| found.reasons).collect();
    tell(&reasons, clients).await;
    Ok(reasons.is_empty() && all_run(&clusters))
}

async fn push_latest(
    options: &Options,
    puts: usize,
    clients: &[Client],
    kills: Kills,
) -> Outcome<bool> {
    let clusters = kills.clusters.clone();
    let gates: Vec<_> = open(&clusters).iter().map(|it| it.gate.clone()).collect();
    let stop = CancellationToken::new();
    let cutting = faults::partitions(gates.clone(), options.seed, stop.clone());
    let cutting = tokio::spawn(cutting);
    let killing = tokio::spawn(kills.play(stop.clone()));
    let ended = async {
        stop.cancel();
        let (cuts, kills) = (cutting.await??, killing.await??);
        if !options.json {
            eprintln!("{kills} kills, {cuts} cuts");
        }
        Ok(gates)
    };
    let played = latest::play(clients, puts, options.seed, ended).await;
    let (acknowledged, mut latest) = played?;
    let end = Instant::now() + Duration::from_secs(options.patience);
    latest::compare(clients, &acknowledged, &mut latest, end).await?;
    print(options, &latest)?;
    tell(&latest.reasons, clients).await;
    let is_well = latest.went_back + latest.differ + latest.history_differs == 0;
    Ok(is_well && latest.reads > 0 && all_run(&clusters))
}

fn print(options: &Options, report: &impl Serialize) -> Outcome<()> {
    if options.json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["measure", "value"]);
    let report = serde_json::to_value(report)?;
    for (name, value) in report.as_object().into_iter().flatten() {
        table.add_row([name.clone(), value.to_string()]);
    }
    println!("{table}");
    Ok(())
}

/// Says what is wrong, and what the build-indexes say of it.
async fn tell(reasons: &[String], clients: &[Client]) {
    if reasons.is_empty() {
        return;
    }
    for reason in reasons {
        eprintln!("{reason}");
    }
    for client in clients {
        for status in check::statuses(client).await {
            eprintln!("{status}");
        }
    }
}

/// Whether no process has ended by itself.
fn all_run(clusters: &Clusters) -> bool {
    let ended: usize = open(clusters).iter_mut().map(Cluster::ended).sum();
    if ended > 0 {
        eprintln!("{ended} processes ended by themselves: see their logs");
    }
    ended == 0
}
