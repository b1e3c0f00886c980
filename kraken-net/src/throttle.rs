//! What limits the bytes of pieces, up and down.
//!
//! A transport keeps one [`Throttle`] and lets every chunk of every piece through it; whoever owns
//! the transport sets the rates, and runs the timer with [`Throttle::run`]. Without a limit a chunk
//! costs two atomic operations.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_proto::limits::shaper::{Next, Shaper};
use kraken_proto::{Digest, Timestamp};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// The limits of one host's transport; none at first. Clones are the same throttle.
///
/// ```
/// use std::num::NonZeroU64;
///
/// use kraken_net::Throttle;
/// use kraken_proto::Digest;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let throttle = Throttle::new();
/// tokio::spawn(throttle.clone().run());
/// throttle.upload().set_rate(NonZeroU64::new(20_000_000));
/// let passage = throttle.upload().piece(Digest::of(b"blob"), false);
/// for chunk in vec![0; 100_000].chunks(passage.chunk()) {
///     passage.pass(chunk.len()).await; // then send it
/// }
/// # });
/// ```
#[derive(Clone, Default)]
pub struct Throttle {
    upload: Gate,
    download: Gate,
}

impl Throttle {
    /// A throttle that limits nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the bytes that go out.
    pub fn upload(&self) -> &Gate {
        &self.upload
    }

    /// For the bytes that come in.
    pub fn download(&self) -> &Gate {
        &self.download
    }

    /// Lets those who wait pass when it is their time; runs until it is dropped, and then there are
    /// no limits any more. While nobody runs it, whoever has to wait waits on.
    pub async fn run(self) {
        tokio::join!(self.upload.run(), self.download.run());
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle")
            .field("upload", &self.upload.rate())
            .field("download", &self.download.rate())
            .finish()
    }
}

/// Ranks of pieces that do not go first: no gate sees as many pieces.
const BEHIND: u64 = 1 << 63;

/// The least time between two looks of the timer: at high rates several chunks pass then, and one
/// wake-up serves them all. Less than the 7.5 ms by which a timer may be late without a loss.
const REST: Duration = Duration::from_millis(3);

/// One direction of a [`Throttle`].
#[derive(Clone, Default)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    started: Instant,
    /// Whether there is a rate, and how many bytes may pass at once: what the state says, to be
    /// read without the lock.
    limited: AtomicBool,
    chunk: AtomicUsize,
    pieces: AtomicU64,
    passed: AtomicU64,
    state: Mutex<State>,
    /// The timer is to be set anew.
    changed: Notify,
}

struct State {
    shaper: Shaper<oneshot::Sender<()>>,
    /// When the timer fires next.
    alarm: Option<Timestamp>,
    /// Nobody runs the timer any more.
    ended: bool,
}

impl Gate {
    /// Changes the rate, in bytes per second, from now on; `None` is no limit. Pieces that are
    /// under way go on at the new rate.
    pub fn set_rate(&self, rate: Option<NonZeroU64>) {
        let mut state = self.state();
        let rate = rate.filter(|_| !state.ended);
        state.shaper.set_rate(self.now(), rate);
        let chunk = usize::try_from(state.shaper.chunk()).unwrap_or(usize::MAX);
        self.inner.chunk.store(chunk, Ordering::Relaxed);
        self.inner.limited.store(rate.is_some(), Ordering::Relaxed);
        self.pump(&mut state);
        self.inner.changed.notify_one();
    }

    /// The rate in bytes per second; `None` is no limit.
    pub fn rate(&self) -> Option<NonZeroU64> {
        self.state().shaper.rate()
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.inner.limited.load(Ordering::Relaxed)
    }

    /// Bytes of pieces that have passed so far, with a limit and without.
    pub fn passed(&self) -> u64 {
        self.inner.passed.load(Ordering::Relaxed)
    }

