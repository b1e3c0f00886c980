//! The Kraken build-index as a process: `kraken-build-index --config FILE.yaml`, until SIGTERM.

use std::process::ExitCode;

use kraken_daemon::build_index::start;

fn main() -> ExitCode {
    kraken_daemon::run("kraken-build-index", start)
}
