//! What many waiting tasks cost: time and memory of a durable queue.
//!
//! `cargo run --release -p kraken-benches --bin queue -- --dir DIR --tasks 1000000 [--json]`. On a disk
//! every push waits for a sync; in memory (`/dev/shm`) the queue's own work is left.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring tool"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use kraken_benches::memory::resident;
use kraken_core::proto::Digest;
use kraken_core::storage::DurableQueue;
use serde::Serialize;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A queue with many tasks.
#[derive(Debug, Parser)]
struct Options {
    /// Where the queue is to be; what is there is removed first.
    #[arg(long)]
    dir: PathBuf,
    /// How many tasks.
    #[arg(long, default_value_t = 1_000_000)]
    tasks: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    tasks: u64,
    push_us: f64,
    /// Of a task that is taken, put back, taken again and done.
    work_us: f64,
    /// Of the question whether any task is about a blob.
    ask_us: f64,
    open_s: f64,
    file_mib: f64,
    /// What the process had resident of its own with a hundredth of the tasks, and with all.
    resident_few_mib: f64,
    resident_mib: f64,
}

/// How many tasks are worked on, and how often is asked.
const SOME: usize = 2000;

fn main() -> ExitCode {
    let options = Options::parse();
    match measure(&options) {
        Ok(report) if options.json => match serde_json::to_string(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("queue: {error}"),
        },
        Ok(report) => println!("{report:#?}"),
        Err(error) => {
            eprintln!("queue: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn measure(options: &Options) -> Outcome<Report> {
    std::fs::create_dir_all(&options.dir)?;
    let path = options.dir.join("queue.redb");
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let key = |number: u64| format!("{} library/app", Digest::of(&number.to_be_bytes()));
    let queue = DurableQueue::open(&path)?;
    let began = Instant::now();
    let mut resident_few_mib = 0.0;
    for number in 0..options.tasks {
        queue.push("write-back", &key(number), b"", number)?;
        if number == options.tasks / 100 {
            resident_few_mib = mib(resident()?);
        }
    }
    let push_us = each(began, options.tasks);
    let began = Instant::now();
    for task in queue.take_due(u64::MAX, SOME)? {
        queue.retry(task.id, 0)?;
    }
    for task in queue.take_due(u64::MAX, SOME)? {
        queue.done(task.id)?;
    }
    let work_us = each(began, SOME as u64);
    let began = Instant::now();
    for number in 0..SOME as u64 {
        let prefix = format!("{} ", Digest::of(&(number * 499).to_be_bytes()));
        queue.contains_prefix("write-back", &prefix)?;
    }
    let ask_us = each(began, SOME as u64);
    let resident_mib = mib(resident()?);
    drop(queue);
    let began = Instant::now();
    let queue = DurableQueue::open(&path)?;
    let open_s = began.elapsed().as_secs_f64();
    if queue.len()? + SOME as u64 != options.tasks {
        return Err("tasks are missing".into());
    }
    Ok(Report {
        tasks: options.tasks,
        push_us,
        work_us,
        ask_us,
        open_s,
        file_mib: std::fs::metadata(&path)?.len() as f64 / f64::from(1 << 20),
        resident_few_mib,
        resident_mib,
    })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn each(began: Instant, count: u64) -> f64 {
    began.elapsed().as_secs_f64() * 1e6 / count as f64
}
