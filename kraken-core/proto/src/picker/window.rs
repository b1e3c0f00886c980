//! What readers wait for: the pieces just ahead of each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::time::Timestamp;

/// Names one reader of a blob; the shell chooses the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// The readers of one blob.
#[derive(Debug, Default)]
pub(crate) struct Window {
    readers: BTreeMap<ReaderId, Reader>,
}

#[derive(Debug)]
struct Reader {
    /// What it still wants, in order.
    wants: Range<u32>,
    /// Since when `wants.start` has been next.
    since: Timestamp,
    /// Whether it has not had any piece yet: its first byte should come at once.
    fresh: bool,
}

impl Window {
    /// A reader wants these pieces from now on; an empty range ends it.
    pub(crate) fn set(&mut self, now: Timestamp, id: ReaderId, wants: Range<u32>) {
        if wants.is_empty() {
            self.readers.remove(&id);
            return;
        }
        match self.readers.get_mut(&id) {
            Some(reader) if reader.wants.start == wants.start => reader.wants = wants,
            Some(reader) => {
                *reader = Reader {
                    wants,
                    since: now,
                    fresh: false,
                }
            }
            None => {
                self.readers.insert(
                    id,
                    Reader {
                        wants,
                        since: now,
                        fresh: true,
                    },
                );
            }
        }
    }

    /// What a reader still wants; nothing when there is no such reader.
    pub(crate) fn wants(&self, id: ReaderId) -> Range<u32> {
        let reader = self.readers.get(&id);
        reader.map_or(0..0, |reader| reader.wants.clone())
    }

    /// Whether a reader wants `piece`, now or later.
    pub(crate) fn contains(&self, piece: u32) -> bool {
        let mut readers = self.readers.values();
        readers.any(|reader| reader.wants.contains(&piece))
    }

    /// Whether nobody reads.
    pub(crate) fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }

    /// The pieces up to `depth` ahead of each reader, nearest first.
    pub(crate) fn ahead(&self, depth: u32) -> impl Iterator<Item = u32> + '_ {
        (0..depth).flat_map(|step| {
            self.readers.values().filter_map(move |reader| {
                let piece = reader.wants.start.checked_add(step)?;
                reader.wants.contains(&piece).then_some(piece)
            })
        })
    }

    /// The next piece of every reader that has just begun or has waited for `patience`.
    pub(crate) fn urgent(
        &self,
        now: Timestamp,
        patience: Duration,
    ) -> impl Iterator<Item = u32> + '_ {
        let due = move |reader: &&Reader| reader.fresh || now.since(reader.since) >= patience;
        self.readers
            .values()
            .filter(due)
            .map(|reader| reader.wants.start)
    }

    /// The next piece of every reader that has waited for `patience`.
    pub(crate) fn late(
        &self,
        now: Timestamp,
        patience: Duration,
    ) -> impl Iterator<Item = u32> + '_ {
        let late = move |reader: &&Reader| now.since(reader.since) >= patience;
        let late = self.readers.values().filter(late);
        late.map(|reader| reader.wants.start)
    }

    /// When the next reader runs out of patience, after `now`.
    pub(crate) fn next_urgent(&self, now: Timestamp, patience: Duration) -> Option<Timestamp> {
        self.readers
            .values()
            .map(|reader| reader.since + patience)
            .filter(|at| *at > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(250);

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn nearest_pieces_first_over_all_readers() {
        let mut window = Window::default();
        window.set(at(0), ReaderId(1), 0..3);
        window.set(at(0), ReaderId(2), 10..100);
        assert_eq!(
            window.ahead(4).collect::<Vec<_>>(),
            [0, 10, 1, 11, 2, 12, 13]
        );
        window.set(at(0), ReaderId(1), 3..3);
        assert_eq!(window.ahead(1).collect::<Vec<_>>(), [10]);
    }

    #[test]
    fn a_fresh_reader_is_urgent_and_later_only_a_patient_one() {
        let mut window = Window::default();
        window.set(at(0), ReaderId(1), 0..9);
        assert_eq!(window.urgent(at(0), PATIENCE).collect::<Vec<_>>(), [0]);
        window.set(at(5), ReaderId(1), 1..9);
        assert_eq!(window.urgent(at(5), PATIENCE).count(), 0);
        assert_eq!(window.next_urgent(at(5), PATIENCE), Some(at(255)));
        // Asking again for the same piece does not start the wait anew.
        window.set(at(100), ReaderId(1), 1..9);
        assert_eq!(window.urgent(at(255), PATIENCE).collect::<Vec<_>>(), [1]);
        assert_eq!(window.next_urgent(at(255), PATIENCE), None);
    }
}
