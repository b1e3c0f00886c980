//! What `kraken doctor`, `kraken explain` and `kraken top` take.

use std::path::PathBuf;

use clap::Args;

use super::TlsFiles;

/// An agent, as whoever asks it finds it.
#[derive(Debug, Args)]
pub(crate) struct AgentFace {
    /// The agent's registry, such as 127.0.0.1:7610 or https://localhost:7610.
    #[arg(long, default_value = "127.0.0.1:7610", env = "KRAKEN_AGENT")]
    pub(crate) agent: String,
    #[command(flatten)]
    pub(crate) tls: TlsFiles,
}

/// What is looked at.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) face: AgentFace,
    /// All processes of the cluster that `kraken dev` runs in this directory, instead of one agent.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Another root than / for the configuration of container runtimes.
    #[arg(long, default_value = "/")]
    pub(crate) root: PathBuf,
    /// Prints one JSON object and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is explained.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A blob as sha256:…, or an image as repository:tag or repository@digest.
    pub(crate) what: String,
    #[command(flatten)]
    pub(crate) face: AgentFace,
    /// Prints one JSON object and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is shown.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) face: AgentFace,
    /// All agents and origins of the cluster that `kraken dev` runs in this directory, instead of one
    /// agent.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Prints what happened within one second, and ends.
    #[arg(long)]
    pub(crate) once: bool,
    /// Prints one JSON object a second and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}
