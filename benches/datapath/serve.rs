//! A cached blob of 1 GiB over eight connections at once: the agent's registry beside nginx and
//! docker-registry. The readers' time is not counted; it is the same for all.

mod blob;
pub(crate) mod client;
mod servers;

use std::collections::BTreeMap;

use crate::Outcome;
use crate::lab::Lab;
use crate::measure::{Measure, median};
use crate::process::scratch;
pub(crate) use blob::Blob;
pub(crate) use servers::Server;

const LENGTH: u64 = 1 << 30;
const CONNECTIONS: usize = 8;

/// Per GiB sent: processor seconds of the server, and seconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu: f64,
    wall: f64,
}

/// A measure's name, its unit, where it is in a sample, and the most that its ratio may be.
type Kind = (&'static str, &'static str, fn(&Sample) -> f64, f64);

type Start = fn(&std::path::Path, &Blob) -> Outcome<Server>;

/// The most of nginx's processor time and of its time, and of docker-registry's.
const TARGETS: [(&str, f64, f64); 2] = [
    ("nginx", 2.0, 1.0 / 0.75),
    ("docker-registry", 0.6, 1.0 / 1.5),
];

/// Runs all servers in turns.
///
/// # Errors
/// The agent does not serve. A peer that is missing is named on the standard error, and its measures
/// have no ratio.
pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let dir = scratch(lab.path())?;
    let blob = Blob::make(dir.path(), LENGTH)?;
    let mut servers = vec![("agent", Server::agent(dir.path(), &blob)?)];
    let peers: [(&str, Start); 2] = [
        ("nginx", Server::nginx),
        ("docker-registry", Server::registry),
    ];
    for (name, start) in peers {
        match start(dir.path(), &blob) {
            Ok(server) => servers.push((name, server)),
            Err(error) => eprintln!("  {name} is left out: {error}"),
        }
    }
    let samples = rounds(&servers, lab.effort.repeats)?;
    eprintln!(
        "  agent: at most {} MiB of memory",
        servers[0].1.peak_memory()? >> 20
    );
    let of = |name, value: fn(&Sample) -> f64| {
        samples
            .get(name)
            .and_then(|all: &Vec<Sample>| median(all.iter().map(value).collect()))
    };
    let mut measures = Vec::new();
    for (peer, cpu, wall) in TARGETS {
        let kinds: [Kind; 2] = [
            ("cpu", "CPU-s/GiB", |sample| sample.cpu, cpu),
            ("wall", "s/GiB", |sample| sample.wall, wall),
        ];
        for (kind, unit, value, target) in kinds {
            let both = (of("agent", value), of(peer, value));
            measures.push(Measure::of(
                format!("serve/{peer}/{kind}"),
                unit,
                both,
                target,
            ));
        }
    }
    Ok(measures)
}

/// Every other round backwards, so that nobody always comes behind the same one. A first round
/// warms all up and is not counted.
fn rounds(
    servers: &[(&'static str, Server)],
    repeats: usize,
) -> Outcome<BTreeMap<&'static str, Vec<Sample>>> {
    let mut samples: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for round in 0..=repeats {
        let mut order: Vec<_> = servers.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (name, server) in order {
            let sample = run(server).map_err(|error| format!("{name}: {error}"))?;
            let Sample { cpu, wall } = sample;
            eprintln!(
                "  round {round}: {name:16} cpu {cpu:.3} s/GiB, {:.2} GiB/s",
                1.0 / wall
            );
            if round > 0 {
                samples.entry(*name).or_default().push(sample);
            }
        }
    }
    Ok(samples)
}

fn run(server: &Server) -> Outcome<Sample> {
    let before = server.cpu()?;
    let (bytes, seconds) = client::read_all(server.addr, &server.path, CONNECTIONS)?;
    let gib = bytes as f64 / f64::from(1 << 30);
    Ok(Sample {
        cpu: (server.cpu()? - before) / gib,
        wall: seconds / gib,
    })
}
