//! The Kraken proxy as a process: `kraken-proxy --config FILE.yaml`, until SIGTERM.

use std::process::ExitCode;

use kraken_daemon::proxy::start;

fn main() -> ExitCode {
    kraken_daemon::run("kraken-proxy", start)
}
