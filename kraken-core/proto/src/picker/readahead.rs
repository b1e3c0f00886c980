//! Who reads forward in a blob, and what to fetch ahead of it.
//!
//! Those who read parts of a blob come with ranges and without names: a lazy snapshotter asks for one
//! range after the other, several at a time, and for several files of an image at once. A *run* is a
//! stretch that was read in order, up to where its last read ended. Ahead of a run as much is fetched
//! as was read in it, up to a bound: whoever turns away has wasted no more than it used. A read that
//! goes on where none ended is one at random: it fetches nothing ahead, and halves what the runs get.

use std::ops::Range;

use crate::scheduler::input::BlobSpec;

/// Runs that are remembered, the one that was read on last kept longest: more readers at once than
/// this are not told from random reads.
const MAX_RUNS: usize = 32;

/// The runs of one blob.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// The one that was read on last is the last.
    runs: Vec<Run>,
}

/// A stretch that was read in order.
#[derive(Debug)]
struct Run {
    /// Where the next read begins if it goes on.
    next: u64,
    /// How many bytes were read in order, less what random reads took off.
    read: u64,
    /// Whether there was more than one read.
    goes_on: bool,
    /// The pieces to fetch ahead.
    ahead: Range<u32>,
}

impl Run {
    /// How far from its end a read may begin and still go on: within what is fetched ahead, or the
    /// piece that follows.
    fn reach(&self, spec: &BlobSpec) -> u64 {
        let ahead = u64::from(self.ahead.end) * spec.piece_length.bytes();
        ahead
            .saturating_sub(self.next)
            .max(spec.piece_length.bytes())
    }

    /// How far from where the run goes on a read begins; none when it is elsewhere.
    fn distance(&self, bytes: &Range<u64>, spec: &BlobSpec) -> Option<u64> {
        let near = match bytes.start.checked_sub(self.next) {
            Some(gap) => gap <= self.reach(spec),
            // Several at a time come in any order.
            None => bytes.end >= self.next - self.read,
        };
        near.then(|| bytes.start.abs_diff(self.next))
    }

    /// Takes in a read that is near.
    fn add(&mut self, bytes: &Range<u64>) {
        let before = (self.next - self.read).saturating_sub(bytes.start);
        let after = bytes.end.saturating_sub(self.next.max(bytes.start));
        self.read += before.min(bytes.end - bytes.start - after) + after;
        self.next = self.next.max(bytes.end);
    }

    fn look_ahead(&mut self, spec: &BlobSpec, most: u64) {
        let window = if self.goes_on { self.read.min(most) } else { 0 };
        self.ahead = match window {
            0 => 0..0,
            window => spec.pieces_of(self.next..self.next.saturating_add(window)),
        };
    }
}

impl ReadAhead {
    /// These bytes are being read; `most` bounds what is fetched ahead of one run, in bytes, but for
    /// the piece in which it ends.
    pub(crate) fn read(&mut self, bytes: Range<u64>, spec: &BlobSpec, most: u64) {
        let bytes = bytes.start..bytes.end.min(spec.length);
        if bytes.is_empty() {
            return;
        }
        let near = |(at, run): (usize, &Run)| Some((run.distance(&bytes, spec)?, at));
        let nearest = self.runs.iter().enumerate().filter_map(near).min();
        let mut run = match nearest {
            Some((_, at)) => self.runs.remove(at),
            None => {
                self.shrink(spec, most);
                Run {
                    next: bytes.start,
                    read: 0,
                    goes_on: false,
                    ahead: 0..0,
                }
            }
        };
        let before = run.read;
        run.add(&bytes);
        run.goes_on |= nearest.is_some() && run.read > before;
        run.look_ahead(spec, most);
        self.runs.push(run);
        if self.runs.len() > MAX_RUNS {
            self.runs.remove(0);
        }
    }

    /// Somebody read elsewhere.
    fn shrink(&mut self, spec: &BlobSpec, most: u64) {
        for run in &mut self.runs {
            run.read /= 2;
            if run.read < spec.piece_length.bytes() {
                (run.read, run.goes_on) = (0, false);
            }
            run.look_ahead(spec, most);
        }
    }

