//! The services of the binaries, as roles of this program.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kraken_daemon::process::{init_log, run_until_signal};
use kraken_daemon::{agent, origin, proxy};

use crate::Outcome;

/// One service with its configuration, until it is told to end.
#[derive(Args)]
pub(crate) struct Service {
    kind: Kind,
    config: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Agent,
    Origin,
    Proxy,
}

impl Service {
    pub(crate) fn run(&self) -> Outcome<()> {
        init_log("off");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let config = &self.config;
        Ok(match self.kind {
            Kind::Agent => runtime.block_on(run_until_signal(config, agent::start)),
            Kind::Origin => runtime.block_on(run_until_signal(config, origin::start)),
            Kind::Proxy => runtime.block_on(run_until_signal(config, proxy::start)),
        }?)
    }
}
