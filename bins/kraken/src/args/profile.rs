//! What `kraken profile` takes.

use std::path::PathBuf;

use clap::Args;

use super::TlsFiles;

/// Which process, and for how long.
#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// The process, such as http://127.0.0.1:7610 or https://origin-1:7605.
    pub(crate) process: String,
    /// Seconds for which samples are taken, at most 60.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) seconds: u64,
    /// Samples per second of processor time, at most 1000.
    #[arg(long, default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) frequency: u32,
    /// The file that they go to; otherwise they are printed.
    #[arg(long, short)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tls: TlsFiles,
}
