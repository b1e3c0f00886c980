//! Shares an interface fairly among blobs, byte by byte.
//!
//! Invariant: of two blobs that both have items waiting, over any stretch of pops neither is ahead
//! of the other by more bytes than one item of each, and its head start. The queue never withholds
//! an item: as long as something waits, a pop returns something.
//!
//! This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each blob has a tag, the
//! bytes that it has been served on a common scale, and the lowest tag goes next. Unlike deficit
//! round robin it has no quantum that must fit the items, costs the same for items of any length,
//! and does not short-change a blob that asks for its next item only when the last one is gone.
//!
//! A queue may give newcomers a head start: equal shares alone would let a small blob beside a large
//! one take just over twice its time. The bytes of it come from a pool that gains one byte for four
//! that are served, so that a stream of newcomers takes a fifth of the interface before the rest is
//! shared. When the pool is empty, all are level.
//!
//! Within a blob the order is that of the caller's ranks. With the order of requests as ranks, a
//! piece is sent to its end before the next one gets a share, and so can be passed on sooner than
//! if all of them crept along together.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::blob::digest::Digest;

/// Items that wait for an interface. A push or a pop costs time in the logarithm of the blobs and
/// of the blob's own items, and rarely memory once the queue has been as long before.
///
/// ```
/// use kraken_proto::Digest;
/// use kraken_proto::limits::fair::FairQueue;
///
/// let (large, small) = (Digest::of(b"large"), Digest::of(b"small"));
/// let mut queue = FairQueue::new();
/// for chunk in 0..3 {
///     queue.push(large, 0, 65_536, chunk);
/// }
/// assert_eq!(queue.pop(), Some((large, 0)));
/// queue.push(small, 0, 65_536, 9);
/// let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
/// assert_eq!(rest, [(small, 9), (large, 1), (large, 2)]);
/// ```
#[derive(Debug, Clone)]
pub struct FairQueue<T> {
    shares: Vec<Share<T>>,
    /// Shares that no blob has: they keep their room.
    vacant: Vec<usize>,
    by_blob: BTreeMap<Digest, usize>,
    /// Exactly one entry for each blob in `by_blob`. Blobs of equal tags take turns.
    order: BTreeSet<Turn>,
    /// The highest tag that was served: where newcomers start.
    served: u64,
    /// The highest tag of all.
    highest: u64,
    /// The most bytes that newcomers get before the others, and what is left of that.
    head_start: u64,
    pool: u64,
    /// Numbers turns and items.
    last: u64,
    len: usize,
}

/// One blob's part of the queue.
///
/// It outlives its last item until the others have caught up: a blob that came back at once would
/// otherwise start level with them, and be served again and again; or lose its head start.
#[derive(Debug, Clone)]
struct Share<T> {
    blob: Digest,
    /// The bytes that it has been served, on the common scale.
    tag: u64,
    /// What was left of its head start when its last item went.
    ahead: u64,
    /// Its entry in `order`: at its tag, and later while it has no items.
    turn: Turn,
    waiting: BinaryHeap<Waiting<T>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    tag: u64,
    number: u64,
    share: usize,
}

#[derive(Debug, Clone)]
struct Waiting<T> {
    rank: u64,
    number: u64,
    bytes: u64,
    item: T,
}

impl<T> FairQueue<T> {
    /// A queue in which nothing waits, without head starts.
    pub const fn new() -> Self {
        Self {
            shares: Vec::new(),
            vacant: Vec::new(),
            by_blob: BTreeMap::new(),
            order: BTreeSet::new(),
            served: 0,
            highest: 0,
            head_start: 0,
            pool: 0,
            last: 0,
            len: 0,
        }
    }

    /// Gives blobs that come from now on, or come back after others were served for as long, up to
    /// `bytes` before the others get any.
    pub fn set_head_start(&mut self, bytes: u64) {
        self.head_start = bytes;
        self.pool = self.pool.min(bytes);
    }

