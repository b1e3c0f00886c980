//! A configuration that changes while its process runs: on SIGHUP, and when a file of it changes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::check::ProcessConfig;
use crate::log;
use crate::metrics::Family;
use crate::problems::Problems;
use crate::process::{Service, StartError};
use crate::settings::{Layers, Schema, Sources};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How often a new configuration was taken over, and refused.
static TAKEN: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// Keys that differ from those that the process started with, until it is restarted.
static WAITING: AtomicU64 = AtomicU64::new(0);

/// The keys that a new configuration has other values of.
#[derive(Debug, Default)]
pub struct Changed(Vec<String>);

impl Changed {
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|it| it == key)
    }

    /// What `read` makes of a key that has changed.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) fn then<T>(
        &self,
        key: &str,
        read: impl FnOnce() -> Result<T, Problems>,
    ) -> Result<Option<T>, StartError> {
        Ok(self.has(key).then(read).transpose()?)
    }
}

/// Asks for a new look at the configuration by SIGHUP, which would otherwise end the process.
pub(crate) struct Asked(Option<Signal>);

impl Asked {
    /// From now on.
    pub(crate) fn watch() -> Self {
        let hangup = signal(SignalKind::hangup());
        Self(
            hangup
                .map_err(|error| tracing::warn!(%error, "SIGHUP cannot be watched"))
                .ok(),
        )
    }

    async fn once(&mut self) {
        match &mut self.0 {
            Some(hangup) => drop(hangup.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Follows the configuration of a service, for ever.
pub(crate) async fn follow<S: Service>(
    service: &S,
    sources: &Sources,
    running: Layers,
    mut asked: Asked,
) {
    let mut following = Following {
        service,
        sources,
        schema: Schema::of::<S::Config>(),
        running,
    };
    // Files may have changed while the service was started: they are looked at once in any case.
    let mut seen = Vec::new();
    let mut complaint = None;
    loop {
        let is_asked = tokio::select! {
            () = asked.once() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = stamps(following.running.files());
        if !is_asked && now == seen {
            continue;
        }
        seen = now;
        let Err(error) = following.look(is_asked) else {
            complaint = None;
            continue;
        };
        // What it lacks, such as a file that it names, may come later.
        seen.clear();
        let error = error.to_string();
        if is_asked || complaint.as_ref() != Some(&error) {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                error,
                "the new configuration is not taken: the one before stays"
            );
            complaint = Some(error);
        }
    }
}

struct Following<'s, S> {
    service: &'s S,
    sources: &'s Sources,
    schema: Schema,
    /// What the service does: of keys that cannot change, what it started with.
    running: Layers,
}

impl<S: Service> Following<'_, S> {
    /// Takes over what has changed: all that can, or nothing.
    fn look(&mut self, is_asked: bool) -> Result<(), StartError> {
        let layers = self.sources.layers(&self.schema)?;
        self.running.follow_files_of(&layers);
        let config: S::Config = layers.typed_or_all()?;
        let differs = layers.differs_in(&self.running);
        let (live, waiting) = live_of(S::Config::LIVE, differs);
        if live.is_empty() && waiting.is_empty() {
            if is_asked {
                tracing::info!("the configuration is as before");
            }
            WAITING.store(0, Ordering::Relaxed);
            return Ok(());
        }
        let told = live.join(", ");
        let (filter, format) = (config.log().cloned(), config.log_format());
        let changed = Changed(live);
        let is_logged_otherwise = changed.has("log");
        let taken = self.service.reload(config, &changed);
        taken.map_err(|error| error.located(&layers))?;
        if is_logged_otherwise {
            log::set_filter(filter.as_ref());
        }
        log::set_format(format);
        let taken: Vec<_> = changed.0.iter().map(String::as_str).collect();
        self.running.take_over(&taken, &layers);
        TAKEN.fetch_add(1, Ordering::Relaxed);
        WAITING.store(waiting.len() as u64, Ordering::Relaxed);
        if !told.is_empty() {
            tracing::info!(changed = told, "the configuration is another one now");
        }
        if !waiting.is_empty() {
            let keys = waiting.join(", ");
            tracing::warn!("needs a restart: {keys}");
        }
        Ok(())
    }
}

/// The keys that can change now, and those that wait for a restart. A list does so, too, when it was or will
/// be in a file or in the DNS, `KEY_file` or `KEY_dns`: who follows that is not told.
fn live_of(can: &[&str], differs: Vec<String>) -> (Vec<String>, Vec<String>) {
    let moves = |key: &str| {
        let elsewhere = ["file", "dns"].map(|at| format!("{key}_{at}"));
        elsewhere.iter().any(|it| differs.contains(it))
    };
    let is_live = |key: &&String| can.contains(&key.as_str()) && !moves(key);
    let live: Vec<_> = differs.iter().filter(is_live).cloned().collect();
    let waiting = differs.into_iter().filter(|key| !live.contains(key));
    let waiting = waiting.collect();
    (live, waiting)
}

/// What tells whether a file is another one: its time, length and number.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |file: &PathBuf| {
        let it = std::fs::metadata(file).ok()?;
        Some((it.modified().ok()?, it.len(), it.ino()))
    };
    files.iter().map(stamp).collect()
}

/// How often the configuration has changed, as metrics.
pub(crate) fn metrics() -> String {
    let families = [
        Family::counter(
            "kraken_config_reloads",
            "New configurations that were taken over.",
        )
        .sample(&[], TAKEN.load(Ordering::Relaxed)),
        Family::counter(
            "kraken_config_refused",
            "New configurations that were wrong.",
        )
        .sample(&[], REFUSED.load(Ordering::Relaxed)),
        Family::gauge(
            "kraken_config_waiting",
            "Keys that need a restart to change.",
        )
        .sample(&[], WAITING.load(Ordering::Relaxed)),
    ];
    families.map(Family::text).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_moves_to_a_file_waits_for_a_restart() {
        let keys = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let can = ["log", "origins", "trackers"];
        let differs = keys(&["listen", "log", "origins", "origins_file", "trackers"]);
        let (live, waiting) = live_of(&can, differs);
        assert_eq!(live, keys(&["log", "trackers"]));
        assert_eq!(waiting, keys(&["listen", "origins", "origins_file"]));
    }
}
