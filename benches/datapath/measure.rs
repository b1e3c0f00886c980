//! A number, the one it is held against, and how both are had.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Outcome;
use crate::machine::warm_memory;

/// One line of the report. Lower is better in all of them.
#[derive(Debug, Serialize)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Option<f64>,
    /// `None` where the peer's program is missing.
    pub(crate) peer: Option<f64>,
    pub(crate) ratio: Option<f64>,
    /// The most that the ratio may be.
    pub(crate) target: f64,
    /// `None` where nothing can be said.
    pub(crate) ok: Option<bool>,
    /// Why something is missing, or what is to be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl Measure {
    pub(crate) fn of(
        name: impl Into<String>,
        unit: &'static str,
        (ours, peer): (Option<f64>, Option<f64>),
        target: f64,
    ) -> Self {
        let ratio = ours.zip(peer).map(|(ours, peer)| ours / peer);
        Self {
            name: name.into(),
            unit,
            ours,
            peer,
            ratio,
            target,
            ok: ratio.map(|ratio| ratio <= target),
            note: None,
        }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// What one run of a subject took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Seconds from the call until all bytes are there.
    pub(crate) wall: f64,
    /// Processor seconds of the side that sends.
    pub(crate) seed: f64,
    /// Processor seconds of the side that receives, or of all of them.
    pub(crate) leech: f64,
}

impl Sample {
    pub(crate) fn cpu(self) -> f64 {
        self.seed + self.leech
    }
}

/// How often is measured, and what.
#[derive(Debug, Clone, Default)]
pub(crate) struct Effort {
    pub(crate) repeats: usize,
    /// All of them when there is none.
    pub(crate) subjects: Vec<String>,
    /// Of the backend of `cold`, in bytes per second.
    pub(crate) backend_rate: f64,
    /// The blob of `memory`, in MiB.
    pub(crate) memory_mib: u64,
    /// The blob of `huge`, in bytes.
    pub(crate) huge_bytes: u64,
}

/// What a run of a blob of 1 GiB takes at most, and as much again for whoever else runs.
const WARM: usize = 4 << 30;

/// The samples of each subject, in rounds.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

/// A subject's name, and one run of it.
pub(crate) type Subject<'a> = (&'static str, Box<dyn Fn() -> Outcome<Sample> + 'a>);

impl Rounds {
    /// Runs every subject as often as `effort` says, in turns; every other round backwards, so that nobody
    /// always comes behind the same one.
    pub(crate) fn run(subjects: &[Subject<'_>], effort: &Effort) -> Outcome<Self> {
        let wanted = |name: &str| {
            let only = &effort.subjects;
            only.is_empty() || only.iter().any(|only| only == name)
        };
        let mut rounds = Self::default();
        for round in 0..effort.repeats {
            let mut order: Vec<_> = subjects.iter().filter(|it| wanted(it.0)).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for (name, run) in order {
                warm_memory(WARM);
                let sample = run().map_err(|error| format!("{name}: {error}"))?;
                eprintln!(
                    "  round {round}: {name:16} cpu {:.3} = {:.3} + {:.3} s, wall {:.3} s",
                    sample.cpu(),
                    sample.seed,
                    sample.leech,
                    sample.wall
                );
                rounds.samples.entry(name).or_default().push(sample);
            }
        }
        Ok(rounds)
    }

    /// The median of what `of` says of a subject's samples.
    pub(crate) fn median(&self, subject: &str, of: impl Fn(Sample) -> f64) -> Option<f64> {
        let samples = self.samples.get(subject)?;
        median(samples.iter().map(|sample| of(*sample)).collect())
    }
}

/// The middle one, or the mean of both.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_missing_peer_leaves_the_question_open() {
        let missing = Measure::of("a/b", "s", (Some(1.0), None), 1.0);
        assert_eq!((missing.ratio, missing.ok), (None, None));
        let lost = Measure::of("a/b", "s", (Some(3.0), Some(2.0)), 1.0);
        assert_eq!((lost.ratio, lost.ok), (Some(1.5), Some(false)));
    }
}
