//! Crashes of a store and its queue, and what they lose: nothing.
//!
//! ```text
//! cargo run --release -p kraken-benches --bin crash -- [--kills N] [--steps N] [--seed N] [--json]
//! ```
//!
//! In the first part a process works on a store and a queue and says what it has promised; it is
//! killed at a random moment, what it left is opened and checked, and another goes on from there. In
//! the second the calls of some work are recorded, and the disk is rebuilt as a loss of power at each
//! of them could leave it: with all, none and some of what was not synced.
//!
//! Prints, and with `--json` prints as one object: `kills`, `cut_points` (calls that were cut off, each
//! with four disks), `acknowledged` (promises that were looked at after a crash, and hold), `lost` and
//! `wrong`. Exits with 1 when either of the last two is not zero.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kraken_core::proto::rng::Rng;
use kraken_core::storage::testkit::crash::{self, Found, Promise};
use kraken_core::storage::testkit::{Survival, Tape, Writes};
use kraken_core::storage::{DurableQueue, FsStore};
use serde::Serialize;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Crashes of a store and its queue, and what they lose.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Args)]
struct Run {
    /// How many processes are killed.
    #[arg(long, default_value_t = 500)]
    kills: u64,
    /// How many pieces of work are recorded, whose calls are then cut off.
    #[arg(long, default_value_t = 40)]
    steps: usize,
    /// What chooses work, moments and disks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// What is killed: works in a directory until then.
    #[command(hide = true)]
    Work {
        /// Where.
        dir: std::path::PathBuf,
        /// On what.
        seed: u64,
    },
}

/// Kills after which a new store begins, so that the checks do not grow.
const GENERATION: u64 = 8;
/// The most milliseconds of work before a kill. The shortest hit the start.
const WORKS: usize = 150;

#[derive(Debug, Default, Serialize)]
struct Report {
    kills: u64,
    cut_points: usize,
    acknowledged: u64,
    lost: u64,
    wrong: u64,
}

impl Report {
    fn add(&mut self, found: Found) {
        self.acknowledged += found.kept;
        self.lost += found.lost;
        self.wrong += found.wrong;
    }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crash: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Outcome<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    if let Some(Part::Work { dir, seed }) = options.part {
        runtime.block_on(work(&dir, seed))?;
        return Ok(true);
    }
    let mut report = Report::default();
    runtime.block_on(kill(&options.run, &mut report))?;
    runtime.block_on(cut(&options.run, &mut report))?;
    if options.run.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "{} kills and {} cut points: {} acknowledged, {} lost, {} wrong",
            report.kills, report.cut_points, report.acknowledged, report.lost, report.wrong
        );
    }
    if options.run.kills > 20 && report.acknowledged == 0 {
        return Err("nothing was promised, so that nothing could be lost".into());
    }
    Ok(report.lost == 0 && report.wrong == 0)
}

/// Works until it is killed. A promise counts when its line is out.
async fn work(dir: &Path, seed: u64) -> Outcome<()> {
    let store = FsStore::open(dir.join("store")).await?;
    let queue = DurableQueue::open(dir.join("queue.redb"))?;
    let say = |promise: Promise| {
        let mut out = std::io::stdout().lock();
        // Who listens is gone only when this is to end as well.
        let _ = writeln!(out, "{promise}").and_then(|()| out.flush());
    };
    crash::work(&store, Some(&queue), (seed, usize::MAX), say).await?;
    Ok(())
}

async fn kill(run: &Run, report: &mut Report) -> Outcome<()> {
    let mut rng = Rng::seeded(run.seed);
    let program = std::env::current_exe()?;
    let mut place = (tempfile::tempdir()?, Vec::new());
    for number in 0..run.kills {
        if number % GENERATION == 0 {
            place = (tempfile::tempdir()?, Vec::new());
        }
        let (dir, promises) = &mut place;
        let seed = run.seed << 16 | number;
        let mut child = Command::new(&program)
            .arg("work")
            .arg(dir.path())
            .arg(seed.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        let listener = std::thread::spawn(move || lines.lines().collect::<Result<Vec<_>, _>>());
        std::thread::sleep(Duration::from_millis(1 + rng.below(WORKS) as u64));
        child.kill()?;
        let status = child.wait()?;
        if status.signal() != Some(9) {
            return Err(format!("a process ended by itself, {status}: nothing was killed").into());
        }
        for line in listener.join().map_err(|_| "the listener panicked")?? {
            // The last line may have been cut off with the process; then it says nothing.
            promises.extend(line.parse::<Promise>().ok());
        }
        let found = crash::check(dir.path(), promises).await?;
        if found.lost + found.wrong > 0 {
            eprintln!("kill {number}: {found:?}");
        }
        report.add(found);
        report.kills += 1;
        // What was not done is done now, and from now on is there.
        settle(promises);
    }
    Ok(())
}

/// The check ends every download that was cut off.
fn settle(promises: &mut Vec<Promise>) {
    let blobs: Vec<_> = promises
        .iter()
        .filter_map(|promise| match promise {
            Promise::Piece(blob, _) => Some(*blob),
            _ => None,
        })
        .collect();
    promises.retain(|promise| !matches!(promise, Promise::Piece(..)));
    for blob in blobs {
        let known = [Promise::Sealed(blob), Promise::Going(blob)];
        if !promises.iter().any(|promise| known.contains(promise)) {
            promises.push(Promise::Sealed(blob));
        }
    }
}

async fn cut(run: &Run, report: &mut Report) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("store");
    let tape = Tape::start(&root);
    let store = FsStore::open(&root).await?;
    let promise = |promise: Promise| {
        // Pieces are promised to survive a crash of the process only.
        if !matches!(promise, Promise::Piece(..)) {
            tape.promise(promise.to_string());
        }
    };
    crash::work(&store, None, (run.seed, run.steps), promise).await?;
    drop(store);
    let recording = tape.stop();
    for cut in 0..recording.cuts() {
        let promises: Result<Vec<Promise>, _> = recording.promises(cut).map(str::parse).collect();
        let promises = promises?;
        for (names, writes) in [
            (true, Writes::None),
            (false, Writes::All),
            (false, Writes::None),
            (true, Writes::Some(run.seed ^ cut as u64)),
        ] {
            let survival = Survival { names, writes };
            let after = tempfile::tempdir()?;
            recording.rebuild(cut, survival, (&root, &after.path().join("store")))?;
            let found = crash::check(after.path(), &promises).await?;
            if found.lost + found.wrong > 0 {
                eprintln!("cut {cut}, {survival:?}: {found:?}");
            }
            report.add(found);
        }
    }
    report.cut_points = recording.cuts();
    Ok(())
}
