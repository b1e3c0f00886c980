//! The shell of one host: a task that owns the scheduler.
//!
//! It takes one note at a time, hands it to the scheduler and does what the scheduler says. Doing
//! never waits: what waits becomes a task that sends a note when it is done. All state of the
//! swarms is in the scheduler, so that no lock guards it.

mod doubt;
mod perform;
mod progress;
mod remember;
mod tally;
mod traced;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kraken_net::Frame;
use kraken_proto::history::{History, Neighbour, Transfer};
use kraken_proto::tracker::report::BlobReport;
use kraken_proto::{
    Bitfield, BlobSpec, ConnId, Digest, Extent, Input, Message, MetaInfo, Namespace, PeerInfo,
    ReaderId, Scheduler, SwarmStats,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Span;

use crate::agent::follow::{End, Follower};
use crate::agent::hearsay::{Sources, Told};
use crate::agent::link::{Link, LinkContext};
use crate::agent::peers::{PeersFile, SAVE_EVERY};
use crate::agent::rooms::Rooms;
use crate::clock::{Clock, unix_ms};
use crate::dynamic::{DynConn, DynDiscovery, DynStore, DynTransport};
use crate::metrics::Metrics;
use crate::tasks::Tasks;
pub(crate) use progress::Progress;
use tally::{Known, Tally};

/// What happened, from a link, a task or the handle.
pub(crate) enum Note {
    /// For the scheduler as it is.
    Input(Input),
    /// A message, and perhaps a piece.
    Frame {
        conn: ConnId,
        frame: Frame,
        room: OwnedSemaphorePermit,
    },
    /// A connection stands.
    Connected {
        conn: Arc<dyn DynConn>,
        dialled: bool,
    },
    /// A blob is to be fetched or seeded; the answer follows its progress.
    Open {
        told: Told,
        namespace: Namespace,
        have: Bitfield,
        /// Whether its pieces come from elsewhere, by `Ingested`, and none from peers.
        ingest: bool,
        /// How much of it is fetched.
        extent: Extent,
        /// The span of the request that it is for, if that belongs to a trace.
        request: Span,
        reply: oneshot::Sender<watch::Receiver<Progress>>,
    },
    /// More is known of an open metainfo, and the store has it.
    Continued { meta: MetaInfo, is_hearsay: bool },
    /// Peers are to be asked for the metainfo of a blob.
    Seek {
        namespace: Namespace,
        digest: Digest,
        reply: oneshot::Sender<Option<Told>>,
    },
    /// A part of a metainfo, for a peer that asked for it.
    Tell { conn: ConnId, message: Message },
    /// The discovery says the same of a metainfo as a peer did.
    Confirmed { meta: MetaInfo },
    /// The discovery does not tell now whether what a peer said of a metainfo is right.
    Unconfirmed { digest: Digest },
    /// A metainfo is not what the discovery says, or a piece did not fit one that it says nothing of.
    Contradicted { meta: MetaInfo, is_sure: bool },
    /// A piece came from elsewhere and is in the store, with the metainfo that proves it.
    #[cfg_attr(
        not(all(feature = "http", feature = "fs")),
        expect(dead_code, reason = "only origins take blobs in")
    )]
    Ingested { meta: MetaInfo, piece: u32 },
    /// A blob's metainfo will not become whole.
    Failed { digest: Digest, end: End },
    /// The store was asked about a blob that a peer wants.
    LookedUp {
        digest: Digest,
        meta: Option<MetaInfo>,
    },
    /// The last piece is there, and the blob is durable under its name, or not.
    Sealed {
        digest: Digest,
        result: Result<(), String>,
    },
    /// A piece could not be written.
    WriteFailed {
        digest: Digest,
        piece: u32,
        reason: String,
    },
    /// A reader begins with these bytes.
    Read {
        digest: Digest,
        reader: ReaderId,
        bytes: Range<u64>,
    },
    /// A reader moved.
    Want {
        digest: Digest,
        reader: ReaderId,
        pieces: Range<u32>,
    },
    /// Leave the swarm and forget the blob.
    Forget {
        digest: Digest,
        reply: oneshot::Sender<()>,
    },
    /// Leave the swarm and forget the blob, unless somebody reads it: then the answer is false.
    LeaveUnread {
        digest: Digest,
        reply: oneshot::Sender<bool>,
    },
    /// Where a blob's bytes came from.
    Stats {
        digest: Digest,
        reply: oneshot::Sender<Option<SwarmStats>>,
    },
    /// What moved since the last report, which did not arrive if it is `again`.
    Report {
        again: bool,
        reply: oneshot::Sender<Vec<BlobReport>>,
    },
    /// What is remembered of how a blob came.
    Transfers {
        digest: Digest,
        reply: oneshot::Sender<Vec<Transfer>>,
    },
    /// What comes at this moment, and who is connected.
    UnderWay {
        reply: oneshot::Sender<(Vec<Transfer>, Vec<Neighbour>)>,
    },
    /// This host ends soon: the answer is how many pieces are left to hand over.
    Leave { reply: oneshot::Sender<usize> },
    /// End: answered when the tracker is being told and the peers that were met are kept.
    Stop { reply: oneshot::Sender<()> },
}

