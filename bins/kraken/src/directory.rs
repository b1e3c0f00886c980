//! Where the processes of a cluster in a directory are: `kraken dev` writes it down there for whoever
//! asks about them.

use std::path::Path;

use kraken_daemon::Tls;
use serde::{Deserialize, Serialize};

use crate::Failure;

/// The file's name.
const FILE: &str = "cluster.json";

/// The processes of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// All of them.
    pub processes: Vec<Process>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its name, such as `agent-1`.
    pub name: String,
    /// What it is: `origin`, `tracker`, `build-index`, `proxy` or `agent`.
    pub role: String,
    /// Where its HTTP face answers.
    pub url: String,
}

impl Directory {
    /// Reads what a cluster in `dir` wrote at its start.
    ///
    /// # Errors
    /// There is none, or the file makes no sense.
    pub fn read(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path);
        let doing = format!(
            "read {}: a cluster of `kraken dev` writes it at its start",
            path.display()
        );
        let text = text.map_err(Failure::io(doing))?;
        let read = serde_json::from_str(&text);
        read.map_err(|error| Failure::Other(format!("{}: {error}", path.display())))
    }

    /// Writes it down.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(FILE);
        let text = serde_json::json!(self);
        let written = std::fs::write(&path, format!("{text:#}\n"));
        written.map_err(Failure::io(format!("write {}", path.display())))
    }

    /// A certificate with which all of them may be asked.
    pub fn tls(&self, dir: &Path) -> Tls {
        let path = |name: &str| dir.join("tls").join(name);
        Tls::new(path("operator.crt"), path("operator.key"), path("ca.crt"))
    }
}
