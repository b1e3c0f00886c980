//! Datagrams that wait to go out in one call.
//!
//! quinn hands over ten datagrams at most; the kernel takes as many as one packet of IP would hold,
//! and each call costs as much as several datagrams. So what quinn hands over is put together as
//! long as more of the same is to be expected: a connection that had less to say than it could has
//! nothing more.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// The longest payload of UDP over IPv4, 65,535 bytes less both headers: no call takes more.
pub(super) const MOST_BYTES: usize = 65_507;

/// Datagrams of one size for one place. The last may be shorter, and then nothing follows it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Of each datagram, in bytes.
    segment: usize,
    way: Option<Way>,
}

/// What all datagrams of a call have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
}

impl Way {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            source: transmit.src_ip,
            ecn: transmit.ecn,
        }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether `transmit` may follow what is in here.
    pub(super) fn takes(&self, transmit: &Transmit<'_>, most_segments: usize) -> bool {
        let joined = self.bytes.len() + transmit.contents.len();
        self.way == Some(Way::of(transmit))
            && self.bytes.len().is_multiple_of(self.segment)
            && segment(transmit) <= self.segment
            // One that is shorter must be the only one.
            && (segment(transmit) == self.segment || count(transmit) == 1)
            && joined <= MOST_BYTES
            && joined.div_ceil(self.segment) <= most_segments
    }

    /// Adds what [`Batch::takes`], or begins with it.
    pub(super) fn push(&mut self, transmit: &Transmit<'_>) {
        if self.is_empty() {
            self.segment = segment(transmit);
            self.way = Some(Way::of(transmit));
            self.bytes.reserve_exact(MOST_BYTES);
        }
        self.bytes.extend_from_slice(transmit.contents);
    }

    /// Whether as much as `transmit` again would still fit.
    pub(super) fn has_room_after(
        transmit: &Transmit<'_>,
        before: usize,
        most_segments: usize,
    ) -> bool {
        let then = before + 2 * transmit.contents.len();
        then <= MOST_BYTES && then.div_ceil(segment(transmit)) <= most_segments
    }

    /// Bytes in here.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// All of it in one call; `None` when it is empty.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        let way = self.way.filter(|_| !self.is_empty())?;
        Some(Transmit {
            destination: way.destination,
            ecn: way.ecn,
            contents: &self.bytes,
            segment_size: (self.bytes.len() > self.segment).then_some(self.segment),
            src_ip: way.source,
        })
    }

    /// Forgets what has gone out.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.way = None;
    }
}

/// Bytes of each datagram but perhaps the last.
fn segment(transmit: &Transmit<'_>) -> usize {
    transmit
        .segment_size
        .unwrap_or(transmit.contents.len())
        .max(1)
}

/// How many datagrams there are.
pub(super) fn count(transmit: &Transmit<'_>) -> usize {
    transmit.contents.len().div_ceil(segment(transmit))
}

/// Whether the last datagram is as long as the others.
pub(super) fn is_even(transmit: &Transmit<'_>) -> bool {
    transmit.contents.len().is_multiple_of(segment(transmit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transmit(contents: &[u8], segment: usize) -> Transmit<'_> {
        Transmit {
            destination: SocketAddr::from(([127, 0, 0, 1], 7)),
            ecn: Some(EcnCodepoint::Ect0),
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: None,
        }
    }

    #[test]
    fn equal_datagrams_are_put_together_as_far_as_one_packet_goes() {
        let bytes = vec![7; 14_520];
        let ten = transmit(&bytes, 1452);
        let mut batch = Batch::default();
        assert!(!batch.takes(&ten, 64) && batch.transmit().is_none());
        for round in 1..=4 {
            batch.push(&ten);
            assert_eq!(batch.takes(&ten, 64), round < 4, "{round}");
            let before = batch.len() - ten.contents.len();
            assert_eq!(
                Batch::has_room_after(&ten, before, 64),
                round < 4,
                "{round}"
            );
        }
        let all = batch.transmit().unwrap();
        assert_eq!((all.contents.len(), all.segment_size), (58_080, Some(1452)));
        assert_eq!((count(&all), all.destination), (40, ten.destination));
        batch.clear();
        assert!(batch.transmit().is_none() && !batch.takes(&ten, 64));
    }

    #[test]
    fn no_more_datagrams_than_the_kernel_takes() {
        let bytes = vec![7; 1000];
        let ten = transmit(&bytes, 100);
        let mut batch = Batch::default();
        batch.push(&ten);
        assert!(batch.takes(&ten, 20) && !batch.takes(&ten, 19));
        assert!(Batch::has_room_after(&ten, 0, 20) && !Batch::has_room_after(&ten, 0, 19));
    }

    #[test]
    fn a_shorter_one_ends_it_and_others_are_not_put_in() {
        let bytes = vec![7; 3000];
        let mut batch = Batch::default();
        batch.push(&transmit(&bytes[..3000], 1000));
        let foreign = Transmit {
            destination: SocketAddr::from(([127, 0, 0, 1], 8)),
            ..transmit(&bytes, 1000)
        };
        let unmarked = Transmit {
            ecn: None,
            ..transmit(&bytes, 1000)
        };
        assert!(!batch.takes(&foreign, 64) && !batch.takes(&unmarked, 64));
        assert!(!batch.takes(&transmit(&bytes, 1500), 64), "longer");
        assert!(
            !batch.takes(&transmit(&bytes, 500), 64),
            "shorter, but several"
        );
        batch.push(&transmit(&bytes[..500], 500));
        assert!(!batch.takes(&transmit(&bytes[..500], 500), 64), "ended");
        assert_eq!(count(&batch.transmit().unwrap()), 4);
        assert!(!is_even(&batch.transmit().unwrap()));
    }
}