struct Blob {
    meta: MetaInfo,
    namespace: Namespace,
    progress: watch::Sender<Progress>,
    /// Whether only what its readers want is fetched.
    is_partial: bool,
    /// End what follows its open metainfo, and what asks whether it is right, with the blob.
    _following: Option<DropGuard>,
    _confirming: Option<DropGuard>,
    /// Pieces that did not fit its metainfo while that was hearsay, and who sent the last of these.
    misfits: u32,
    misfit_from: Option<ConnId>,
    /// The span of its way here, if a request that belongs to a trace waits for it.
    trace: Span,
    /// Ends with the blob: what was proved for it is not written for another.
    life: CancellationToken,
    _ends: DropGuard,
}

/// The parts that a driver works with.
pub(crate) struct Parts {
    pub(crate) local: PeerInfo,
    pub(crate) config: kraken_proto::Config,
    pub(crate) seed: u64,
    pub(crate) store: Arc<dyn DynStore>,
    pub(crate) transport: Arc<dyn DynTransport>,
    pub(crate) discovery: Arc<dyn DynDiscovery>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
    /// Where the peers that were met are kept.
    pub(crate) peers: Option<PeersFile>,
    /// How long an open metainfo is followed without anything new.
    pub(crate) patience: Duration,
}

/// Notes that may wait for the driver; whoever has more to say waits.
const INBOX: usize = 1024;

/// Pieces being verified and written at once. One blob may take half of it: then a small one's do
/// not wait behind all of a large one's.
const STORING: u64 = 16;
/// Room for pieces between their arrival and their write, in KiB: two of the largest. What comes
/// faster than it can be written is not to pile up here.
const ARRIVALS: usize = 32 << 10;
/// Room for pieces between their read and the network, in bytes. One blob may take half of it.
const SENDING: u64 = 64 << 20;

/// Questions about metainfo that wait for the store at a time; further ones get no answer.
const ASKED: usize = 32;

/// Starts the driver and the task that accepts connections.
pub(crate) fn start(parts: Parts) -> mpsc::Sender<Note> {
    let (notes, inbox) = mpsc::channel(INBOX);
    let clock = Clock::start();
    let scheduler = Scheduler::new(
        clock.now(),
        parts.local.clone(),
        parts.config.clone(),
        parts.seed,
    );
    let tasks = parts.tasks.clone();
    tasks.spawn(accept(parts.transport.clone(), notes.clone()));
    tasks.spawn(parts.transport.throttle().clone().run());
    let driver = Driver {
        clock,
        scheduler,
        history: History::default(),
        parts,
        notes: notes.downgrade(),
        links: HashMap::new(),
        next_conn: 0,
        blobs: HashMap::new(),
        seeking: HashMap::new(),
        asked: Arc::new(Semaphore::new(ASKED)),
        payload: None,
        storing: Rooms::new(STORING),
        buffers: Rooms::new(SENDING),
        arrivals: Arc::new(Semaphore::new(ARRIVALS)),
        stopping: None,
        tally: Tally::default(),
    };
    tasks.spawn(driver.run(inbox));
    notes
}

async fn accept(transport: Arc<dyn DynTransport>, notes: mpsc::Sender<Note>) {
    while let Ok(conn) = transport.accept().await {
        if notes
            .send(Note::Connected {
                conn,
                dialled: false,
            })
            .await
            .is_err()
        {
            return;
        }
    }
}

