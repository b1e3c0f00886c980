//! The Kraken tracker as a process: `kraken-tracker --config FILE.yaml`, until SIGTERM.

use std::process::ExitCode;

use kraken_daemon::tracker::start;

fn main() -> ExitCode {
    kraken_daemon::run("kraken-tracker", start)
}