    /// Queues an item that will take up `bytes` of the interface. Of a blob's items the one of the
    /// lowest rank goes first, and equals in the order in which they came.
    pub fn push(&mut self, blob: Digest, rank: u64, bytes: u64, item: T) {
        let share = match self.by_blob.get(&blob) {
            Some(&share) => share,
            None => self.admit(blob),
        };
        if self.shares[share].waiting.is_empty() {
            self.resume(share);
        }
        let number = self.next_number();
        self.shares[share].waiting.push(Waiting {
            rank,
            number,
            bytes,
            item,
        });
        self.len += 1;
    }

    /// Takes the next item, and charges its bytes to its blob.
    pub fn pop(&mut self) -> Option<(Digest, T)> {
        let number = self.next_turn()?;
        let share = &mut self.shares[number];
        let Waiting { bytes, item, .. } = share.waiting.pop()?;
        let blob = share.blob;
        self.pool = if share.tag < self.served {
            self.pool.saturating_sub(bytes)
        } else {
            self.pool.saturating_add(bytes / 4).min(self.head_start)
        };
        self.served = self.served.max(share.tag);
        share.tag = share.tag.saturating_add(bytes);
        self.highest = self.highest.max(share.tag);
        self.len -= 1;
        self.line_up(number);
        Some((blob, item))
    }

    /// The bytes of the item that is next, if nothing else comes before the pop.
    pub fn next_bytes(&mut self) -> Option<u64> {
        let share = self.next_turn()?;
        self.shares[share].waiting.peek().map(|next| next.bytes)
    }

    /// Removes the items for which `unwanted` holds, and charges nothing for them. Looks at every
    /// item.
    pub fn remove(&mut self, mut unwanted: impl FnMut(Digest, &T) -> bool) {
        let mut len = 0;
        for Share { blob, waiting, .. } in &mut self.shares {
            waiting.retain(|waiting| !unwanted(*blob, &waiting.item));
            len += waiting.len();
        }
        self.len = len;
    }

    /// How many items wait.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The share whose turn it is. On the way it forgets blobs without items that the others have
    /// caught up with, and ends head starts that the pool cannot pay.
    fn next_turn(&mut self) -> Option<usize> {
        if self.is_empty() {
            // Nobody waits, so nobody is ahead of anybody.
            self.served = self.highest;
        }
        while let Some(&Turn { tag, share, .. }) = self.order.first() {
            if let Some(next) = self.shares[share].waiting.peek() {
                if tag >= self.served || next.bytes <= self.pool {
                    return Some(share);
                }
                self.shares[share].tag = self.served;
                self.line_up(share);
                continue;
            }
            if self.is_empty() && tag > self.served {
                return None;
            }
            self.order.pop_first();
            self.served = self.served.max(self.shares[share].tag);
            self.by_blob.remove(&self.shares[share].blob);
            self.vacant.push(share);
        }
        None
    }

    /// Makes room for a blob that is new or was forgotten.
    fn admit(&mut self, blob: Digest) -> usize {
        let ahead = self.pool;
        let share = self.vacant.pop().unwrap_or(self.shares.len());
        let turn = Turn {
            tag: self.served,
            number: self.next_number(),
            share,
        };
        if share == self.shares.len() {
            let waiting = BinaryHeap::new();
            self.shares.push(Share {
                blob,
                tag: 0,
                ahead,
                turn,
                waiting,
            });
        }
        let fresh = &mut self.shares[share];
        (fresh.blob, fresh.tag, fresh.ahead, fresh.turn) = (blob, 0, ahead, turn);
        self.order.insert(turn);
        self.by_blob.insert(blob, share);
        share
    }

    /// Puts a share back among those that wait: level with the one served last, or behind by what
    /// it was served more.
    fn resume(&mut self, number: usize) {
        let share = &mut self.shares[number];
        share.tag = share.tag.max(self.served.saturating_sub(share.ahead));
        let turn = Turn {
            tag: share.tag,
            ..share.turn
        };
        self.order.remove(&share.turn);
        self.order.insert(turn);
        share.turn = turn;
    }

