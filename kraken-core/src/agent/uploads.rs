//! The pieces that one peer is sent: a few of each blob at once, so that a blob's long pieces do
//! not stand before another's short ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kraken_net::Frame;
use kraken_proto::{Digest, Input, Message};
use tokio::sync::{Notify, oneshot};

use super::driver::Note;
use super::link::LinkContext;
use crate::tasks::Tasks;

/// Pieces of one blob on their way to one peer at once: enough to fill the path, few enough that a
/// slow peer does not take all buffers.
const SENDING: usize = 2;

/// What a piece counts for at least, in bytes of the buffers: bounds the reads that run at once.
const LEAST_ROOM: u64 = 1 << 20;

/// A piece to read and send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upload {
    pub(crate) digest: Digest,
    pub(crate) piece: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// Before those of which this is not so.
    pub(crate) first: bool,
}

/// The pieces for one peer.
pub(crate) struct Uploads {
    cx: LinkContext,
    tasks: Tasks,
    lanes: Mutex<BTreeMap<Digest, Lane>>,
    /// A piece came that goes first: nobody waits until the peer has taken others.
    hurried: Notify,
}

/// One blob's pieces. It exists as long as it has a worker.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Upload>,
    /// What the workers are sending, or what waits for its turn under a limit. Dropping the sender
    /// stops it.
    begun: Vec<(u32, oneshot::Sender<()>)>,
    workers: usize,
}

impl Uploads {
    pub(crate) fn new(tasks: &Tasks, cx: LinkContext) -> Arc<Self> {
        Arc::new(Self {
            cx,
            tasks: tasks.clone(),
            lanes: Mutex::default(),
            hurried: Notify::new(),
        })
    }

    /// Queues a piece. The scheduler bounds how many a peer may have waiting.
    pub(crate) fn push(self: &Arc<Self>, upload: Upload) {
        let mut lanes = self.lock();
        let lane = lanes.entry(upload.digest).or_default();
        let place = if upload.first {
            lane.waiting.partition_point(|waiting| waiting.first)
        } else {
            lane.waiting.len()
        };
        lane.waiting.insert(place, upload);
        if upload.first {
            self.hurried.notify_waiters();
        }
        if lane.workers < SENDING {
            lane.workers += 1;
            self.tasks.spawn(self.clone().work(upload.digest));
        }
    }

    /// Forgets a piece that has not been begun; false when there is none. One that has been begun is
    /// stopped, if there is still something to stop, and reported as all others are.
    pub(crate) fn cancel(&self, digest: Digest, piece: u32) -> bool {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(&digest) else {
            return false;
        };
        lane.begun.retain(|(begun, _)| *begun != piece);
        let waiting = lane.waiting.len();
        lane.waiting.retain(|upload| upload.piece != piece);
        lane.waiting.len() < waiting
    }

    /// Forgets all that has not been begun, and stops what has: nobody takes it any more, and it
    /// would wait for its turn under a limit before it notices.
    pub(crate) fn clear(&self) {
        for lane in self.lock().values_mut() {
            lane.waiting.clear();
            lane.begun.clear();
        }
    }

    async fn work(self: Arc<Self>, digest: Digest) {
        loop {
            // Before the look, so that one that comes after it is not missed.
            let hurried = self.hurried.notified();
            let Some((len, first)) = self.wanted(digest) else {
                return;
            };
            if !first {
                // Should the connection be gone, the send says so.
                tokio::select! {
                    _ = self.cx.conn.ready(len as usize) => {}
                    () = hurried => {}
                }
            }
            let bytes = LEAST_ROOM.max(len.into());
            let _room = self.cx.buffers.acquire(digest, bytes).await;
            // It may have been cancelled while there was no room, or another one may be first now.
            let Some((upload, stopped)) = self.begin(digest) else {
                continue;
            };
            let sent = tokio::select! {
                sent = self.send(upload) => sent,
                // A piece whose stream was open is given up there, and the receiver drops it.
                _ = stopped => false,
            };
            self.ended(digest, upload.piece);
            let input = Input::PieceSent {
                digest,
                piece: upload.piece,
                conn: self.cx.id,
                sent,
            };
            if self.cx.notes.send(Note::Input(input)).await.is_err() {
                return;
            }
        }
    }

    /// The length of the next piece, and whether it goes first; without one, the worker that asks has
    /// ended.
    fn wanted(&self, digest: Digest) -> Option<(u32, bool)> {
        let mut lanes = self.lock();
        let lane = lanes.get_mut(&digest)?;
        if let Some(next) = lane.waiting.front() {
            return Some((next.len, next.first));
        }
        lane.workers -= 1;
        if lane.workers == 0 {
            lanes.remove(&digest);
        }
        None
    }

    /// The next piece, and what tells when it is to be stopped.
    fn begin(&self, digest: Digest) -> Option<(Upload, oneshot::Receiver<()>)> {
        let mut lanes = self.lock();
        let lane = lanes.get_mut(&digest)?;
        let upload = lane.waiting.pop_front()?;
        let (stop, stopped) = oneshot::channel();
        lane.begun.push((upload.piece, stop));
        Some((upload, stopped))
    }

    fn ended(&self, digest: Digest, piece: u32) {
        if let Some(lane) = self.lock().get_mut(&digest) {
            lane.begun.retain(|(begun, _)| *begun != piece);
        }
    }