    /// The pieces to fetch ahead of each run, in no order; they may overlap.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let ranges = self.runs.iter().map(|run| run.ahead.clone());
        ranges.filter(|range| !range.is_empty())
    }

    /// Whether `piece` is to be fetched ahead.
    pub(crate) fn contains(&self, piece: u32) -> bool {
        self.ranges().any(|range| range.contains(&piece))
    }

    /// The pieces to fetch ahead, those first that are read first if all read on equally fast.
    pub(crate) fn nearest_first(&self) -> impl Iterator<Item = u32> + '_ {
        let longest = self.ranges().map(|range| range.len()).max().unwrap_or(0);
        (0..longest).flat_map(|step| self.ranges().filter_map(move |mut range| range.nth(step)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blob::digest::Digest;
    use crate::blob::metainfo::PieceLength;
    use crate::blob::namespace::Namespace;

    const NONE: [u32; 0] = [];
    const PIECE: u64 = PieceLength::MIN.bytes();
    const MOST: u64 = 8 * PIECE;

    fn spec() -> BlobSpec {
        BlobSpec {
            namespace: Namespace::default(),
            digest: Digest::of(b"blob"),
            length: 400 * PIECE + 7,
            piece_length: PieceLength::MIN,
        }
    }

    /// What is fetched ahead after these reads, in pieces.
    fn ahead(reads: &[Range<u64>]) -> Vec<u32> {
        let mut it = ReadAhead::default();
        for read in reads {
            it.read(read.start * PIECE..read.end * PIECE, &spec(), MOST);
        }
        it.nearest_first().collect()
    }

    #[test]
    fn a_lone_read_fetches_nothing_ahead_and_the_next_ones_more_and_more() {
        assert_eq!(ahead(std::slice::from_ref(&(0..1))), NONE);
        assert_eq!(ahead(&[0..1, 1..2]), [2, 3]);
        assert_eq!(ahead(&[0..1, 1..2, 2..4]), [4, 5, 6, 7]);
        let long: Vec<_> = (0..40).map(|at| at..at + 1).collect();
        assert_eq!(ahead(&long), (40..48).collect::<Vec<_>>(), "bounded");
        assert_eq!(ahead(&[398..399, 399..400]), [400], "nothing past the end");
        assert_eq!(ahead(&[398..400, 400..401]), NONE, "nothing is left");
    }

    #[test]
    fn reads_at_random_fetch_nothing_ahead_and_stop_what_is() {
        assert_eq!(ahead(&[50..51, 10..11, 90..91, 30..31]), NONE);
        let mut reads: Vec<_> = (0..8).map(|at| at..at + 1).collect();
        reads.extend([100..101, 200..201]);
        assert_eq!(ahead(&reads), [8, 9]);
        reads.extend([300..301, 50..51]);
        assert_eq!(ahead(&reads), NONE);
    }

    #[test]
    fn small_reads_within_a_piece_fetch_the_next_one_before_they_reach_it() {
        let mut it = ReadAhead::default();
        let reads = (0..).map(|at| at * 4096..(at + 1) * 4096);
        let early = |bytes: &Range<u64>| bytes.end < PIECE * 3 / 4;
        for bytes in reads.take_while(early) {
            it.read(bytes, &spec(), MOST);
        }
        assert_eq!(it.nearest_first().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn readers_at_once_have_a_run_each_and_parts_of_one_come_in_any_order() {
        let two = [0..2, 100..102, 2..4, 102..104];
        assert_eq!(ahead(&two), [4, 104, 5, 105, 6, 106, 107]);
        let parallel = [2..4, 0..2, 6..8, 4..6, 8..10];
        assert_eq!(ahead(&parallel), (10..18).collect::<Vec<_>>());
        let again = [0..2, 2..4, 0..2];
        assert_eq!(ahead(&again), (4..8).collect::<Vec<_>>(), "read twice");
    }

    proptest! {
        /// Whatever is read, what is fetched ahead is bounded by what was read, and by the bound.
        #[test]
        fn no_more_is_fetched_ahead_than_was_read(
            reads in prop::collection::vec((0..401 * PIECE, 0..6 * PIECE), 0..200),
        ) {
            let (mut it, mut read) = (ReadAhead::default(), 0);
            for (start, len) in reads {
                it.read(start..start + len, &spec(), MOST);
                read += (start + len).min(spec().length).saturating_sub(start);
                prop_assert!(it.runs.len() <= MAX_RUNS);
                let mut all = 0;
                for range in it.ranges() {
                    let bytes = range.len() as u64 * PIECE;
                    prop_assert!(bytes <= MOST + 2 * PIECE);
                    prop_assert!(range.end <= spec().piece_count());
                    all += bytes - 2 * PIECE.min(bytes / 2);
                }
                prop_assert!(all <= read);
                let ahead: Vec<_> = it.nearest_first().collect();
                prop_assert!(ahead.iter().all(|piece| it.contains(*piece)));
            }
        }

        /// Whoever reads forward, in steps of any length, finds its pieces asked for ahead from the third
        /// step on, as long as it does not ask for more at once than it has read.
        #[test]
        fn a_forward_reader_is_fed(steps in prop::collection::vec(1..4 * PIECE, 3..60)) {
            let (mut it, mut at) = (ReadAhead::default(), 0);
            for (number, step) in steps.into_iter().enumerate() {
                let pieces = spec().pieces_of(at..at + step);
                if number >= 2 && step <= at {
                    prop_assert!(pieces.into_iter().all(|piece| it.contains(piece)));
                }
                it.read(at..at + step, &spec(), MOST);
                at += step;
            }
        }
    }
}
