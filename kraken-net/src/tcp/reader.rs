//! The task that reads, and one per piece that lets its bytes pass our limits.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use kraken_proto::Message;
use kraken_proto::wire::codec;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::endpoint::IDLE_TIMEOUT;
use super::link::{Delivery, End, Link, Room};
use super::outgoing::WINDOW;
use super::record::{HEAD, MAX_REASON, Record};
use super::writer::FAREWELL;
use crate::throttle::{Gate, Passage};
use crate::transport::Frame;

/// How long a piece may stand still while its connection lives and no other piece moves either. A
/// request is repeated elsewhere long before; this frees the memory.
const PIECE_STALL: Duration = Duration::from_secs(30);

/// The first room for a piece's bytes; it doubles as they arrive, so that a peer which announces
/// 16 MiB and sends nothing holds this much.
const FIRST_ROOM: usize = 64 << 10;

/// Windows are widened by so many bytes at once: often enough for a receiver that takes a few
/// kilobytes per second, and far less often than chunks come.
const WIDEN: usize = 128 << 10;

/// The half of a connection that reads.
pub(super) struct Reader<R> {
    link: Arc<Link>,
    stream: R,
    inbox: mpsc::UnboundedSender<Delivery>,
    /// Pieces that have begun and not ended, by their streams.
    pieces: BTreeMap<u32, Arriving>,
    next_stream: u32,
}

/// A piece of which not everything is here.
struct Arriving {
    len: usize,
    bytes: Vec<u8>,
    /// Bytes that have passed our limits.
    passed: Arc<AtomicUsize>,
    progress: watch::Sender<Progress>,
    abandoned: CancellationToken,
}

/// How far a piece has come.
#[derive(Default)]
struct Progress {
    received: usize,
    /// All of it, at the end.
    whole: Bytes,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// A reader, and where its frames come out.
    pub(super) fn new(link: Arc<Link>, stream: R) -> (Self, mpsc::UnboundedReceiver<Delivery>) {
        // What may lie in it is bounded by the room that the other side was given.
        let (inbox, deliveries) = mpsc::unbounded_channel();
        let reader = Self {
            link,
            stream,
            inbox,
            pieces: BTreeMap::new(),
            next_stream: 0,
        };
        (reader, deliveries)
    }

    /// Reads until the connection ends.
    pub(super) async fn run(mut self) {
        let link = self.link.clone();
        tokio::select! {
            biased;
            () = link.ended.cancelled() => {}
            end = self.read_all() => {
                let Err(end) = end;
                link.end(end);
            }
        }
        self.pieces.clear();
        if !matches!(link.how_it_ended(), End::Lost(_)) {
            // A socket that is closed with bytes unread would take our last word away again.
            let _ = timeout(FAREWELL, self.read_to_nowhere()).await;
        }
    }

    async fn read_to_nowhere(&mut self) {
        let mut nowhere = vec![0; FIRST_ROOM];
        while let Ok(1..) = self.stream.read(&mut nowhere).await {}
    }

    async fn read_all(&mut self) -> Result<Infallible, End> {
        loop {
            let head = self.exactly(HEAD).await?;
            let head = head.try_into().expect("as long as it was asked for");
            let record = Record::decode(head).map_err(End::Breach)?;
            self.take(record).await?;
        }
    }