    /// The way of one piece. Pieces of the same blob pass in the order of these calls, those that
    /// go `first` before all others.
    pub fn piece(&self, digest: Digest, first: bool) -> Passage {
        let number = self.inner.pieces.fetch_add(1, Ordering::Relaxed);
        Passage {
            gate: self.clone(),
            digest,
            rank: if first { number } else { number | BEHIND },
        }
    }

    async fn run(&self) {
        let _opened = Opened(self);
        loop {
            // Set before the look at the queue, so that a change after it is not missed.
            let changed = self.inner.changed.notified();
            let wake = {
                let mut state = self.state();
                state.alarm = self.pump(&mut state);
                state.alarm
            };
            match wake {
                Some(at) => {
                    let at = self.inner.started + at.since(Timestamp::ZERO);
                    tokio::select! {
                        () = sleep_until(at) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Queues a chunk; `None` when it may pass at once.
    fn ask(&self, passage: &Passage, bytes: usize) -> Option<Turn<'_>> {
        let (granted, mut turn) = oneshot::channel();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut state = self.state();
        state
            .shaper
            .push(passage.digest, passage.rank, bytes, granted);
        let wake = self.pump(&mut state);
        if turn.try_recv().is_ok() {
            return None;
        }
        // A chunk that is shorter than the one before it may be due before the timer.
        if state.alarm.is_none_or(|alarm| wake < Some(alarm)) {
            self.inner.changed.notify_one();
        }
        Some(Turn { gate: self, turn })
    }

    /// Lets everything pass that may, and says when the next may.
    fn pump(&self, state: &mut State) -> Option<Timestamp> {
        let now = self.now();
        loop {
            match state.shaper.poll(now) {
                // One who left in this instant has paid for a chunk that nobody sends.
                Next::Go(turn) => drop(turn.send(())),
                Next::Wait(at) => return Some(at.max(now + REST)),
                Next::Idle => return None,
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.inner.started.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.inner.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Inner {
    fn default() -> Self {
        let shaper = Shaper::new();
        Self {
            started: Instant::now(),
            limited: AtomicBool::new(false),
            chunk: AtomicUsize::new(usize::try_from(shaper.chunk()).unwrap_or(usize::MAX)),
            pieces: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            state: Mutex::new(State {
                shaper,
                alarm: None,
                ended: false,
            }),
            changed: Notify::new(),
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("rate", &self.rate()).finish()
    }
}

/// Nobody waits for ever at a gate whose timer has ended.
struct Opened<'a>(&'a Gate);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.set_rate(None);
    }
}

/// One piece on its way through a [`Gate`].
#[derive(Debug)]
pub struct Passage {
    gate: Gate,
    digest: Digest,
    rank: u64,
}

impl Passage {
    /// The most bytes to let pass at once, at the rate of this moment.
    pub fn chunk(&self) -> usize {
        self.gate.inner.chunk.load(Ordering::Relaxed)
    }

    /// Waits until as many bytes of the piece may pass.
    pub async fn pass(&self, bytes: usize) {
        if self.gate.is_limited()
            && let Some(mut turn) = self.gate.ask(self, bytes)
        {
            // An error would mean that the queue is gone, and with it the limit.
            let _ = (&mut turn.turn).await;
        }
        self.gate
            .inner
            .passed
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A place in the queue. One that is given up is not charged.
struct Turn<'a> {
    gate: &'a Gate,
    turn: oneshot::Receiver<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.turn.is_terminated() {
            self.turn.close();
            let mut state = self.gate.state();
            state.shaper.remove(oneshot::Sender::is_closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(bytes: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(bytes)
    }

    fn blob(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    /// Sends pieces of a blob for ever, and counts the bytes.
    async fn send(gate: Gate, digest: Digest, sent: Arc<AtomicU64>) {
        loop {
            let passage = gate.piece(digest, false);
            let mut rest = 1 << 20;
            while rest > 0 {
                let bytes = passage.chunk().min(rest);
                passage.pass(bytes).await;
                sent.fetch_add(bytes as u64, Ordering::Relaxed);
                rest -= bytes;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Bytes sent in each of the next seconds.
    async fn seconds<const N: usize>(sent: &AtomicU64) -> [u64; N] {
        let mut sums = [0; N];
        for sum in &mut sums {
            let before = sent.load(Ordering::Relaxed);
            tokio::time::sleep(SECOND).await;
            *sum = sent.load(Ordering::Relaxed) - before;
        }
        sums
    }

    fn assert_near(sums: &[u64], expected: u64) {
        let near = |sum: &u64| sum.abs_diff(expected) * 50 <= expected;
        assert!(sums.iter().all(near), "{sums:?}, not {expected}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_in_every_second_and_changes_live() {
        let throttle = Throttle::new();
        tokio::spawn(throttle.clone().run());
        let gate = throttle.upload();
        gate.set_rate(rate(20_000_000));
        let sent = Arc::new(AtomicU64::new(0));
        for number in 0..5 {
            tokio::spawn(send(gate.clone(), blob(number), sent.clone()));
        }
        assert_near(&seconds::<5>(&sent).await, 20_000_000);
        gate.set_rate(rate(3_000_000));
        assert_near(&seconds::<3>(&sent).await[1..], 3_000_000);
        gate.set_rate(rate(200_000_000));
        assert_near(&seconds::<3>(&sent).await, 200_000_000);
        assert_eq!(
            (gate.rate(), throttle.download().rate()),
            (rate(200_000_000), None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn blobs_share_alike() {
        let throttle = Throttle::new();
        tokio::spawn(throttle.clone().run());
        let gate = throttle.download();
        gate.set_rate(rate(10_000_000));
        let (many, one) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        for _ in 0..20 {
            tokio::spawn(send(gate.clone(), blob(1), many.clone()));
        }
        tokio::spawn(send(gate.clone(), blob(2), one.clone()));
        assert_near(&seconds::<3>(&one).await, 5_000_000);
        assert_near(&seconds::<3>(&many).await, 5_000_000);
        let sum = many.load(Ordering::Relaxed) + one.load(Ordering::Relaxed);
        assert_eq!((gate.passed(), throttle.upload().passed()), (sum, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_piece_of_a_blob_is_ready_first() {
        let throttle = Throttle::new();
        tokio::spawn(throttle.clone().run());
        throttle.upload().set_rate(rate(1_000_000));
        let order = Arc::new(Mutex::new(Vec::new()));
        let pieces = (0..4).map(|number| {
            let passage = throttle.upload().piece(blob(1), false);
            let order = order.clone();
            async move {
                for _ in 0..100 {
                    passage.pass(2500).await;
                }
                order.lock().unwrap().push(number);
            }
        });
        let begun = Instant::now();
        futures::future::join_all(pieces).await;
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
        assert!(begun.elapsed() >= Duration::from_millis(990));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_is_not_charged() {
        let throttle = Throttle::new();
        tokio::spawn(throttle.clone().run());
        throttle.upload().set_rate(rate(1000));
        let passage = throttle.upload().piece(blob(1), false);
        passage.pass(10).await;
        for _ in 0..50 {
            let given_up = tokio::time::timeout(Duration::ZERO, passage.pass(1_000_000)).await;
            assert!(given_up.is_err());
        }
        let begun = Instant::now();
        passage.pass(100).await;
        assert!(
            begun.elapsed() <= Duration::from_millis(110),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_without_its_timer_is_open() {
        let throttle = Throttle::new();
        let timer = tokio::spawn(throttle.clone().run());
        throttle.upload().set_rate(rate(1));
        let passage = throttle.upload().piece(blob(1), false);
        passage.pass(1 << 40).await;
        let waiting = tokio::spawn(async move { passage.pass(1).await });
        tokio::time::sleep(SECOND).await;
        assert!(!waiting.is_finished());
        timer.abort();
        waiting.await.unwrap();
        throttle.upload().set_rate(rate(1));
        throttle.upload().piece(blob(1), false).pass(1 << 40).await;
        throttle.upload().piece(blob(1), false).pass(1 << 40).await;
        assert_eq!(throttle.upload().rate(), None);
    }
}
