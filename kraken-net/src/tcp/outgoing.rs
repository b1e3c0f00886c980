//! What goes out next: decides, and reads no clock and touches no socket.

use std::collections::BTreeMap;

use bytes::Bytes;

use kraken_proto::wire::codec;

use super::record::{MAX_CHUNK, Record};
use crate::transport::MAX_PIECES_IN_FLIGHT;

/// Bytes of a piece that may be with a receiver before they pass its limits. A piece of the usual
/// size needs no word about it; a longer one at 10 Gbit/s and 3 ms neither.
pub(super) const WINDOW: usize = 4 << 20;

/// Bytes of messages that may wait until somebody takes them, each counted as [`cost`] says: dozens
/// of the longest, thousands of the usual.
pub(super) const MESSAGES: u32 = 1 << 20;

/// What a message of so many bytes counts: it takes up more than it is long.
pub(super) fn cost(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(128)
}

/// The pieces on their way out, and the credits: those that the other side gave us, and those that
/// we owe it. `T` is whoever waits for a piece.
///
/// A piece may go on as far as our own limits have let it pass ([`Outgoing::let_pass`]) and as the
/// other side's window reaches. Those that go first do so, the others take turns.
#[derive(Debug)]
pub(super) struct Outgoing<T> {
    /// By the order in which they came.
    pieces: BTreeMap<u64, Piece<T>>,
    next_key: u64,
    next_stream: u32,
    /// The piece that had the last turn.
    last: u64,
    /// Pieces that the other side has room for.
    room: u32,
    /// Bytes of messages that it has room for.
    message_room: u32,
    abandoned: Vec<u32>,
    owed_room: u32,
    owed_messages: u32,
    owed_windows: BTreeMap<u32, u32>,
}

#[derive(Debug)]
struct Piece<T> {
    message: Bytes,
    /// Since its first bytes went out.
    stream: Option<u32>,
    rest: Bytes,
    /// Bytes of the rest that have passed our own limits.
    ready: usize,
    /// Bytes that the other side still takes.
    window: usize,
    first: bool,
    waiter: T,
}

/// The next bytes of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// To be named in [`Outgoing::written`].
    pub(super) key: u64,
    pub(super) stream: u32,
    /// The piece's message, in front of its first bytes.
    pub(super) opening: Option<Bytes>,
    /// At most [`MAX_CHUNK`] bytes.
    pub(super) bytes: Bytes,
}

/// How a piece stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Bytes that have passed our limits and wait.
    pub(super) ready: usize,
    /// The other side's window is used up.
    pub(super) held_up: bool,
}

impl<T> Outgoing<T> {
    pub(super) fn new() -> Self {
        Self {
            pieces: BTreeMap::new(),
            next_key: 0,
            next_stream: 0,
            last: 0,
            room: MAX_PIECES_IN_FLIGHT,
            message_room: MESSAGES,
            abandoned: Vec::new(),
            owed_room: 0,
            owed_messages: 0,
            owed_windows: BTreeMap::new(),
        }
    }

    /// Takes up a piece, whose bytes are at least one; returns its key.
    pub(super) fn push(&mut self, message: Bytes, bytes: Bytes, first: bool, waiter: T) -> u64 {
        self.next_key += 1;
        let piece = Piece {
            message,
            stream: None,
            rest: bytes,
            ready: 0,
            window: WINDOW,
            first,
            waiter,
        };
        self.pieces.insert(self.next_key, piece);
        self.next_key
    }

    /// So many bytes more of a piece have passed our limits.
    pub(super) fn let_pass(&mut self, key: u64, bytes: usize) {
        if let Some(piece) = self.pieces.get_mut(&key) {
            piece.ready = piece.rest.len().min(piece.ready + bytes);
        }
    }

    /// How a piece stands; `None` once its last byte is written.
    pub(super) fn standing(&self, key: u64) -> Option<Standing> {
        self.pieces.get(&key).map(|piece| Standing {
            ready: piece.ready,
            held_up: piece.window == 0,
        })
    }

