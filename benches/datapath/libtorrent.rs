//! The same transfer by libtorrent, if it is installed: a session on either side, a process each.

use std::process::Command;

use crate::Outcome;
use crate::lab::{Lab, payload_path};
use crate::measure::Sample;
use crate::process::{self, Child, scratch};

/// What is said of measures that cannot be had.
pub(crate) const MISSING: &str = "skipped: python3-libtorrent is not installed";

const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("torrent.py");

/// The lab's blob as a torrent of version 2: SHA-256 over blocks of 16 KiB.
pub(crate) struct Torrent;

impl Torrent {
    /// `None`, and a word about it, where libtorrent is not installed.
    pub(crate) fn make(lab: &Lab) -> Outcome<Option<Self>> {
        let found = Command::new(PYTHON)
            .args(["-c", "import libtorrent"])
            .output();
        if !found.is_ok_and(|found| found.status.success()) {
            eprintln!("  {MISSING}");
            return Ok(None);
        }
        std::fs::write(lab.path().join("torrent.py"), SCRIPT)?;
        let made = script(lab, "make")
            .arg(payload_path(lab.path()))
            .arg(lab.path().join("torrent"))
            .status()?;
        if made.success() {
            Ok(Some(Self))
        } else {
            Err("libtorrent does not make a torrent".into())
        }
    }

    /// Over TCP, in plaintext or with all bytes under RC4.
    pub(crate) fn one(&self, lab: &Lab, rc4: bool) -> Outcome<Sample> {
        let (run, torrent) = (scratch(lab.path())?, lab.path().join("torrent"));
        let rc4 = if rc4 { "rc4" } else { "plain" };
        let plain = lab.path().join("plain");
        let seed = Child::spawn(script(lab, "seed").arg(&torrent).arg(plain).arg(rc4))?;
        process::pair(seed, |ready| {
            let mut leech = script(lab, "leech");
            Child::spawn(leech.arg(&torrent).arg(run.path()).arg(rc4).args(ready))
        })
    }
}

fn script(lab: &Lab, role: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command.arg(lab.path().join("torrent.py")).arg(role);
    command
}
