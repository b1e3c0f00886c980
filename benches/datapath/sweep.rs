//! No datagram size makes a transfer stand still.

use std::time::Duration;

use crate::Outcome;
use crate::lab::Lab;
use crate::measure::{Measure, Sample};
use crate::process::{self, scratch};
use crate::transfer::{Way, leecher, seeder};

/// UDP payloads in bytes, round the limits that are known: at 6551 ten datagrams no longer fit into
/// one send.
const MTUS: [u16; 10] = [1200, 1452, 2000, 4096, 6500, 6551, 7000, 8000, 8972, 9000];
const MIB: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(20);

/// How many of the sizes stand still, of a blob of 64 MiB each.
pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let small = Lab::create(Some(lab.path()), MIB, lab.effort.clone())?;
    let mut stalled = Vec::new();
    for mtu in MTUS {
        match one(&small, mtu) {
            Ok(sample) => eprintln!(
                "  {mtu}: cpu {:.3} s/GiB, wall {:.3} s",
                small.per_gib(sample.cpu()),
                sample.wall
            ),
            Err(error) => {
                eprintln!("  {mtu}: {error}");
                stalled.push(mtu);
            }
        }
    }
    let ours = stalled.len() as f64;
    let measure = Measure::of("mtu-sweep", "sizes that stall", (Some(ours), None), 0.0);
    Ok(vec![Measure {
        ok: Some(stalled.is_empty()),
        note: Some(format!("of {MTUS:?}")),
        ..measure
    }])
}

fn one(lab: &Lab, mtu: u16) -> Outcome<Sample> {
    let run = scratch(lab.path())?;
    process::pair(seeder(lab, Way::Quic, mtu)?, |ready| {
        leecher(lab, (Way::Quic, mtu), ready, (run.path(), 0), PATIENCE)
    })
}
