//! One seeder and four leechers at once: no core is idle while bytes are missing.

use std::time::Duration;

use crate::Outcome;
use crate::lab::Lab;
use crate::machine::cores;
use crate::measure::{Measure, Rounds, Sample, Subject};
use crate::process::{Child, scratch};
use crate::transfer::{MTU, Way, leecher, seeder};

const LEECHERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);

/// Wall time beside the processor time that all of them used together, spread over the cores.
pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let subjects: [Subject<'_>; 1] = [("four-leechers", Box::new(|| run(lab)))];
    let rounds = Rounds::run(&subjects, &lab.effort)?;
    let median = |of: fn(Sample) -> f64| rounds.median("four-leechers", of);
    let spread = median(Sample::cpu).map(|cpu| cpu / cores() as f64);
    let walls = (median(|it| it.wall), spread);
    let measure = Measure::of("four-leechers", "s", walls, 1.2);
    Ok(vec![
        measure.note("peer: processor time of all over the cores"),
    ])
}

fn run(lab: &Lab) -> Outcome<Sample> {
    let run = scratch(lab.path())?;
    let mut seed = seeder(lab, Way::Quic, MTU)?;
    let ready = seed.hear("ready")?;
    let leechers = (0..LEECHERS).map(|number| {
        let mut leech = leecher(
            lab,
            (Way::Quic, MTU),
            &ready,
            (run.path(), number),
            PATIENCE,
        )?;
        leech.hear("ready")?;
        Ok(leech)
    });
    let mut leechers: Vec<Child> = leechers.collect::<Outcome<_>>()?;
    for leech in &mut leechers {
        leech.go()?;
    }
    let (mut wall, mut cpu) = (0.0_f64, 0.0);
    for leech in &mut leechers {
        let (took, used) = leech.done()?;
        wall = wall.max(took);
        cpu += used;
    }
    Ok(Sample {
        wall,
        seed: seed.end()?,
        leech: cpu,
    })
}
