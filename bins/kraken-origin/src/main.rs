//! The Kraken origin as a process: `kraken-origin --config FILE.yaml`, until SIGTERM.

use std::process::ExitCode;

use kraken_daemon::origin::start;

fn main() -> ExitCode {
    kraken_daemon::run("kraken-origin", start)
}
