//! How often a tag was told that may be out of date.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts answers about tags of other registries that could not be asked then. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct StaleTags(Arc<AtomicU64>);

/// What ends a text of metrics in the OpenMetrics format.
const END: &str = "# EOF\n";

impl StaleTags {
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Metrics in the OpenMetrics format with this one added; for a process that has no others, none
    /// are `""`.
    pub fn added_to(&self, metrics: &str) -> String {
        let count = self.0.load(Ordering::Relaxed);
        let others = metrics.strip_suffix(END).unwrap_or(metrics);
        format!(
            "{others}# HELP kraken_stale_tags Manifests told by a tag of another registry that could not be asked.\n\
             # TYPE kraken_stale_tags counter\nkraken_stale_tags_total {count}\n{END}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_stays_at_the_end() {
        let stale = StaleTags::default();
        stale.clone().note();
        let text = stale.added_to("a_total 1\n# EOF\n");
        assert!(
            text.starts_with("a_total 1\n# HELP kraken_stale_tags "),
            "{text}"
        );
        assert!(
            text.ends_with("\nkraken_stale_tags_total 1\n# EOF\n"),
            "{text}"
        );
        assert_eq!(text.matches("EOF").count(), 1);
        assert!(stale.added_to("").ends_with("total 1\n# EOF\n"));
    }
}
