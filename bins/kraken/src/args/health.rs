//! What `kraken health` takes.

use clap::Args;

use super::TlsFiles;

/// Which process is asked, and what.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// The process, such as http://127.0.0.1:7610 or https://origin-1:7605.
    pub(crate) process: String,
    /// Asks only whether it answers, not whether it can do its work.
    #[arg(long)]
    pub(crate) live: bool,
    #[command(flatten)]
    pub(crate) tls: TlsFiles,
}