    async fn send(&self, upload: Upload) -> bool {
        let Upload {
            digest,
            piece,
            offset,
            len,
            first,
        } = upload;
        let payload = match self.cx.store.read(digest, offset, len).await {
            Ok(payload) => payload,
            Err(error) => {
                tracing::warn!(?digest, piece, %error, "a piece cannot be read for a peer");
                return false;
            }
        };
        let message = Message::Piece { digest, piece, len };
        let frame = Frame {
            message,
            payload,
            first,
        };
        self.cx.conn.send(frame).await.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use kraken_net::mem::MemConn;
    use kraken_net::{MemNetwork, MemTransport, PeerConn as _, Transport};
    use kraken_proto::{ConnId, MetaInfo, PeerId, PeerInfo, PeerRole};
    use kraken_storage::testkit::blob;
    use kraken_storage::{MemStore, UploadStore as _};
    use tokio::sync::{Semaphore, mpsc};

    use super::*;
    use crate::agent::rooms::Rooms;

    /// The uploads of a large blob and a small one at 1 MB/s, and the peer that gets them.
    struct Lab {
        uploads: Arc<Uploads>,
        notes: mpsc::Receiver<Note>,
        metas: Vec<MetaInfo>,
        peer: MemConn,
        _hosts: [MemTransport; 2],
    }

    impl Lab {
        async fn new() -> Self {
            let (network, store) = (MemNetwork::new(), MemStore::new());
            let mut metas = Vec::new();
            for (seed, length) in [(1, 10 << 20), (2, 1 << 20)] {
                let (bytes, meta) = blob(length, seed);
                let upload = store.upload_start().await.unwrap();
                let appended = store.upload_append(&upload, 0, bytes.into()).await;
                appended.unwrap();
                store.upload_commit(&upload, meta.digest()).await.unwrap();
                metas.push(meta);
            }
            let [ours, theirs] = [1, 2].map(|id| network.transport(PeerId::from_bytes([id; 32])));
            let to = PeerInfo {
                id: theirs.local_id(),
                addr: theirs.local_addr(),
                role: PeerRole::Agent,
                zone: None,
            };
            let tasks = Tasks::default();
            ours.throttle()
                .upload()
                .set_rate(NonZeroU64::new(1_000_000));
            tasks.spawn(ours.throttle().clone().run());
            let (notes, inbox) = mpsc::channel(64);
            let cx = LinkContext {
                id: ConnId(7),
                conn: Arc::new(Transport::dial(&ours, &to).await.unwrap()),
                notes,
                store: Arc::new(store),
                buffers: Rooms::new(64 << 20),
                arrivals: Arc::new(Semaphore::new(0)),
            };
            Self {
                uploads: Uploads::new(&tasks, cx),
                notes: inbox,
                metas,
                peer: theirs.accept().await.unwrap(),
                _hosts: [ours, theirs],
            }
        }

        fn push(&self, index: usize, piece: u32) {
            let meta = &self.metas[index];
            self.uploads.push(Upload {
                digest: meta.digest(),
                piece,
                offset: meta.piece_range(piece).start,
                len: meta.piece_size(piece),
                first: false,
            });
        }

        fn cancel(&self, index: usize, piece: u32) -> bool {
            self.uploads.cancel(self.metas[index].digest(), piece)
        }

        /// The next piece that the peer gets, and its blob.
        async fn arrival(&self) -> (usize, u32) {
            let Message::Piece { digest, piece, .. } = self.peer.recv().await.unwrap().message
            else {
                panic!("only pieces are sent");
            };
            let index = self.metas.iter().position(|meta| meta.digest() == digest);
            (index.unwrap(), piece)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_blob_does_not_wait_behind_a_large_one_for_the_same_peer() {
        let mut lab = Lab::new().await;
        (0..16).for_each(|piece| lab.push(0, piece));
        assert_eq!(lab.arrival().await, (0, 0));
        (0..4).for_each(|piece| lab.push(1, piece));
        let mut arrivals = Vec::new();
        for _ in 0..19 {
            arrivals.push(lab.arrival().await);
        }
        let last_small = arrivals.iter().rposition(|(index, _)| *index == 1).unwrap();
        // 4 × 256 KiB beside pieces of 512 KiB: 2 of them by fair shares, and one under way.
        assert!(last_small <= 6, "{arrivals:?}");
        let large: Vec<_> = arrivals
            .iter()
            .filter(|it| it.0 == 0)
            .map(|it| it.1)
            .collect();
        assert!(large.is_sorted(), "{large:?}");
        for _ in 0..20 {
            let note = lab.notes.recv().await.unwrap();
            assert!(matches!(
                note,
                Note::Input(Input::PieceSent { sent: true, .. })
            ));
        }
        assert!(lab.uploads.lock().is_empty(), "no lane is left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cancelled_is_not_sent_also_when_it_waits_for_its_turn() {
        let mut lab = Lab::new().await;
        (0..6).for_each(|piece| lab.push(0, piece));
        assert_eq!(lab.arrival().await, (0, 0));
        assert!(lab.cancel(0, 4));
        assert!(!lab.cancel(0, 4), "forgotten");
        assert!(!lab.cancel(0, 1), "begun, and stopped");
        assert!(!lab.cancel(1, 0), "never asked for");
        for piece in [2, 3, 5] {
            assert_eq!(lab.arrival().await, (0, piece));
        }
        let mut notes = Vec::new();
        for _ in 0..5 {
            let Note::Input(Input::PieceSent { piece, sent, .. }) = lab.notes.recv().await.unwrap()
            else {
                panic!("nothing else is told");
            };
            notes.push((piece, sent));
        }
        notes.sort_unstable();
        let told = [(0, true), (1, false), (2, true), (3, true), (5, true)];
        assert_eq!(notes, told);
        assert!(lab.uploads.lock().is_empty(), "no lane is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_is_gone_sends_nothing_more() {
        let lab = Lab::new().await;
        (0..5).for_each(|piece| lab.push(0, piece));
        assert_eq!(lab.arrival().await, (0, 0));
        lab.uploads.clear();
        lab.push(1, 3);
        assert_eq!(lab.arrival().await, (1, 3));
    }
}