    /// The next bytes that may go.
    pub(super) fn next(&mut self) -> Option<Chunk> {
        let key = self.turn(true).or_else(|| self.turn(false))?;
        let piece = self.pieces.get_mut(&key)?;
        self.last = key;
        let (stream, opening) = match piece.stream {
            Some(stream) => (stream, None),
            None => {
                let stream = self.next_stream;
                self.next_stream = stream.wrapping_add(1);
                self.room -= 1;
                piece.stream = Some(stream);
                (stream, Some(std::mem::take(&mut piece.message)))
            }
        };
        let len = piece.ready.min(piece.window).min(MAX_CHUNK);
        piece.ready -= len;
        piece.window -= len;
        let bytes = piece.rest.split_to(len);
        Some(Chunk {
            key,
            stream,
            opening,
            bytes,
        })
    }

    /// The piece whose turn it is.
    fn turn(&self, first: bool) -> Option<u64> {
        let may = |(key, piece): (&u64, &Piece<T>)| {
            let open = piece.stream.is_some() || self.room > 0;
            (open && piece.first == first && piece.ready > 0 && piece.window > 0).then_some(*key)
        };
        let mut after = self.pieces.range(self.last + 1..);
        let turn = after.find_map(may);
        turn.or_else(|| self.pieces.range(..=self.last).find_map(may))
    }

    /// The bytes that [`Outgoing::next`] returned are handed to the network. Returns whoever waits
    /// for it, if anybody does.
    pub(super) fn written(&mut self, key: u64) -> Option<T>
    where
        T: Clone,
    {
        let piece = self.pieces.get(&key)?;
        let waiter = piece.waiter.clone();
        if piece.rest.is_empty() {
            self.pieces.remove(&key);
        }
        Some(waiter)
    }

    /// The sender gives a piece up; nothing happens when all its bytes are on their way.
    pub(super) fn give_up(&mut self, key: u64) {
        let Some(piece) = self.pieces.remove(&key) else {
            return;
        };
        if let Some(stream) = piece.stream
            && !piece.rest.is_empty()
        {
            self.abandoned.push(stream);
        }
    }

    /// The other side lets more of a piece come. A piece that has ended since needs no more.
    ///
    /// # Errors
    /// It gives more than it was sent.
    pub(super) fn widen(&mut self, stream: u32, bytes: u32) -> Result<Option<T>, &'static str>
    where
        T: Clone,
    {
        let mut pieces = self.pieces.values_mut();
        let Some(piece) = pieces.find(|piece| piece.stream == Some(stream)) else {
            return Ok(None);
        };
        let window = piece.window.saturating_add(bytes as usize);
        if window > WINDOW {
            return Err("a window wider than it was at first");
        }
        piece.window = window;
        Ok(Some(piece.waiter.clone()))
    }