    async fn take(&mut self, record: Record) -> Result<(), End> {
        match record {
            Record::Empty => Ok(()),
            Record::Message { len } => self.message(len).await,
            Record::Heard { bytes } => {
                self.link.outgoing().heard(bytes).map_err(breach)?;
                self.link.wake.notify_one();
                Ok(())
            }
            Record::Piece { stream, len } => self.piece(stream, len).await,
            Record::Chunk { stream, len } => self.chunk(stream, len).await,
            Record::Abandoned { stream } => {
                let piece = self.pieces.remove(&stream);
                let piece = piece.ok_or_else(|| breach("no such piece is abandoned"))?;
                piece.abandoned.cancel();
                tracing::debug!(peer = ?self.link.peer, "the peer gave up sending a piece");
                Ok(())
            }
            Record::Window { stream, bytes } => {
                let widened = self.link.outgoing().widen(stream, bytes);
                if let Some(waiter) = widened.map_err(breach)? {
                    waiter.notify_one();
                }
                self.link.wake.notify_one();
                Ok(())
            }
            Record::Room { pieces } => {
                self.link.outgoing().make_room(pieces).map_err(breach)?;
                self.link.wake.notify_one();
                Ok(())
            }
            Record::Close { len } => {
                let reason = self.exactly(len).await?;
                Err(End::Lost(readable(&reason)))
            }
        }
    }

    async fn message(&mut self, len: usize) -> Result<(), End> {
        let message = codec::decode(&self.exactly(len).await?).map_err(breach)?;
        if matches!(message, Message::Piece { .. }) {
            return Err(breach("a piece among the messages"));
        }
        let room = Room::for_message(&self.link, len);
        let room = room.ok_or_else(|| breach("more messages at once than may be"))?;
        // Fails when the handle is gone, and then the connection ends.
        let _ = self.inbox.send(Delivery {
            frame: Frame::control(message),
            _room: room,
        });
        Ok(())
    }

    async fn piece(&mut self, stream: u32, len: usize) -> Result<(), End> {
        let message = codec::decode(&self.exactly(len).await?).map_err(breach)?;
        let Message::Piece { len, .. } = message else {
            return Err(breach("only pieces travel on streams of their own"));
        };
        if stream != self.next_stream {
            return Err(breach("a stream out of its order"));
        }
        self.next_stream = stream.wrapping_add(1);
        let room = Room::for_piece(&self.link);
        let room = room.ok_or_else(|| breach("more pieces at once than may be"))?;
        let (progress, news) = watch::channel(Progress::default());
        let arriving = Arriving {
            len: len as usize,
            bytes: Vec::new(),
            passed: Arc::new(AtomicUsize::new(0)),
            progress,
            abandoned: self.link.ended.child_token(),
        };
        let limiting = Limiting {
            link: self.link.clone(),
            stream,
            len: arriving.len,
            passed: arriving.passed.clone(),
            news,
        };
        let (inbox, abandoned) = (self.inbox.clone(), arriving.abandoned.clone());
        self.pieces.insert(stream, arriving);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = abandoned.cancelled() => {}
                () = limiting.run(message, room, inbox) => {}
            }
        });
        Ok(())
    }

    async fn chunk(&mut self, stream: u32, len: usize) -> Result<(), End> {
        let piece = self.pieces.get_mut(&stream);
        let piece = piece.ok_or_else(|| breach("bytes of no piece"))?;
        let received = piece.bytes.len();
        if piece.len - received < len {
            return Err(breach(format!("a piece of {} bytes goes on", piece.len)));
        }
        if received + len > piece.passed.load(Ordering::Relaxed) + WINDOW {
            return Err(breach("more bytes than the window takes"));
        }
        let until = received + len;
        while piece.bytes.len() < until {
            let (bytes, whole) = (&mut piece.bytes, piece.len);
            if bytes.len() == bytes.capacity() {
                let more = bytes.len().max(FIRST_ROOM).min(whole - bytes.len());
                bytes.reserve_exact(more);
            }
            let room = bytes.capacity().min(until) - bytes.len();
            some(&mut self.stream, bytes, room).await?;
        }
        self.link.chunks_received.fetch_add(1, Ordering::Relaxed);
        if until < piece.len {
            piece.progress.send_modify(|it| it.received = until);
        } else if let Some(piece) = self.pieces.remove(&stream) {
            let whole = Bytes::from(piece.bytes);
            piece.progress.send_modify(|it| {
                it.received = until;
                it.whole = whole;
            });
        }
        Ok(())
    }

    /// For bodies that are bounded by a few kilobytes.
    async fn exactly(&mut self, len: usize) -> Result<Vec<u8>, End> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let room = len - bytes.len();
            some(&mut self.stream, &mut bytes, room).await?;
        }
        Ok(bytes)
    }
}

