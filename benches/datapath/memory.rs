//! What an agent holds in memory: idle, at full speed among eight peers, and with a blob of 100 GB.
//!
//! The most that the process ever held counts (`VmHWM`), of one run: a peak is no matter of medians.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;
use crate::lab::Lab;
use crate::made;
use crate::measure::Measure;
use crate::peers::{CROWD, crowd, fetcher};
use crate::process::{Child, scratch};
use crate::serve::{Blob, Server};

const MIB: f64 = (1 << 20) as f64;
/// In MiB.
const FULL_SPEED: f64 = 150.0;
const IDLE: f64 = 25.0;
/// Of a metainfo, in KiB.
const METAINFO: f64 = 1024.0;
/// Seconds until the first verified byte is there.
const FIRST: f64 = 1.0;

/// A blob that eight peers have or want, at an agent with a real store.
pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let dir = scratch(lab.path())?;
    let blob = Blob::make(dir.path(), 1 << 20)?;
    let server = Server::agent(dir.path(), &blob)?;
    // What it does after the start is to be over.
    std::thread::sleep(Duration::from_secs(2));
    let idle = server.peak_memory()? as f64 / MIB;
    drop(server);

    let meta = made_meta(lab, lab.effort.memory_mib << 20)?;
    let mut peers = crowd(lab.path(), &meta, CROWD / 2, CROWD / 2)?;
    let seeders = peers.hear("ready")?;
    let mut agent = fetcher(lab.path(), &meta, Some(&dir.path().join("store")), &seeders)?;
    let place = agent.hear("ready")?.join(" ");
    peers.tell(&place)?;
    let ran = run(&mut agent)?;
    agent.end()?;
    peers.end()?;
    let of = |name: &str, ours, bound| {
        let measure = Measure::of(name, "MiB", (Some(ours), Some(bound)), 1.0);
        measure.note("peer: the bound")
    };
    Ok(vec![
        of("memory/idle", idle, IDLE),
        of("memory/full-speed", ran.memory, FULL_SPEED),
    ])
}

/// A blob of 100 GB from one host to another, neither of which has a disk for it.
pub(crate) fn huge(lab: &Lab) -> Outcome<Vec<Measure>> {
    let meta = made_meta(lab, lab.effort.huge_bytes)?;
    let mut seeder = crowd(lab.path(), &meta, 1, 0)?;
    let place = seeder.hear("ready")?;
    let mut leecher = fetcher(lab.path(), &meta, None, &place)?;
    leecher.hear("ready")?;
    let ran = run(&mut leecher)?;
    let sent_with = seeder.peak_memory()? as f64 / MIB;
    leecher.end()?;
    seeder.end()?;
    let metainfo = fs::metadata(&meta)?.len() as f64 / 1024.0;
    let of = |name: &str, unit, ours, bound| {
        let measure = Measure::of(name, unit, (Some(ours), Some(bound)), 1.0);
        measure.note("peer: the bound")
    };
    Ok(vec![
        of("huge/metainfo", "KiB", metainfo, METAINFO),
        of("huge/first-byte", "s", ran.first, FIRST),
        of("huge/memory-receiver", "MiB", ran.memory, FULL_SPEED),
        of("huge/memory-sender", "MiB", sent_with, FULL_SPEED),
    ])
}

struct Ran {
    /// Seconds until the first byte.
    first: f64,
    /// In MiB.
    memory: f64,
}

fn run(agent: &mut Child) -> Outcome<Ran> {
    agent.go()?;
    let first: f64 = agent.hear("first")?.concat().parse()?;
    let (wall, cpu) = agent.done()?;
    let memory = agent.peak_memory()? as f64 / MIB;
    eprintln!("  first byte {first:.3} s, all {wall:.1} s, cpu {cpu:.1} s, memory {memory:.1} MiB");
    Ok(Ran { first, memory })
}

/// The file with the metainfo of a blob that needs no disk.
fn made_meta(lab: &Lab, length: u64) -> Outcome<PathBuf> {
    eprintln!("  hashing {length} bytes");
    let path = lab.path().join(format!("made-{length}"));
    fs::write(&path, made::meta(length).encode())?;
    Ok(path)
}
