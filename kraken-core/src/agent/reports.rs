//! Telling people who look on what this host moves.

use std::sync::Arc;
use std::time::Duration;

use kraken_proto::PeerInfo;
use kraken_proto::rng::Rng;
use kraken_proto::tracker::report::{HostReport, Traffic};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::driver::Note;
use crate::dynamic::DynDiscovery;
use crate::metrics::Metrics;

/// How long a host waits when nobody wants a report.
const UNWANTED: Duration = Duration::from_secs(60);
/// The same when nobody who might could be told.
const RETRY: Duration = Duration::from_secs(15);
/// Bounds of what a tracker asks for.
const LEAST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(60);

/// The parts of a host that tells of itself.
pub(super) struct Reporting {
    pub(super) local: PeerInfo,
    /// What people call the host.
    pub(super) name: String,
    pub(super) discovery: Arc<dyn DynDiscovery>,
    pub(super) metrics: Arc<Metrics>,
    /// Weak, so that the driver ends with the last handle.
    pub(super) notes: mpsc::WeakSender<Note>,
}

impl Reporting {
    /// Reports whenever somebody wants to know, until the driver ends.
    pub(super) async fn run(self) {
        let seed = self.local.id.as_bytes()[..8].try_into();
        let mut rng = Rng::seeded(u64::from_be_bytes(seed.expect("8 of 32 bytes")));
        let mut again = false;
        loop {
            let Some(report) = self.report(again).await else {
                return;
            };
            let wait = match self.discovery.report(report).await {
                Ok(Some(next)) => {
                    again = false;
                    next.clamp(LEAST, MOST)
                }
                // What is not wanted is told when it is.
                Ok(None) => {
                    again = true;
                    UNWANTED
                }
                Err(error) => {
                    tracing::debug!(%error, "nobody takes a report");
                    again = true;
                    RETRY
                }
            };
            // A fleet that was started at once does not report in step for ever.
            sleep(wait.mul_f64(0.9 + 0.2 * rng.unit())).await;
        }
    }

    async fn report(&self, again: bool) -> Option<HostReport> {
        let (reply, answer) = oneshot::channel();
        let notes = self.notes.upgrade()?;
        notes.send(Note::Report { again, reply }).await.ok()?;
        drop(notes);
        let blobs = answer.await.ok()?;
        Some(HostReport {
            peer: self.local.clone(),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            moved: Traffic {
                from_origins: self.metrics.bytes_from_origins(),
                from_agents: self.metrics.bytes_from_agents(),
                sent: self.metrics.bytes_sent(),
            },
            blobs,
        })
    }
}

/// `name` as far as a report may hold it.
pub(super) fn fitting(name: &str) -> String {
    let mut fitting = String::new();
    for letter in name.chars().filter(|letter| !letter.is_control()) {
        if fitting.len() + letter.len_utf8() > HostReport::MAX_NAME {
            break;
        }
        fitting.push(letter);
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_where_a_letter_ends() {
        assert_eq!(fitting("host-1.example.test"), "host-1.example.test");
        assert_eq!(fitting("a\nb"), "ab");
        assert_eq!(fitting(&"ä".repeat(40)), "ä".repeat(32));
        assert_eq!(fitting(&format!("x{}", "ä".repeat(40))).len(), 63);
    }
}
