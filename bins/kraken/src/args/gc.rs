//! What `kraken gc` is told.

use clap::Args;

use super::{Grace, TlsFiles};

/// What is collected.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// The build-indexes, such as https://index-1:7604, with commas: the first that answers collects.
    #[arg(
        long,
        env = "KRAKEN_BUILD_INDEX",
        value_delimiter = ',',
        default_value = "https://127.0.0.1:7601"
    )]
    pub(crate) build_index: Vec<String>,
    /// How long nobody may have asked about a blob before it goes, such as 24h.
    #[arg(long, default_value = "24h")]
    pub(crate) grace: Grace,
    /// Removes them from the storage behind the origins as well: only where no other cluster or tool
    /// keeps blobs there.
    #[arg(long)]
    pub(crate) stored: bool,
    /// Counts only.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Prints one JSON object and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) tls: TlsFiles,
}
