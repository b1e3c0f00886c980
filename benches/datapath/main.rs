//! What the data path costs beside its peers, in one run: processor seconds per GiB, and wall time.
//!
//! `cargo run --release -p kraken-benches --bin datapath -- [--only NAME] [--json] [--repeats N]`
//!
//! Every round runs each subject once, one after the other, so that what else the machine does
//! falls on all of them; medians over the rounds are compared. A program that is missing is named,
//! and its measures have no ratio.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that is read by people and scripts"
)]

mod measure;
mod serve;

use std::error::Error;

use clap::{Parser, Subcommand};
use comfy_table::Table;

use measure::Measure;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

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
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the program's children do.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    ServeAgent(serve::AgentRole),
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::ServeAgent(role)) => role.run(),
        None => measure_all(&arguments),
    }
}

fn measure_all(arguments: &Arguments) -> Outcome<()> {
    let mut measures = serve::measure(arguments.repeats)?;
    if let Some(only) = &arguments.only {
        measures.retain(|measure| measure.name.starts_with(only));
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "measures": measures }));
    } else {
        println!("{}", table(&measures));
    }
    Ok(())
}

fn table(measures: &[Measure]) -> Table {
    let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.3}"));
    let mut table = Table::new();
    table.set_header(["measure", "unit", "ours", "peer", "ratio", "target", "ok"]);
    for measure in measures {
        table.add_row([
            measure.name.clone(),
            measure.unit.to_string(),
            number(measure.ours),
            number(measure.peer),
            number(measure.ratio),
            number(Some(measure.target)),
            measure.ok.map_or("?".to_string(), |ok| ok.to_string()),
        ]);
    }
    table
}
