//! What an origin was asked about, kept over a restart: see [`kraken_proto::garbage`].
//!
//! A file that only grows: a head, then 40 bytes for each question that is written down. It is left to the
//! kernel when it reaches the disk, because it counts only while the host has not been started anew: what
//! a process wrote before it was killed is there then, and times can be told by how long the host has run.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use kraken_proto::garbage::Garbage;
use kraken_proto::{Digest, Timestamp};

use crate::clock::host_run;

/// Names the format.
const MAGIC: &[u8; 8] = b"KRKASK1\n";
/// A digest and when it was asked about, in milliseconds since the host was started.
const RECORD: usize = 32 + 8;
/// Records beyond those that count, and four times these, until the file is written anew.
const SLACK: usize = 10_000;

/// The file.
pub(super) struct AskedFile {
    path: PathBuf,
    /// Which run of the host its times are of.
    run: String,
    file: Option<File>,
    records: usize,
}

/// What stood in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// For how long until now all that was asked is known.
    pub(super) complete_for: Duration,
    /// Which blobs were asked about, and how long ago.
    pub(super) asked: Vec<(Digest, Duration)>,
}

impl AskedFile {
    /// None where the host does not tell for how long it has run.
    pub(super) fn new(path: PathBuf) -> Option<Self> {
        let (run, _) = host_run()?;
        Some(Self {
            path,
            run,
            file: None,
            records: 0,
        })
    }

    /// What an earlier process wrote, if that was in the same run of the host.
    pub(super) fn load(&self) -> Option<Known> {
        let bytes = fs::read(&self.path).ok()?;
        let (_, now) = host_run()?;
        parse(&bytes, &self.run, now)
    }

    /// Writes all of it anew.
    pub(super) fn write_anew(&mut self, now: Timestamp, garbage: &Garbage) {
        let written = self.try_write_anew(now, garbage);
        self.check(written);
    }

    /// Adds a question of just now.
    pub(super) fn add(&mut self, now: Timestamp, garbage: &Garbage, digest: Digest) {
        if self.records > 4 * garbage.asked().len() + SLACK {
            self.write_anew(now, garbage);
            return;
        }
        let added = self.try_add(digest);
        self.check(added);
    }

    fn try_add(&mut self, digest: Digest) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let (_, ran) = host_run().ok_or(io::ErrorKind::Unsupported)?;
        file.write_all(&record(digest, ran))?;
        self.records += 1;
        Ok(())
    }

    fn try_write_anew(&mut self, now: Timestamp, garbage: &Garbage) -> io::Result<()> {
        let (_, ran) = host_run().ok_or(io::ErrorKind::Unsupported)?;
        let ran_at = |at: Timestamp| ran.saturating_sub(now.since(at));
        let mut bytes = head(&self.run, ran_at(garbage.since()));
        for (digest, at) in garbage.asked() {
            bytes.extend(record(digest, ran_at(at)));
        }
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        fs::rename(&beside, &self.path)?;
        self.records = garbage.asked().len();
        self.file = Some(file);
        Ok(())
    }

    /// A file that lacks something must not be believed after the next restart.
    fn check(&mut self, written: io::Result<()>) {
        let Err(error) = written else { return };
        self.file = None;
        let removed = fs::remove_file(&self.path);
        let path = self.path.display();
        tracing::warn!(%path, %error, ?removed, "what was asked is forgotten at the next restart");
    }
}

fn head(run: &str, complete_since: Duration) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let len = u8::try_from(run.len()).unwrap_or(u8::MAX);
    bytes.push(len);
    bytes.extend(&run.as_bytes()[..usize::from(len)]);
    bytes.extend(millis(complete_since).to_be_bytes());
    bytes
}

fn record(digest: Digest, ran: Duration) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..32].copy_from_slice(digest.as_bytes());
    bytes[32..].copy_from_slice(&millis(ran).to_be_bytes());
    bytes
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What the bytes say, `now` being how long the host has run. None when they are of another run, damaged,
/// or of a time that has not come yet.
fn parse(bytes: &[u8], run: &str, now: Duration) -> Option<Known> {
    let ago = |millis: [u8; 8]| now.checked_sub(Duration::from_millis(u64::from_be_bytes(millis)));
    let rest = bytes.strip_prefix(MAGIC)?;
    let (len, rest) = rest.split_first()?;
    let (said, rest) = rest.split_at_checked(usize::from(*len))?;
    if said != run.as_bytes() {
        return None;
    }
    let (since, rest) = rest.split_first_chunk()?;
    let complete_for = ago(*since)?;
    // A record that is cut off was not answered yet.
    let records = rest.chunks_exact(RECORD).map(|record| {
        let (digest, at) = record.split_first_chunk::<32>()?;
        Some((Digest::from_bytes(*digest), ago(at.try_into().ok()?)?))
    });
    let asked = records.collect::<Option<Vec<_>>>()?;
    Some(Known {
        complete_for,
        asked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn what_is_written_is_read_in_the_same_run_of_the_host_only() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let mut bytes = head("run", seconds(10));
        bytes.extend(record(one, seconds(20)));
        bytes.extend(record(two, seconds(30)));
        let known = Known {
            complete_for: seconds(90),
            asked: vec![(one, seconds(80)), (two, seconds(70))],
        };
        assert_eq!(parse(&bytes, "run", seconds(100)), Some(known));
        assert_eq!(parse(&bytes, "other", seconds(100)), None);
        assert_eq!(parse(&bytes, "run", seconds(25)), None, "not yet asked");
        let cut = parse(&bytes[..bytes.len() - 1], "run", seconds(100));
        assert_eq!(cut.map(|known| known.asked.len()), Some(1));
        for len in 0..head("run", seconds(10)).len() {
            assert_eq!(parse(&bytes[..len], "run", seconds(100)), None, "{len}");
        }
    }

    #[test]
    fn questions_survive_and_a_file_that_cannot_be_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("asked");
        let Some(mut file) = AskedFile::new(path.clone()) else {
            // Not every host tells for how long it has run.
            return;
        };
        let now = Timestamp::ZERO + seconds(1000);
        let mut garbage = Garbage::new(now);
        file.write_anew(now, &garbage);
        let digests: Vec<_> = (0..3_u8).map(|it| Digest::of(&[it])).collect();
        for digest in &digests {
            garbage.ask(now, *digest);
            file.add(now, &garbage, *digest);
        }
        let read = || AskedFile::new(path.clone()).unwrap().load();
        let known = read().unwrap().asked;
        assert_eq!(known.iter().map(|it| it.0).collect::<Vec<_>>(), digests);
        // Asked all the time, it does not grow for ever.
        for _ in 0..2 * SLACK {
            file.add(now, &garbage, digests[0]);
        }
        assert!(fs::metadata(&path).unwrap().len() < (2 * SLACK * RECORD) as u64);
        file.path = dir.path().join("gone").join("asked");
        file.write_anew(now, &garbage);
        assert!(file.file.is_none());
    }
}
