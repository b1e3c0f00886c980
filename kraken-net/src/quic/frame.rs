//! Frames on QUIC streams, bounded by what has really arrived.

use std::io;
use std::time::Duration;

use bytes::BufMut;
use kraken_proto::Message;
use kraken_proto::wire::codec;
use quinn::RecvStream;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::buffers::Buffers;
use crate::throttle::Gate;
use crate::transport::Frame;

/// How long a piece may stand still while its connection lives. A request is repeated elsewhere
/// long before; this frees the memory.
pub(super) const PIECE_STALL: Duration = Duration::from_secs(30);

/// The empty frame with which each side begins the control stream.
pub(super) const PREAMBLE: [u8; codec::PREFIX] = [0; codec::PREFIX];

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The other side gave the stream up: a piece that it will not finish.
    Abandoned,
    /// The connection is gone.
    Lost,
    /// A rule is broken.
    Protocol(String),
}

/// A stream and the rule for its silence.
pub(super) struct FrameReader<'a, F> {
    stream: &'a mut RecvStream,
    /// Asked after [`PIECE_STALL`] without a byte: whether the silence is the sender's fault.
    blame: F,
}

/// A control stream may be silent for ever.
pub(super) fn control(stream: &mut RecvStream) -> FrameReader<'_, fn() -> bool> {
    FrameReader {
        stream,
        blame: || false,
    }
}

/// A piece must move, unless `blame` says that we hold it up ourselves.
pub(super) fn piece<F: Fn() -> bool>(stream: &mut RecvStream, blame: F) -> FrameReader<'_, F> {
    FrameReader { stream, blame }
}

impl<F: Fn() -> bool> FrameReader<'_, F> {
    /// The empty frame in front of all others.
    pub(super) async fn preamble(&mut self) -> Result<(), FrameError> {
        if self.body().await?.is_empty() {
            Ok(())
        } else {
            Err(protocol("the control stream begins with an empty frame"))
        }
    }

    /// The next message on the control stream.
    pub(super) async fn message(&mut self) -> Result<Message, FrameError> {
        match codec::decode(&self.body().await?) {
            Ok(Message::Piece { .. }) => Err(protocol("a piece on the control stream")),
            Ok(message) => Ok(message),
            Err(error) => Err(protocol(error)),
        }
    }

    /// A whole piece: its message, the bytes and the end. What is not read for the gate's sake
    /// stays in the stream's window, and so with the sender.
    pub(super) async fn frame(
        &mut self,
        gate: &Gate,
        buffers: &Buffers,
    ) -> Result<Frame, FrameError> {
        let message = codec::decode(&self.body().await?).map_err(protocol)?;
        let Message::Piece { digest, len, .. } = message else {
            return Err(protocol("only pieces travel on streams of their own"));
        };
        let passage = gate.piece(digest, false);
        let mut payload = buffers.lend(len as usize);
        while payload.len() < len as usize {
            let room = (len as usize - payload.len()).min(passage.chunk());
            let read = self.some(payload.tail(), room).await?;
            if read == 0 {
                return Err(cut_short("a piece", len as usize, payload.len()));
            }
            passage.pass(read).await;
        }
        if self.some(&mut Vec::with_capacity(1), 1).await? > 0 {
            return Err(protocol(format!("a piece of {len} bytes goes on")));
        }
        Ok(Frame {
            message,
            payload: payload.freeze(),
            first: false,
        })
    }

    async fn body(&mut self) -> Result<Vec<u8>, FrameError> {
        let prefix = self.exactly(codec::PREFIX, "the length of a frame").await?;
        let prefix = prefix.try_into().expect("as long as it was asked for");
        let len = codec::body_len(prefix).map_err(protocol)?;
        self.exactly(len, "a frame").await
    }

    /// For what is bounded by a few kilobytes.
    async fn exactly(&mut self, len: usize, what: &str) -> Result<Vec<u8>, FrameError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let room = len - bytes.len();
            if self.some(&mut bytes, room).await? == 0 {
                return Err(cut_short(what, len, bytes.len()));
            }
        }
        Ok(bytes)
    }

    /// Reads at least one byte and at most `room`; zero at the end of the stream.
    async fn some(&mut self, into: &mut Vec<u8>, room: usize) -> Result<usize, FrameError> {
        loop {
            let mut into = (&mut *into).limit(room);
            // A read that is dropped has taken no byte, so the loop loses none.
            match timeout(PIECE_STALL, self.stream.read_buf(&mut into)).await {
                Ok(read) => return read.map_err(lost),
                Err(_) if (self.blame)() => {
                    let silence = PIECE_STALL.as_secs();
                    return Err(protocol(format!("a piece stood still for {silence} s")));
                }
                Err(_) => {}
            }
        }
    }
}

fn cut_short(what: &str, len: usize, found: usize) -> FrameError {
    protocol(format!("{what} of {len} bytes ended after {found}"))
}

fn protocol(what: impl ToString) -> FrameError {
    FrameError::Protocol(what.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn lost(error: io::Error) -> FrameError {
    match error.kind() {
        io::ErrorKind::ConnectionReset => FrameError::Abandoned,
        _ => FrameError::Lost,
    }
}
