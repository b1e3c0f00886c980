//! `kraken sim`: a whole cluster in virtual time.

use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use kraken_sim::{Plan, PlotFile, Report};

use crate::Failure;

/// A plan that was read and is to be run.
#[derive(Debug)]
pub struct Simulation {
    plan: Plan,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What happened in virtual time.
    pub report: Report,
    /// The seed that it happened with.
    pub seed: u64,
    /// How long it took in real time, in seconds.
    pub wall_seconds: f64,
}

impl Simulation {
    /// Reads a plan file, or the standard input if the path is `-`. `seed` goes before that of the
    /// plan.
    ///
    /// # Errors
    /// [`Failure::Io`] when it cannot be read, [`Failure::Plan`] when it does not say what it should.
    pub fn read(path: &Path, seed: Option<u64>) -> Result<Self, Failure> {
        let name = match path.to_str() {
            Some("-") => "on the standard input".to_owned(),
            _ => path.display().to_string(),
        };
        let text = text(path).map_err(Failure::io(format!("read the plan {name}")))?;
        let mut plan = Plan::from_toml(&text).map_err(|source| Failure::Plan { name, source })?;
        plan.seed = seed.unwrap_or(plan.seed);
        Ok(Self { plan })
    }

    /// Plays it to its end, on this thread: seconds for thousands of hosts, hours for the largest
    /// plans.
    pub fn run(&self) -> Outcome {
        let begin = Instant::now();
        let report = kraken_sim::run(&self.plan);
        Outcome {
            report,
            seed: self.plan.seed,
            wall_seconds: begin.elapsed().as_secs_f64(),
        }
    }

    /// Draws what came of it.
    ///
    /// # Errors
    /// [`Failure::Plot`] when it cannot be drawn or the file cannot be written.
    pub fn draw(&self, outcome: &Outcome, file: &PlotFile) -> Result<(), Failure> {
        Ok(file.draw(&self.plan, &outcome.report)?)
    }
}

impl Outcome {
    /// Whether every host that should has completed, and no rule was broken.
    pub fn ok(&self) -> bool {
        self.report.finished() && self.report.violations.is_empty()
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        self.report.to_json(self.seed, self.wall_seconds)
    }

    /// A short table.
    pub fn text(&self) -> String {
        self.report.to_text(self.seed, self.wall_seconds)
    }
}

fn text(path: &Path) -> std::io::Result<String> {
    if path.to_str() != Some("-") {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}
