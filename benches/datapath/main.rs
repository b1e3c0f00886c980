//! What the data path costs beside its peers, in one run: processor seconds per GiB on both sides,
//! and wall time.
//!
//! `cargo run --release -p kraken-benches --bin datapath -- [--only NAME] [--json] [--repeats N]`
//!
//! Every round runs each subject once, one after the other, so that what else the machine does
//! falls on all of them; medians over the rounds are compared. A program that is missing is named,
//! and its measures have no ratio. The subjects are processes of their own, one per side: this
//! program under a hidden role, or a script for somebody else's.
//!
//! A new measure is a function in [`GROUPS`].
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that is read by people and scripts"
)]

mod cold;
mod lab;
mod libtorrent;
mod limits;
mod machine;
mod made;
mod measure;
mod memory;
mod mini;
mod peers;
mod process;
mod push;
mod report;
mod serve;
mod service;
mod swarm;
mod sweep;
mod transfer;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use lab::Lab;
use measure::{Effort, Measure};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Groups of measures that share their runs. `--only` takes a group's name, or how its measures'
/// names begin.
const GROUPS: [Group; 9] = [
    Group {
        name: "transfer",
        run: transfer::measures,
    },
    Group {
        name: "mtu-sweep",
        run: sweep::measures,
    },
    Group {
        name: "four-leechers",
        run: swarm::measures,
    },
    Group {
        name: "serve",
        run: serve::measures,
    },
    Group {
        name: "cold",
        run: cold::measures,
    },
    Group {
        name: "push",
        run: push::measures,
    },
    Group {
        name: "memory",
        run: memory::measures,
    },
    Group {
        name: "limits",
        run: limits::measures,
    },
    Group {
        name: "huge",
        run: memory::huge,
    },
];

struct Group {
    name: &'static str,
    run: fn(&Lab) -> Outcome<Vec<Measure>>,
}

#[derive(Parser)]
#[command(about = "Measures the data path beside its peers")]
struct Arguments {
    /// Only the measures whose names begin so.
    #[arg(long)]
    only: Option<String>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Rounds; medians are compared.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// The blob's size in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Only these subjects of each group, for a look at some of them.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// What the backend of `cold` gives, in MB/s. Where eight agents need all of the cores, a lower
    /// rate shows what the pipeline alone costs.
    #[arg(long, default_value_t = 100)]
    backend_rate: u32,
    /// The blob of `memory`, in MiB.
    #[arg(long, default_value_t = 10 << 10)]
    memory_mib: u64,
    /// The blob of `huge`, in bytes.
    #[arg(long, default_value_t = 100_000_000_000)]
    huge_bytes: u64,
    /// Where blobs are kept meanwhile: a real disk; the system's directory for temporary files by
    /// default.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the program's children do.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Seed(transfer::Seed),
    #[command(hide = true)]
    Leech(transfer::Leech),
    #[command(hide = true)]
    Service(service::Service),
    #[command(hide = true)]
    Crowd(peers::Crowd),
    #[command(hide = true)]
    Limit(limits::Limit),
    #[command(hide = true)]
    Fetch(peers::Fetch),
    #[command(hide = true)]
    MiniSeed(mini::Seed),
    #[command(hide = true)]
    MiniLeech(mini::Leech),
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Seed(seed)) => seed.run(),
        Some(Role::Leech(leech)) => leech.run(),
        Some(Role::Service(service)) => service.run(),
        Some(Role::Crowd(crowd)) => crowd.run(),
        Some(Role::Limit(limit)) => limit.run(),
        Some(Role::Fetch(fetch)) => fetch.run(),
        Some(Role::MiniSeed(seed)) => seed.run(),
        Some(Role::MiniLeech(leech)) => leech.run(),
        None => measure_all(&arguments),
    }
}

fn measure_all(arguments: &Arguments) -> Outcome<()> {
    let wanted = |name: &str| {
        let only = arguments.only.as_deref();
        only.is_none_or(|only| name.starts_with(only) || only.starts_with(name))
    };
    let lab = Lab::create(
        arguments.dir.as_deref(),
        arguments.mib,
        Effort {
            repeats: arguments.repeats,
            subjects: arguments.subjects.clone(),
            backend_rate: f64::from(arguments.backend_rate) * 1e6,
            memory_mib: arguments.memory_mib,
            huge_bytes: arguments.huge_bytes,
        },
    )?;
    let mut measures = Vec::new();
    for group in GROUPS.iter().filter(|group| wanted(group.name)) {
        eprintln!("{} …", group.name);
        let found = (group.run)(&lab)?;
        measures.extend(found.into_iter().filter(|it| {
            let only = arguments.only.as_deref();
            only.is_none_or(|only| it.name.starts_with(only))
        }));
    }
    let text = if arguments.json {
        report::json(&measures)?
    } else {
        report::table(&measures)
    };
    println!("{text}");
    Ok(())
}
