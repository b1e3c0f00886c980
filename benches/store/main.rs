//! A store with many blobs: how long it takes to open and to be asked, and what eviction costs those
//! who read meanwhile.
//!
//! ```text
//! cargo run --release -p kraken-benches --bin store -- --dir DIR [--blobs 100000] [--json]
//! ```
//!
//! The store is made in `/dev/shm`, where a sync costs nothing, and copied to `DIR` with its times. It
//! is opened with an empty page cache where this process may empty it (as root).
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use kraken_core::proto::Digest;
use kraken_core::proto::cache::ledger::Ceiling;
use kraken_core::proto::rng::Rng;
use kraken_core::storage::{FsOptions, FsStore, Need, PieceStore as _, UploadStore as _};
use serde::Serialize;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A store with many blobs.
#[derive(Debug, Parser)]
struct Options {
    /// Where the store is to be; emptied first.
    #[arg(long)]
    dir: PathBuf,
    /// How many blobs.
    #[arg(long, default_value_t = 100_000)]
    blobs: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    blobs: usize,
    /// Whether the page cache was emptied before the first start.
    cold: bool,
    start_cold_s: f64,
    start_warm_s: f64,
    /// Of a blob whose metainfo comes from the disk.
    stat_from_disk_us: f64,
    /// Of one whose metainfo the page cache has.
    stat_us: f64,
    /// Of one of the few hundred that were asked for last.
    stat_again_us: f64,
    /// 99 of 100 cached reads of 256 KiB took at most so long.
    read_p99_us: f64,
    /// The same, while blobs were evicted without a pause.
    read_p99_evicting_us: f64,
    evicted: usize,
}

/// Bytes of a blob: the store is about names here.
const SMALL: usize = 1000;
/// Bytes of the blob that is read.
const LARGE: usize = 64 << 20;
const READ: u32 = 256 << 10;
const READS: usize = 20_000;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new();
    let measured = runtime
        .map_err(Into::into)
        .and_then(|it| it.block_on(measure(&options)));
    match measured {
        Ok(report) if options.json => match serde_json::to_string(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("store: {error}"),
        },
        Ok(report) => println!("{report:#?}"),
        Err(error) => {
            eprintln!("store: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn measure(options: &Options) -> Outcome<Report> {
    let (digests, large) = make(&options.dir, options.blobs).await?;
    let cold = std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
    let ceiling = Some(Ceiling::of((options.blobs * SMALL + 2 * LARGE) as u64));
    let (start_cold_s, store) = open(&options.dir, ceiling).await?;
    drop(store);
    let (start_warm_s, store) = open(&options.dir, ceiling).await?;
    let some: Vec<_> = digests.iter().step_by(digests.len() / 5000 + 1).collect();
    let stat = async || {
        let mut times = Vec::new();
        for digest in &some {
            let began = Instant::now();
            store.status(**digest).await?;
            times.push(began.elapsed());
        }
        Outcome::Ok(at(times, 50))
    };
    let (stat_from_disk_us, stat_us) = (stat().await?, stat().await?);
    let asked = *some[some.len() - 1];
    let mut again = Vec::new();
    for _ in 0..5000 {
        let began = Instant::now();
        store.status(asked).await?;
        again.push(began.elapsed());
    }
    read(&store, large, READS / 10).await?;
    let read_p99_us = at(read(&store, large, READS).await?, 99);
    let evicting = store.clone();
    let most = (options.blobs * SMALL + 2 * LARGE) as u64;
    let evict = tokio::spawn(async move { evict(&evicting, most, large).await });
    let read_p99_evicting_us = at(read(&store, large, READS).await?, 99);
    if evict.is_finished() {
        return Err("the eviction ended before the reads: take more blobs".into());
    }
    evict.abort();
    let evicted = digests.len() + 1 - store.list().await?.len();
    Ok(Report {
        blobs: options.blobs,
        cold,
        start_cold_s,
        start_warm_s,
        stat_from_disk_us,
        stat_us,
        stat_again_us: at(again, 50),
        read_p99_us,
        read_p99_evicting_us,
        evicted,
    })
}

/// Pushes all blobs to a store in memory, and copies it to the disk.
async fn make(dir: &Path, blobs: usize) -> Outcome<(Vec<Digest>, Digest)> {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let store = FsStore::open(memory.path().join("store")).await?;
    let mut digests = Vec::new();
    for seed in 0..blobs as u64 {
        digests.push(push(&store, seed, SMALL).await?);
    }
    let large = push(&store, u64::MAX, LARGE).await?;
    drop(store);
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    let copied = Command::new("cp")
        .arg("-a")
        .arg(memory.path().join("store"))
        .arg(dir)
        .status()?;
    if !copied.success() {
        return Err("the store cannot be copied".into());
    }
    Command::new("sync").status()?;
    Ok((digests, large))
}

async fn push(store: &FsStore, seed: u64, len: usize) -> Outcome<Digest> {
    let mut rng = Rng::seeded(seed);
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
        .take(len.div_ceil(8))
        .flatten()
        .collect();
    let digest = Digest::of(&bytes);
    let upload = store.upload_start().await?;
    store.upload_append(&upload, 0, bytes.into()).await?;
    store.upload_commit(&upload, digest).await?;
    Ok(digest)
}

async fn open(dir: &Path, ceiling: Option<Ceiling>) -> Outcome<(f64, FsStore)> {
    let mut options = FsOptions::default();
    options.ceiling = ceiling;
    let began = Instant::now();
    let store = FsStore::open_with(dir, options).await?;
    Ok((began.elapsed().as_secs_f64(), store))
}

async fn read(store: &FsStore, digest: Digest, reads: usize) -> Outcome<Vec<Duration>> {
    let (mut times, mut rng) = (Vec::new(), Rng::seeded(1));
    for _ in 0..reads {
        let at = rng.below(LARGE / READ as usize) as u64 * u64::from(READ);
        let began = Instant::now();
        store.read(digest, at, READ).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Makes room as if something came that does not fit, again and again.
async fn evict(store: &FsStore, most: u64, spared: Digest) -> Outcome<()> {
    let spared = [spared].into();
    loop {
        let used = store.usage().map_or(0, |usage| usage.bytes);
        let more = most.saturating_sub(used) + (1 << 20);
        for digest in store.victims(Need::blob(more), &spared).await? {
            store.remove(digest).await?;
        }
    }
}

/// The time that so many of 100 took at most, in microseconds.
fn at(mut times: Vec<Duration>, percent: usize) -> f64 {
    times.sort_unstable();
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times
        .get(index)
        .map_or(0.0, |time| time.as_secs_f64() * 1e6)
}
