//! How often one host may announce.
//!
//! A host announces a few times a minute for each 256 of its blobs, and at once for what it begins to
//! fetch; it tells two trackers, and those of several get each their part. One that asks without end, broken
//! or hostile, would keep a tracker from all others.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::peer::PeerId;
use crate::time::Timestamp;

/// Announces of one host that may come at once: a host that starts with a hundred thousand blobs says so
/// in 400 to one tracker and in as many to another, and with several trackers in some of these each.
const BURST: u64 = 2000;
/// The time after which it may send one more.
const EVERY: Duration = Duration::from_millis(20);
/// Hosts whose announces are counted at a time: a large cluster's. When there are more, those that have been
/// silent for long are forgotten, or all.
const MOST: usize = 1 << 16;

/// Who announced how often. Invariant: at most `MOST` hosts.
#[derive(Debug, Default)]
pub struct Pace {
    /// Until when each host would be silent if it kept to one announce in `EVERY` (the virtual scheduling
    /// algorithm of ITU-T I.371, annex A).
    due: BTreeMap<PeerId, Timestamp>,
}

impl Pace {
    /// Whether a host may announce now; then it is counted.
    pub fn admit(&mut self, now: Timestamp, host: PeerId) -> bool {
        if self.due.len() >= MOST && !self.due.contains_key(&host) {
            self.due.retain(|_, due| *due > now);
            if self.due.len() >= MOST {
                self.due.clear();
            }
        }
        let due = self.due.entry(host).or_insert(now);
        let begun = (*due).max(now);
        let patience = EVERY * u32::try_from(BURST).unwrap_or(u32::MAX);
        if begun.since(now) >= patience {
            return false;
        }
        *due = begun + EVERY;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(number: u8) -> PeerId {
        PeerId::from_bytes([number; 32])
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_flood_is_cut_and_its_neighbours_are_heard() {
        let mut pace = Pace::default();
        let passed = (0..100_000).filter(|n| pace.admit(at(n / 100), host(1)));
        // A second's worth of the rate comes on top of what may come at once.
        assert_eq!(passed.count() as u64, BURST + 50);
        assert!(pace.admit(at(1000), host(2)));
        assert!(!pace.admit(at(1000), host(1)));
        assert!(pace.admit(at(1020), host(1)), "it may go on at its pace");
    }

    #[test]
    fn as_many_hosts_as_there_are_certificates_are_bounded() {
        let mut pace = Pace::default();
        for n in 0..=(MOST as u32) {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            assert!(pace.admit(at(0), PeerId::from_bytes(id)));
        }
        assert!(pace.due.len() <= MOST);
    }

    proptest! {
        #[test]
        fn no_host_ever_gets_more_than_its_burst_and_its_rate(
            steps in proptest::collection::vec(0_u64..50, 1..2000)
        ) {
            let mut pace = Pace::default();
            let (mut now, mut passed) = (0, 0);
            for step in steps {
                now += step;
                passed += u64::from(pace.admit(at(now), host(1)));
                prop_assert!(passed <= BURST + now / 20 + 1);
            }
        }
    }
}
