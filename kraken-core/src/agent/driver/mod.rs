//! The shell of one host: a task that owns the scheduler.
//!
//! It takes one note at a time, hands it to the scheduler and does what the scheduler says. Doing
//! never waits: what waits becomes a task that sends a note when it is done. All state of the
//! swarms is in the scheduler, so that no lock guards it.

mod blob;
mod doubt;
mod note;
mod perform;
mod progress;
mod remember;
mod tally;
mod traced;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kraken_proto::history::History;
use kraken_proto::tracker::report::BlobReport;
use kraken_proto::{ConnId, Digest, Extent, Input, PeerInfo, Scheduler};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::blob::Blob;
pub(crate) use self::note::{Note, asked};
pub(crate) use self::progress::Progress;
use self::tally::{Known, Tally};
use crate::agent::hearsay::Told;
use crate::agent::link::{Link, LinkContext};
use crate::agent::peers::{PeersFile, SAVE_EVERY};
use crate::agent::rooms::Rooms;
use crate::clock::{Clock, unix_ms};
use crate::dynamic::{DynConn, DynDiscovery, DynStore, DynTransport};
use crate::error::ReadError;
use crate::metrics::Metrics;
use crate::seldom::Seldom;
use crate::tasks::Tasks;

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
        seldom: Arc::default(),
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
    /// What was said of announces that failed.
    seldom: Arc<Seldom>,
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
            Note::Failed { digest, error } => self.failed(digest, error),
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
                result: Err(error),
            } => self.give_up(digest, error.into()),
            Note::WriteFailed {
                digest,
                piece,
                error,
            } => {
                self.input(Input::PieceLost { digest, piece });
                self.give_up(digest, error.into());
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
            Note::Pause { digest, reply } => {
                self.pause(digest);
                let _ = reply.send(());
            }
            Note::Forget { digest, reply } => {
                self.give_up(digest, ReadError::gone(digest, "it was removed"));
                let _ = reply.send(());
            }
            Note::LeaveUnread { digest, reply } => {
                let blob = self.blobs.get(&digest);
                let read = blob.is_some_and(|blob| blob.progress.receiver_count() > 0);
                if !read {
                    self.give_up(digest, ReadError::gone(digest, "it was evicted"));
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

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
