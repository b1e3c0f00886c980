//! The Kraken agent as a process: `kraken-agent --config FILE.yaml`, until SIGTERM.

use std::process::ExitCode;

use kraken_daemon::agent::start;

fn main() -> ExitCode {
    kraken_daemon::run("kraken-agent", start)
}