/// Reads at least one byte and at most `room`.
async fn some<R>(stream: &mut R, into: &mut Vec<u8>, room: usize) -> Result<(), End>
where
    R: AsyncRead + Unpin,
{
    let mut into = into.limit(room);
    match timeout(IDLE_TIMEOUT, stream.read_buf(&mut into)).await {
        Ok(Ok(0)) => Err(End::Lost("the other side hung up".to_string())),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(End::Lost(error.to_string())),
        Err(_) => Err(End::Lost(format!(
            "nothing arrived for {} s",
            IDLE_TIMEOUT.as_secs()
        ))),
    }
}

/// Lets the bytes of a piece pass our limits as they come, and delivers it.
struct Limiting {
    link: Arc<Link>,
    stream: u32,
    len: usize,
    passed: Arc<AtomicUsize>,
    news: watch::Receiver<Progress>,
}

impl Limiting {
    async fn run(mut self, message: Message, room: Room, inbox: mpsc::UnboundedSender<Delivery>) {
        let Message::Piece { digest, .. } = message else {
            return;
        };
        let link = self.link.clone();
        let gate = link.endpoint.throttle.download();
        let passage = gate.piece(digest, false);
        let (mut passed, mut widened) = (0, 0);
        while passed < self.len {
            if !self.more(passed, gate).await {
                return;
            }
            passed += self.pass(passed, &passage).await;
            // Whoever may send the rest already needs no word.
            if passed - widened >= WIDEN && widened + WINDOW < self.len {
                self.widen(passed - widened);
                widened = passed;
            }
        }
        let payload = self.news.borrow_and_update().whole.clone();
        let frame = Frame {
            message,
            payload,
            first: false,
        };
        link.undelivered.fetch_add(1, Ordering::Relaxed);
        // Fails when the handle is gone, and with it whoever wanted the piece.
        let _ = inbox.send(Delivery { frame, _room: room });
    }

    /// Waits until more than `passed` bytes are here; false when there will be no more.
    async fn more(&mut self, passed: usize, gate: &Gate) -> bool {
        loop {
            if self.news.borrow_and_update().received > passed {
                return true;
            }
            let before = self.link.chunks_received.load(Ordering::Relaxed);
            match timeout(PIECE_STALL, self.news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return false,
                Err(_) => {
                    // Whoever takes no pieces or no bytes holds the sender up.
                    let ours = self.link.undelivered.load(Ordering::Relaxed) > 0;
                    let moves = self.link.chunks_received.load(Ordering::Relaxed) > before;
                    if !ours && !moves && !gate.is_limited() {
                        let silence = PIECE_STALL.as_secs();
                        let what = format!("a piece stood still for {silence} s");
                        self.link.end(End::Breach(what));
                        return false;
                    }
                }
            }
        }
    }

    /// Lets some of the bytes that are here pass; returns how many.
    async fn pass(&self, passed: usize, passage: &Passage) -> usize {
        let waiting = self.news.borrow().received - passed;
        let bytes = waiting.min(passage.chunk());
        passage.pass(bytes).await;
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        bytes
    }

    fn widen(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.link.outgoing().owe_window(self.stream, bytes);
        self.link.wake.notify_one();
    }
}

fn breach(what: impl ToString) -> End {
    End::Breach(what.to_string())
}

/// A reason as it may be shown: it comes from a stranger and lands in logs, so it is cut and freed
/// of control characters.
pub(super) fn readable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    let shown = text.chars().filter(|c| !c.is_control());
    shown.take(MAX_REASON).collect()
}