    /// Puts a share that was served where it belongs: at its tag, or where it is forgotten.
    fn line_up(&mut self, number: usize) {
        let turn_number = self.next_number();
        let share = &mut self.shares[number];
        let mut tag = share.tag;
        if share.waiting.is_empty() {
            share.ahead = self.served.saturating_sub(share.tag);
            tag = tag.max(self.served).saturating_add(self.head_start);
        }
        self.order.remove(&share.turn);
        share.turn = Turn {
            tag,
            number: turn_number,
            share: number,
        };
        self.order.insert(share.turn);
    }

    const fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A heap's greatest is the one that goes first.
impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.rank, other.number).cmp(&(self.rank, self.number))
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Waiting<T> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn drain<T>(queue: &mut FairQueue<T>) -> Vec<(Digest, T)> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn blobs_take_turns_by_bytes() {
        let mut queue = FairQueue::new();
        for item in 0..6 {
            queue.push(blob(1), 0, 100, item);
            queue.push(blob(2), 0, 300, item);
        }
        let first: Vec<_> = (0..8).map(|_| queue.pop().unwrap().0).collect();
        let order = [1, 2, 1, 1, 2, 1, 1, 1].map(blob);
        assert_eq!(first, order);
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn a_newcomer_is_next_however_much_waits() {
        let mut queue = FairQueue::new();
        for item in 0..1000 {
            queue.push(blob(1), 0, 1 << 24, item);
        }
        queue.pop();
        queue.push(blob(2), 0, 1 << 16, 0);
        let two = [queue.pop().unwrap().0, queue.pop().unwrap().0];
        assert!(two.contains(&blob(2)));
    }

    #[test]
    fn one_at_a_time_gets_a_share_and_no_more() {
        let mut queue = FairQueue::new();
        for item in 0..100 {
            queue.push(blob(1), 0, 10, item);
        }
        let mut served = 0;
        queue.push(blob(2), 0, 10, 0);
        for _ in 0..100 {
            if queue.pop().unwrap().0 == blob(2) {
                served += 1;
                queue.push(blob(2), 0, 10, 0);
            }
        }
        assert!((49..=51).contains(&served), "{served}");
    }

    #[test]
    fn the_lowest_rank_of_a_blob_goes_first() {
        let mut queue = FairQueue::new();
        for (rank, item) in [(7, 'c'), (2, 'a'), (7, 'd'), (2, 'b')] {
            queue.push(blob(1), rank, 1, item);
        }
        let order: String = drain(&mut queue)
            .into_iter()
            .map(|(_, item)| item)
            .collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn what_is_removed_is_not_charged() {
        let mut queue = FairQueue::new();
        queue.push(blob(1), 0, 1_000_000, 'x');
        queue.push(blob(1), 0, 10, 'a');
        queue.push(blob(1), 0, 10, 'b');
        queue.push(blob(2), 0, 10, 'c');
        queue.remove(|of, item| of == blob(1) && *item == 'x');
        assert_eq!((queue.len(), queue.next_bytes()), (3, Some(10)));
        let order: String = drain(&mut queue)
            .into_iter()
            .map(|(_, item)| item)
            .collect();
        assert_eq!(order, "acb");
        queue.push(blob(3), 0, 10, 'd');
        queue.remove(|_, _| true);
        assert!(queue.is_empty());
        assert_eq!((queue.next_bytes(), queue.pop()), (None, None));
    }

    #[test]
    fn a_million_blobs_leave_nothing_behind() {
        let mut queue = FairQueue::new();
        queue.push(blob(255), 0, 1, ());
        for number in 0_u32..1_000_000 {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            queue.push(Digest::from_bytes(bytes), 0, 1, ());
            queue.push(blob(255), 0, 1, ());
            queue.pop();
            queue.pop();
        }
        assert_eq!(queue.len(), 1);
        assert!(queue.shares.len() < 8, "{}", queue.shares.len());
        assert!(queue.order.len() == queue.by_blob.len() && queue.order.len() < 8);
        // One after the other, with an idle interface between them.
        let mut queue = FairQueue::new();
        queue.set_head_start(100);
        for number in 0_u32..1000 {
            queue.push(Digest::of(&number.to_be_bytes()), 0, 10, ());
            assert_eq!((queue.pop().is_some(), queue.pop()), (true, None));
        }
        assert!(queue.order.len() < 16, "{}", queue.order.len());
    }

    /// Serves a blob of which `depth` items wait at a time beside one of which all do, until it
    /// has had `bytes`. How many bytes went in all?
    fn beside(queue: &mut FairQueue<u64>, newcomer: Digest, depth: u64, bytes: u64) -> u64 {
        let (mut rest, mut all) = (bytes, 0);
        let each = 20;
        (0..depth).for_each(|_| queue.push(newcomer, 0, each, each));
        while rest > 0 {
            let (digest, bytes) = queue.pop().unwrap();
            all += bytes;
            queue.push(digest, 0, bytes, bytes);
            if digest == newcomer {
                rest -= bytes;
            }
        }
        queue.remove(|digest, _| digest == newcomer);
        all
    }

    /// A queue in which 50 items of blob 1 wait, and 200,000 bytes of it were served.
    fn busy(head_start: u64) -> FairQueue<u64> {
        let mut queue = FairQueue::new();
        queue.set_head_start(head_start);
        (0..10_050).for_each(|_| queue.push(blob(1), 0, 20, 20));
        assert_eq!((0..10_000).filter_map(|_| queue.pop()).count(), 10_000);
        queue
    }

    #[test]
    fn a_newcomer_has_a_head_start_that_comes_from_a_pool() {
        let mut queue = busy(1000);
        // The first 1000 bytes go alone, and half of the rest.
        let all = beside(&mut queue, blob(2), 1, 3000);
        assert!((4960..=5040).contains(&all), "{all}");
        // 4000 bytes have filled the pool again.
        let all = beside(&mut queue, blob(3), 1, 1000);
        assert!((960..=1040).contains(&all), "{all}");
        // And now it is empty.
        let all = beside(&mut queue, blob(4), 1, 1000);
        assert!((1960..=2040).contains(&all), "{all}");
    }

    #[test]
    fn newcomers_at_once_share_a_head_start() {
        let mut queue = busy(1000);
        (0..200).for_each(|_| queue.push(blob(2), 0, 20, 20));
        let all = beside(&mut queue, blob(3), 2, 500);
        assert!((960..=1040).contains(&all), "{all}");
        let all = beside(&mut queue, blob(3), 2, 500);
        assert!((1400..=1600).contains(&all), "{all}");
    }

    #[test]
    fn a_stream_of_newcomers_does_not_starve_the_others() {
        let mut queue = busy(1000);
        let mut all = 0;
        for number in 0_u32..1000 {
            all += beside(&mut queue, Digest::of(&number.to_be_bytes()), 1, 1000);
        }
        // A fifth, half of the rest, and what each is ahead of the others at its end.
        let newcomers = 1000 * 1000;
        assert!(newcomers * 100 <= all * 62, "{newcomers} of {all}");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut queue = FairQueue::new();
        for item in 0..3 {
            queue.push(blob(1), u64::MAX, u64::MAX, item);
            queue.push(blob(2), 0, 0, item);
        }
        assert_eq!(drain(&mut queue).len(), 6);
    }

    /// What a run of the queue looks like from outside.
    struct Served {
        blob: u8,
        bytes: u64,
        /// The blobs with items waiting just before.
        backlog: Vec<u8>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { blob: u8, rank: u64, bytes: u64 },
        Pop,
        Remove { blob: u8, rank: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let push = (0_u8..6, 0_u64..3, 1_u64..MOST).prop_map(|(blob, rank, bytes)| Step::Push {
            blob,
            rank,
            bytes,
        });
        let remove = (0_u8..6, 0_u64..3).prop_map(|(blob, rank)| Step::Remove { blob, rank });
        prop_oneof![6 => push, 6 => Just(Step::Pop), 1 => remove]
    }

    const MOST: u64 = 1000;

    /// Runs the steps beside a model that knows everything but whose turn it is, and then drains.
    fn run(head_start: u64, steps: &[Step]) -> Result<Vec<Served>, TestCaseError> {
        let mut queue = FairQueue::new();
        queue.set_head_start(head_start);
        // Blob, rank, number, bytes.
        let mut model: Vec<(u8, u64, usize, u64)> = Vec::new();
        let mut served = Vec::new();
        let pops = std::iter::repeat_n(&Step::Pop, steps.len());
        for (number, step) in steps.iter().chain(pops).enumerate() {
            match *step {
                Step::Push {
                    blob: of,
                    rank,
                    bytes,
                } => {
                    queue.push(blob(of), rank, bytes, (rank, number));
                    model.push((of, rank, number, bytes));
                }
                Step::Remove { blob: of, rank } => {
                    queue.remove(|digest, item| digest == blob(of) && item.0 == rank);
                    model.retain(|waiting| (waiting.0, waiting.1) != (of, rank));
                }
                Step::Pop => {
                    let mut backlog: Vec<_> = model.iter().map(|waiting| waiting.0).collect();
                    backlog.dedup();
                    let bytes = queue.next_bytes();
                    let Some((digest, item)) = queue.pop() else {
                        prop_assert!(model.is_empty(), "withheld");
                        continue;
                    };
                    let of = digest.as_bytes()[0];
                    let best = model.iter().filter(|waiting| waiting.0 == of).min();
                    let best = *best.expect("it waits");
                    prop_assert_eq!((best.1, best.2), item, "out of order within the blob");
                    prop_assert_eq!(bytes, Some(best.3));
                    model.retain(|waiting| *waiting != best);
                    let bytes = best.3;
                    served.push(Served {
                        blob: of,
                        bytes,
                        backlog,
                    });
                }
            }
            prop_assert_eq!(queue.len(), model.len());
            prop_assert_eq!(queue.order.len(), queue.by_blob.len());
        }
        prop_assert!(queue.is_empty());
        Ok(served)
    }

    /// How far `one` gets ahead of `other` over any stretch in which both wait all the time.
    fn widest_lead(served: &[Served], one: u8, other: u8) -> i64 {
        let (mut lead, mut widest) = (0_i64, 0);
        for step in served {
            if !(step.backlog.contains(&one) && step.backlog.contains(&other)) {
                lead = 0;
                continue;
            }
            let bytes = i64::try_from(step.bytes).unwrap();
            match step.blob {
                blob if blob == one => lead += bytes,
                blob if blob == other => lead -= bytes,
                _ => {}
            }
            // The widest lead over all stretches that end here: a negative one is cut off.
            lead = lead.max(0);
            widest = widest.max(lead);
        }
        widest
    }

    proptest! {
        #[test]
        fn nothing_is_withheld_lost_or_out_of_order_and_no_blob_gets_far_ahead(
            head_start in prop_oneof![Just(0), 1_u64..5000],
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let served = run(head_start, &steps)?;
            let most = 2 * MOST + head_start;
            for one in 0..6 {
                for other in (0..6).filter(|other| *other != one) {
                    let lead = widest_lead(&served, one, other);
                    prop_assert!(lead < most as i64, "{one} ahead of {other} by {lead}");
                }
            }
        }

        /// A blob whose items come one at a time, the next when the last is gone.
        #[test]
        fn impatience_wins_nothing(
            patient in 1_u64..MOST,
            impatient in 1_u64..MOST,
            depth in 1_usize..4,
        ) {
            let mut queue = FairQueue::new();
            (0..depth).for_each(|_| queue.push(blob(0), 0, impatient, impatient));
            (0..400).for_each(|_| queue.push(blob(1), 0, patient, patient));
            let mut sums = [0_u64; 2];
            for _ in 0..400 {
                let (digest, bytes) = queue.pop().unwrap();
                sums[usize::from(digest.as_bytes()[0])] += bytes;
                if digest == blob(0) {
                    queue.push(blob(0), 0, impatient, impatient);
                }
            }
            prop_assert!(sums[0].abs_diff(sums[1]) <= patient + impatient, "{:?}", sums);
        }
    }
}
