//! The task that writes: messages before credits before pieces.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kraken_proto::Message;
use kraken_proto::wire::codec;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::endpoint::KEEP_ALIVE;
use super::link::{End, Link};
use super::record::{MAX_REASON, Record};
use crate::transport::SEND_STALL;

/// How long the end of a connection may take: until the other side has our reason, or we have its.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// Once so many bytes of messages have gathered, they go out.
const ENOUGH: usize = 32 << 10;

/// The half of a connection that writes.
pub(super) struct Writer<W> {
    pub(super) link: Arc<Link>,
    pub(super) stream: W,
    pub(super) outbox: mpsc::Receiver<Message>,
}

/// What goes out at once: whole records, so that nothing is ever left half said.
#[derive(Default)]
struct Batch {
    records: BytesMut,
    /// The bytes that the last record announces.
    bytes: Bytes,
    /// The piece to which they belong.
    piece: Option<u64>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes until the connection ends, and then says why.
    pub(super) async fn run(mut self) {
        let link = self.link.clone();
        loop {
            let batch = tokio::select! {
                biased;
                () = link.ended.cancelled() => break,
                batch = self.next() => batch,
            };
            let piece = batch.piece;
            let written = tokio::select! {
                written = timeout(SEND_STALL, batch.write(&mut self.stream)) => written,
                () = long_over(&link) => return,
            };
            match written {
                Ok(Ok(())) => self.written(piece),
                Ok(Err(error)) => return self.broken(&error).await,
                Err(_) => return link.end(End::Closed("silent".to_string())),
            }
        }
        // A farewell that the other side does not take is none.
        let _ = timeout(FAREWELL, self.farewell()).await;
    }

    /// What is to be written next.
    async fn next(&mut self) -> Batch {
        let mut batch = Batch::default();
        // Waking up for nothing puts it off no further.
        let silent_for_long = Instant::now() + KEEP_ALIVE;
        loop {
            while batch.records.len() < ENOUGH
                && self.link.outgoing().may_speak()
                && let Ok(message) = self.outbox.try_recv()
            {
                batch.message(&message, &self.link);
            }
            batch.fill(&self.link);
            if !batch.records.is_empty() {
                return batch;
            }
            let may_speak = self.link.outgoing().may_speak();
            tokio::select! {
                Some(message) = self.outbox.recv(), if may_speak => {
                    batch.message(&message, &self.link);
                }
                () = self.link.wake.notified() => {}
                () = sleep_until(silent_for_long) => batch.record(Record::Empty, &[]),
            }
        }
    }

    fn written(&self, piece: Option<u64>) {
        let Some(key) = piece else {
            return;
        };
        self.link.chunks_sent.fetch_add(1, Ordering::Relaxed);
        let waiter = self.link.outgoing().written(key);
        if let Some(waiter) = waiter {
            waiter.notify_one();
        }
    }

    /// The other side may have said why before it left: the reader comes to that, if so.
    async fn broken(&self, error: &io::Error) {
        let _ = timeout(FAREWELL, self.link.ended.cancelled()).await;
        self.link.end(End::Lost(error.to_string()));
    }

    async fn farewell(&mut self) -> io::Result<()> {
        let (End::Closed(reason) | End::Breach(reason)) = self.link.how_it_ended() else {
            return Ok(());
        };
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON)];
        let mut batch = Batch::default();
        batch.record(Record::Close { len: reason.len() }, reason);
        batch.write(&mut self.stream).await?;
        self.stream.shutdown().await
    }
}

impl Batch {
    fn record(&mut self, record: Record, body: &[u8]) {
        self.records.extend_from_slice(&record.encode());
        self.records.extend_from_slice(body);
    }

    fn message(&mut self, message: &Message, link: &Link) {
        let body = &codec::encode(message)[codec::PREFIX..];
        link.outgoing().spoke(body.len());
        self.record(Record::Message { len: body.len() }, body);
    }

    /// Adds what is to be said of credits, and the next bytes of a piece.
    fn fill(&mut self, link: &Link) {
        let mut outgoing = link.outgoing();
        for notice in outgoing.notices() {
            self.record(notice, &[]);
        }
        let Some(chunk) = outgoing.next() else {
            return;
        };
        let stream = chunk.stream;
        if let Some(message) = chunk.opening {
            let len = message.len();
            self.record(Record::Piece { stream, len }, &message);
        }
        let len = chunk.bytes.len();
        self.record(Record::Chunk { stream, len }, &[]);
        self.bytes = chunk.bytes;
        self.piece = Some(chunk.key);
    }

    async fn write<W: AsyncWrite + Unpin>(self, stream: &mut W) -> io::Result<()> {
        let mut bytes = self.records.chain(self.bytes);
        stream.write_all_buf(&mut bytes).await?;
        stream.flush().await
    }
}

/// Returns some time after the end of the connection: whoever writes then has nobody who reads.
async fn long_over(link: &Link) {
    link.ended.cancelled().await;
    sleep(FAREWELL).await;
}
