//! Which build-indexes a command asks.

use clap::Args;

use super::TlsFiles;

/// The build-indexes of a cluster, and how they are reached.
#[derive(Debug, Args)]
pub(crate) struct IndexArgs {
    /// The build-indexes, such as https://index-1:7604, with commas. For a tag the next is asked when one does
    /// not answer; of images on their way to other clusters each tells its part, so name all.
    #[arg(
        long,
        env = "KRAKEN_BUILD_INDEX",
        global = true,
        value_delimiter = ',',
        default_value = "https://127.0.0.1:7601"
    )]
    pub(crate) build_index: Vec<String>,
    #[command(flatten)]
    pub(crate) tls: TlsFiles,
}