struct Driver {
    clock: Clock,
    scheduler: Scheduler,
    history: History,
    parts: Parts,
    /// For the tasks: weak, so that the driver ends with the last handle.
    notes: mpsc::WeakSender<Note>,
    links: HashMap<ConnId, Link>,
    next_conn: u64,
    blobs: HashMap<Digest, Blob>,
    /// Who waits for what peers say of a blob's metainfo.
    seeking: HashMap<Digest, Vec<oneshot::Sender<Option<Told>>>>,
    /// Room for questions about blobs that only the store knows.
    asked: Arc<Semaphore>,
    /// The bytes that came with the input being handled.
    payload: Option<(Bytes, OwnedSemaphorePermit)>,
    storing: Rooms,
    buffers: Rooms,
    arrivals: Arc<Semaphore>,
    stopping: Option<oneshot::Sender<()>>,
    tally: Tally,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Note>) {
        if let Some(file) = &mut self.parts.peers {
            let peers = file.load().await;
            self.input(Input::Known { peers });
        }
        let mut save = tokio::time::interval(SAVE_EVERY);
        loop {
            let wake = self
                .scheduler
                .poll_timeout(self.clock.now())
                .map(|at| self.clock.instant(at));
            tokio::select! {
                note = inbox.recv() => match note {
                    Some(note) => self.note(note),
                    None => break,
                },
                () = sleep_until(wake) => self.scheduler.handle_timeout(self.clock.now()),
                _ = save.tick() => self.look_around(),
            }
            self.perform_all();
            if let Some(reply) = self.stopping.take() {
                if let Some(file) = &mut self.parts.peers {
                    let peers = self.scheduler.known_peers().cloned();
                    file.finish(peers.collect()).await;
                }
                let _ = reply.send(());
                break;
            }
        }
    }

    /// What is done now and then.
    fn look_around(&mut self) {
        self.parts.metrics.offload(self.parts.transport.offload());
        if let Some(file) = &mut self.parts.peers {
            file.save(self.scheduler.known_peers().cloned().collect());
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Input(input) => self.input(input),
            Note::Frame { conn, frame, room } => {
                self.payload = Some((frame.payload, room));
                self.input(Input::Message {
                    conn,
                    message: frame.message,
                });
            }
            Note::Connected { conn, dialled } => self.connected(conn, dialled),
            Note::Open {
                told,
                namespace,
                have,
                ingest,
                extent,
                request,
                reply,
            } => {
                let is_partial = extent == Extent::Parts && !have.is_full();
                // Parts come as they are asked for, and need not end.
                let will_come = !have.is_full() && !is_partial;
                let trace = self.download(&request, (&told.meta, &namespace), will_come);
                let how = (ingest, is_partial);
                let _ = reply.send(self.open((told, have), namespace, how, trace));
            }
            Note::Continued { meta, is_hearsay } => self.continued(meta, is_hearsay),
            Note::Seek {
                namespace,
                digest,
                reply,
            } => self.seek(namespace, digest, reply),
            Note::Tell { conn, message } => self.send(conn, message),
            Note::Confirmed { meta } => self.confirmed(&meta),
            Note::Unconfirmed { digest } => self.fetch_whole(digest),
            Note::Contradicted { meta, is_sure } => self.contradicted(&meta, is_sure),
            Note::Ingested { meta, piece } => self.ingested(meta, piece),
            Note::Failed { digest, end } => self.failed(digest, end),
            Note::LookedUp { digest, meta } => self.looked_up(digest, meta),
            Note::Sealed {
                digest,
                result: Ok(()),
            } => {
                self.progress(digest, |progress| progress.sealed = true);
                self.history.end(unix_ms(), digest, None);
                self.downloaded(digest, None);
                if let Some(blob) = self.blobs.get_mut(&digest) {
                    blob._confirming = None;
                }
            }
            // The next one to open the blob finds what the store has, and tries again.
            Note::Sealed {
                digest,
                result: Err(reason),
            } => self.give_up(digest, reason),
            Note::WriteFailed {
                digest,
                piece,
                reason,
            } => {
                self.input(Input::PieceLost { digest, piece });
                self.give_up(digest, reason);
            }
            Note::Read {
                digest,
                reader,
                bytes,
            } => {
                self.input(Input::Read {
                    digest,
                    reader,
                    bytes,
                });
            }
            Note::Want {
                digest,
                reader,
                pieces,
            } => {
                self.input(Input::Want {
                    digest,
                    reader,
                    pieces,
                });
            }
            Note::Forget { digest, reply } => {
                self.give_up(digest, "the blob was removed".into());
                let _ = reply.send(());
            }
            Note::LeaveUnread { digest, reply } => {
                let blob = self.blobs.get(&digest);
                let read = blob.is_some_and(|blob| blob.progress.receiver_count() > 0);
                if !read {
                    self.give_up(digest, "the blob was evicted".into());
                }
                let _ = reply.send(!read);
            }
            Note::Stats { digest, reply } => drop(reply.send(self.scheduler.stats(digest))),
            Note::Report { again, reply } => drop(reply.send(self.report(again))),
            Note::Transfers { digest, reply } => {
                let _ = reply.send(self.history.of(digest).cloned().collect());
            }
            Note::UnderWay { reply } => {
                let (transfers, neighbours) = (self.history.under_way(), self.history.neighbours());
                let _ = reply.send((transfers.cloned().collect(), neighbours.cloned().collect()));
            }
            Note::Leave { reply } => {
                self.input(Input::Leave);
                let _ = reply.send(self.scheduler.rare_pieces());
            }
            Note::Stop { reply } => {
                self.input(Input::Shutdown);
                self.stopping = Some(reply);
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.remember_input(&input);
        if let Input::ConnDown { conn } = input {
            self.links.remove(&conn);
        }
        let input = match input {
            // Whoever sent it may well have sent what is right.
            Input::PieceRejected {
                digest,
                piece,
                conn,
            } if !self.doubt(digest, conn) => Input::PieceLost { digest, piece },
            input => input,
        };
        if let Input::PieceStored { digest, piece, .. } = input {
            self.progress(digest, |progress| {
                progress.have.insert(piece);
            });
        }
        self.scheduler.handle(self.clock.now(), input);
        self.perform_all();
    }

    fn open(
        &mut self,
        (told, have): (Told, Bitfield),
        namespace: Namespace,
        (ingest, is_partial): (bool, bool),
        trace: Span,
    ) -> watch::Receiver<Progress> {
        let Told { meta, is_hearsay } = told;
        let digest = meta.digest();
        if let Some(blob) = self.blobs.get(&digest) {
            let progress = blob.progress.subscribe();
            if !is_partial {
                self.fetch_whole(digest);
            }
            return progress;
        }
        let sealed = have.is_full();
        let progress = Progress {
            have: have.clone(),
            sealed,
            failed: None,
            is_hearsay,
            sure: 0,
        };
        let (progress, following) = watch::channel(progress);
        let spec = BlobSpec::of(&meta, namespace.clone());
        let open = !meta.is_whole();
        let pieces = if ingest { 0 } else { meta.provable() };
        let _following = (open && !ingest).then(|| self.follow(namespace.clone(), meta.clone()));
        let _confirming =
            (is_hearsay && !sealed).then(|| self.confirm(namespace.clone(), meta.clone()));
        let life = CancellationToken::new();
        self.remember_open(&meta, &namespace, &have, (is_hearsay, ingest));
        self.blobs.insert(
            digest,
            Blob {
                meta,
                namespace,
                progress,
                is_partial,
                _following,
                _confirming,
                misfits: 0,
                misfit_from: None,
                trace,
                _ends: life.clone().drop_guard(),
                life,
            },
        );
        self.input(Input::Open { spec, have });
        if is_partial {
            let extent = Extent::Parts;
            self.input(Input::Fetch { digest, extent });
        }
        if open || ingest {
            self.input(Input::Provable { digest, pieces });
        }
        following
    }

    /// Fetches all of a blob of which only parts were wanted so far.
    fn fetch_whole(&mut self, digest: Digest) {
        let blob = self.blobs.get_mut(&digest);
        if blob.is_some_and(|blob| std::mem::take(&mut blob.is_partial)) {
            let extent = Extent::Whole;
            self.input(Input::Fetch { digest, extent });
        }
    }

    fn follow(&self, namespace: Namespace, meta: MetaInfo) -> DropGuard {
        let sources = Sources {
            discovery: self.parts.discovery.clone(),
            notes: self.notes.clone(),
        };
        let follower = Follower {
            sources,
            store: self.parts.store.clone(),
            patience: self.parts.patience,
        };
        self.guarded(follower.follow(namespace, meta))
    }

    /// Does something that ends with the guard.
    fn guarded(&self, work: impl Future<Output = ()> + Send + 'static) -> DropGuard {
        let token = CancellationToken::new();
        let work = token.clone().run_until_cancelled_owned(work);
        self.parts.tasks.spawn(async move {
            let _ = work.await;
        });
        token.drop_guard()
    }

    fn continued(&mut self, meta: MetaInfo, is_hearsay: bool) {
        let (digest, pieces) = (meta.digest(), meta.provable());
        let confirming = is_hearsay
            .then(|| self.blobs.get(&digest))
            .flatten()
            .map(|blob| self.confirm(blob.namespace.clone(), meta.clone()));
        if let Some(blob) = self.blobs.get_mut(&digest) {
            let before = std::mem::replace(&mut blob.meta, meta);
            blob.progress.send_modify(|it| {
                if is_hearsay && !it.is_hearsay {
                    it.is_hearsay = true;
                    it.sure = before.provable();
                }
            });
            if confirming.is_some() {
                blob._confirming = confirming;
            }
            self.input(Input::Provable { digest, pieces });
            if is_hearsay {
                // Its last piece alone proves it.
                self.fetch_whole(digest);
            }
        }
    }

    fn ingested(&mut self, meta: MetaInfo, piece: u32) {
        let digest = meta.digest();
        if let Some(blob) = self.blobs.get_mut(&digest) {
            let bytes = u64::from(meta.piece_size(piece));
            blob.meta = meta;
            self.history.ingested(digest, bytes);
            self.progress(digest, |progress| {
                progress.have.insert(piece);
            });
            self.input(Input::PieceIngested { digest, piece });
        }
    }

    fn failed(&mut self, digest: Digest, end: End) {
        match end {
            End::Silent(reason) => self.give_up(digest, reason),
            End::Damaged(reason) => self.discard(digest, reason),
        }
    }

    /// Drops a blob of which nothing is worth keeping.
    fn discard(&mut self, digest: Digest, reason: String) {
        tracing::warn!(%digest, reason, "dropping a blob that is damaged");
        self.give_up(digest, reason);
        let store = self.parts.store.clone();
        self.parts.tasks.spawn(async move {
            if let Err(error) = store.discard(digest).await {
                tracing::error!(%digest, %error, "a damaged blob stays in the store");
            }
        });
    }

    fn looked_up(&mut self, digest: Digest, meta: Option<MetaInfo>) {
        let spec = meta
            .as_ref()
            .map(|meta| BlobSpec::of(meta, Namespace::default()));
        if let Some(meta) = meta {
            let have = Bitfield::full(meta.piece_count());
            let life = CancellationToken::new();
            let progress = watch::Sender::new(Progress {
                have,
                sealed: true,
                failed: None,
                is_hearsay: false,
                sure: 0,
            });
            self.blobs.entry(digest).or_insert(Blob {
                meta,
                namespace: Namespace::default(),
                progress,
                is_partial: false,
                _following: None,
                _confirming: None,
                misfits: 0,
                misfit_from: None,
                trace: Span::none(),
                _ends: life.clone().drop_guard(),
                life,
            });
        }
        self.input(Input::Found { digest, spec });
    }

    /// Leaves the blob's swarm: its readers get an error.
    fn give_up(&mut self, digest: Digest, reason: String) {
        self.history.end(unix_ms(), digest, Some(reason.clone()));
        self.downloaded(digest, Some(&reason));
        self.progress(digest, |progress| progress.failed = Some(reason));
        self.blobs.remove(&digest);
        self.tally.forget(&digest);
        self.input(Input::Forget { digest });
    }

    fn report(&mut self, again: bool) -> Vec<BlobReport> {
        if again {
            self.tally.tell_again();
        }
        let blobs = &self.blobs;
        self.tally.report(|digest| {
            let blob = blobs.get(digest)?;
            Some(Known {
                namespace: blob.namespace.clone(),
                length: blob.meta.length(),
                have: blob.progress.borrow().have.count(),
                of: blob.meta.piece_count(),
            })
        })
    }

    fn progress(&self, digest: Digest, change: impl FnOnce(&mut Progress)) {
        if let Some(blob) = self.blobs.get(&digest) {
            blob.progress.send_modify(change);
        }
    }

    fn connected(&mut self, conn: Arc<dyn DynConn>, dialled: bool) {
        let Some(notes) = self.notes.upgrade() else {
            return;
        };
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        let peer = conn.peer();
        self.history.connected(unix_ms(), peer, conn.remote_addr());
        let (store, buffers) = (self.parts.store.clone(), self.buffers.clone());
        let cx = LinkContext {
            id,
            conn,
            notes,
            store,
            buffers,
            arrivals: self.arrivals.clone(),
        };
        self.links.insert(id, Link::start(&self.parts.tasks, cx));
        self.input(Input::ConnUp {
            conn: id,
            peer,
            dialled,
        });
    }
}

/// What the driver answers to a note; nothing when it has ended.
pub(crate) async fn asked<T: Default>(
    notes: &mpsc::Sender<Note>,
    note: impl FnOnce(oneshot::Sender<T>) -> Note,
) -> T {
    let (reply, answer) = oneshot::channel();
    match notes.send(note(reply)).await {
        Ok(()) => answer.await.unwrap_or_default(),
        Err(_) => T::default(),
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