    /// The other side has room for more pieces.
    ///
    /// # Errors
    /// It has more than at first.
    pub(super) fn make_room(&mut self, pieces: u32) -> Result<(), &'static str> {
        let room = self.room.saturating_add(pieces);
        if room > MAX_PIECES_IN_FLIGHT {
            return Err("room for more pieces than at first");
        }
        self.room = room;
        Ok(())
    }

    /// Whether a message may go, however long it is.
    pub(super) fn may_speak(&self) -> bool {
        self.message_room >= cost(codec::MAX_FRAME)
    }

    /// A message of so many bytes goes.
    pub(super) fn spoke(&mut self, len: usize) {
        self.message_room = self.message_room.saturating_sub(cost(len));
    }

    /// The other side has taken messages.
    ///
    /// # Errors
    /// It has room for more than at first.
    pub(super) fn heard(&mut self, bytes: u32) -> Result<(), &'static str> {
        let room = self.message_room.saturating_add(bytes);
        if room > MESSAGES {
            return Err("room for more messages than at first");
        }
        self.message_room = room;
        Ok(())
    }

    /// We have room for so many bytes more of messages. Returns whether that is worth a word: with
    /// half of the room, the other side still speaks freely.
    pub(super) fn owe_messages(&mut self, bytes: u32) -> bool {
        self.owed_messages = self.owed_messages.saturating_add(bytes);
        self.owed_messages >= MESSAGES / 2
    }

    /// We have room for one piece more.
    pub(super) fn owe_room(&mut self) {
        self.owed_room = self.owed_room.saturating_add(1);
    }

    /// So many bytes more of a piece may come to us.
    pub(super) fn owe_window(&mut self, stream: u32, bytes: u32) {
        let owed = self.owed_windows.entry(stream).or_default();
        *owed = owed.saturating_add(bytes);
    }

    /// What has to be said about credits and streams; few records, since most are added up.
    pub(super) fn notices(&mut self) -> impl Iterator<Item = Record> {
        let abandoned = std::mem::take(&mut self.abandoned);
        let windows = std::mem::take(&mut self.owed_windows);
        let room = std::mem::take(&mut self.owed_room);
        let room = (room > 0).then_some(Record::Room { pieces: room });
        let heard = (self.owed_messages >= MESSAGES / 2).then(|| Record::Heard {
            bytes: std::mem::take(&mut self.owed_messages),
        });
        let abandoned = abandoned
            .into_iter()
            .map(|stream| Record::Abandoned { stream });
        let windows = windows
            .into_iter()
            .map(|(stream, bytes)| Record::Window { stream, bytes });
        abandoned.chain(windows).chain(room).chain(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(outgoing: &mut Outgoing<u32>, len: usize, first: bool) -> u64 {
        let message = Bytes::from_static(b"message");
        let key = outgoing.push(message, Bytes::from(vec![1; len]), first, 0);
        outgoing.let_pass(key, len);
        key
    }

    /// The keys of the next chunks, as long as there are some.
    fn order(outgoing: &mut Outgoing<u32>) -> Vec<u64> {
        let mut keys = Vec::new();
        while let Some(chunk) = outgoing.next() {
            keys.push(chunk.key);
            outgoing.written(chunk.key);
        }
        keys
    }

    #[test]
    fn pieces_take_turns_and_those_that_go_first_do() {
        let mut outgoing = Outgoing::new();
        let one = piece(&mut outgoing, 2 * MAX_CHUNK, false);
        let two = piece(&mut outgoing, 3 * MAX_CHUNK, false);
        let first = piece(&mut outgoing, MAX_CHUNK + 1, true);
        assert_eq!(
            order(&mut outgoing),
            [first, first, one, two, one, two, two]
        );
        assert_eq!(outgoing.standing(one), None);
    }

    #[test]
    fn a_piece_opens_with_its_message_and_ends_with_its_last_byte() {
        let mut outgoing = Outgoing::new();
        let key = piece(&mut outgoing, MAX_CHUNK + 3, false);
        let chunk = outgoing.next().unwrap();
        assert_eq!(chunk.opening.as_deref(), Some(&b"message"[..]));
        assert_eq!((chunk.stream, chunk.bytes.len()), (0, MAX_CHUNK));
        assert_eq!(outgoing.written(key), Some(0));
        let chunk = outgoing.next().unwrap();
        assert_eq!((chunk.opening, chunk.bytes.len()), (None, 3));
        assert!(outgoing.standing(key).is_some());
        outgoing.written(key);
        assert_eq!((outgoing.standing(key), outgoing.next()), (None, None));
    }

    #[test]
    fn only_what_has_passed_our_limits_goes() {
        let mut outgoing = Outgoing::new();
        let key = outgoing.push(Bytes::new(), Bytes::from(vec![1; 100]), false, 0);
        assert_eq!(outgoing.next(), None);
        outgoing.let_pass(key, 30);
        assert_eq!(outgoing.next().unwrap().bytes.len(), 30);
        assert_eq!(outgoing.next(), None);
        outgoing.let_pass(key, 1000);
        assert_eq!(outgoing.next().unwrap().bytes.len(), 70);
    }

    #[test]
    fn the_window_and_the_room_hold() {
        let mut outgoing = Outgoing::new();
        let long = piece(&mut outgoing, WINDOW + 10, false);
        let sent = order(&mut outgoing).len();
        assert_eq!(sent, WINDOW.div_ceil(MAX_CHUNK));
        assert!(outgoing.standing(long).unwrap().held_up);
        assert_eq!(outgoing.widen(0, 7), Ok(Some(0)));
        assert_eq!(outgoing.next().unwrap().bytes.len(), 7);
        let widest = u32::try_from(WINDOW).unwrap();
        assert_eq!(outgoing.widen(0, widest), Ok(Some(0)));
        assert!(outgoing.widen(0, 1).is_err());
        assert!(outgoing.widen(0, u32::MAX).is_err());
        assert_eq!(outgoing.widen(99, u32::MAX), Ok(None));
        outgoing.give_up(long);

        // The long piece has one place, though it is given up: the other side has to say so.
        for _ in 0..MAX_PIECES_IN_FLIGHT {
            piece(&mut outgoing, 1, false);
        }
        let sent = order(&mut outgoing).len();
        assert_eq!(sent, MAX_PIECES_IN_FLIGHT as usize - 1);
        assert_eq!(outgoing.make_room(1), Ok(()));
        assert_eq!(order(&mut outgoing).len(), 1);
        assert_eq!(outgoing.make_room(MAX_PIECES_IN_FLIGHT), Ok(()));
        assert!(outgoing.make_room(1).is_err());
        assert!(outgoing.make_room(u32::MAX).is_err());
    }

    #[test]
    fn what_is_given_up_is_mentioned_when_it_has_begun() {
        let mut outgoing = Outgoing::new();
        let (begun, whole, waiting) = (
            piece(&mut outgoing, 2 * MAX_CHUNK, false),
            piece(&mut outgoing, 1, false),
            piece(&mut outgoing, 1, false),
        );
        for expected in [begun, whole] {
            assert_eq!(outgoing.next().unwrap().key, expected);
        }
        for key in [begun, whole, waiting] {
            outgoing.give_up(key);
        }
        let notices: Vec<_> = outgoing.notices().collect();
        assert_eq!(notices, [Record::Abandoned { stream: 0 }]);
        assert_eq!(outgoing.next(), None);
    }

    #[test]
    fn credits_are_added_up() {
        let mut outgoing = Outgoing::<u32>::new();
        for _ in 0..3 {
            outgoing.owe_room();
            outgoing.owe_window(4, 100);
        }
        outgoing.owe_window(4, u32::MAX);
        let notices: Vec<_> = outgoing.notices().collect();
        let bytes = u32::MAX;
        let expected = [
            Record::Window { stream: 4, bytes },
            Record::Room { pieces: 3 },
        ];
        assert_eq!(notices, expected);
        assert_eq!(outgoing.notices().count(), 0);
        assert!(!outgoing.owe_messages(MESSAGES / 2 - 1));
        assert_eq!(outgoing.notices().count(), 0);
        assert!(outgoing.owe_messages(1));
        let notices: Vec<_> = outgoing.notices().collect();
        let bytes = MESSAGES / 2;
        assert_eq!(notices, [Record::Heard { bytes }]);
    }

    #[test]
    fn messages_wait_for_room() {
        let mut outgoing = Outgoing::<u32>::new();
        let mut said = 0;
        while outgoing.may_speak() {
            outgoing.spoke(100);
            said += cost(100);
        }
        assert!((MESSAGES / 2..=MESSAGES).contains(&said));
        assert_eq!(outgoing.heard(said), Ok(()));
        assert!(outgoing.may_speak());
        assert!(outgoing.heard(1).is_err());
        assert!(outgoing.heard(u32::MAX).is_err());
    }
}
