//! What every piece store does.

use bytes::Bytes;
use futures::future::join_all;
use kraken_proto::{Bitfield, Digest, MetaInfo, PieceLength};

use super::{blob, piece};
use crate::store::{BlobStatus, PieceStore, StoreError};

/// Runs the suite over the stores that `make` gives, an empty one each time.
///
/// # Panics
/// The store does not do what [`PieceStore`] promises.
pub async fn conforms<S: PieceStore>(make: impl AsyncFn() -> S) {
    absent_blobs(&make().await).await;
    pieces_come_in_any_order(&make().await).await;
    only_whole_pieces_fit(&make().await).await;
    reads_stay_within_what_is_there(&make().await).await;
    sealing_needs_every_piece(&make().await).await;
    an_empty_blob_is_a_blob(&make().await).await;
    removed_blobs_are_gone(&make().await).await;
    sealed_blobs_are_listed_in_order(&make().await).await;
    an_open_metainfo_grows(&make().await).await;
    an_open_metainfo_of_other_bytes_keeps_no_wrong_piece(&make().await).await;
    another_metainfo_keeps_no_wrong_piece(&make().await).await;
    tasks_may_work_on_one_blob_at_once(&make().await).await;
}

/// Several pieces and a short last one.
const LEN: usize = 3 * (256 << 10) + 1000;

async fn absent_blobs(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 1);
    let digest = meta.digest();
    assert_eq!(status(store, digest).await, BlobStatus::Absent);
    let write = store.write(digest, 0, piece(&bytes, &meta, 0)).await;
    assert!(
        matches!(write, Err(StoreError::Absent(it)) if it == digest),
        "{write:?}"
    );
    let read = store.read(digest, 0, 1).await;
    assert!(matches!(read, Err(StoreError::Absent(_))), "{read:?}");
    let seal = store.seal(digest).await;
    assert!(matches!(seal, Err(StoreError::Absent(_))), "{seal:?}");
    store.remove(digest).await.expect("absent is no error");
}

async fn pieces_come_in_any_order(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 2);
    let digest = meta.digest();
    let mut have = store.open(meta.clone()).await.expect("opens");
    assert_eq!(have, Bitfield::empty(4));
    for index in [2, 0, 3, 1] {
        write(store, &bytes, &meta, index).await;
        write(store, &bytes, &meta, index).await;
        have.insert(index);
        let partial = BlobStatus::Partial {
            meta: meta.clone(),
            have: have.clone(),
        };
        assert_eq!(status(store, digest).await, partial);
        assert_eq!(store.open(meta.clone()).await.expect("opens"), have);
    }
    assert_reads(store, &meta, &bytes).await;
    store.seal(digest).await.expect("is whole");
    store.seal(digest).await.expect("sealing twice is no error");
    let sealed = BlobStatus::Sealed { meta: meta.clone() };
    assert_eq!(status(store, digest).await, sealed);
    assert_reads(store, &meta, &bytes).await;
    let all = store.open(meta.clone()).await.expect("opens");
    assert!(all.is_full());
    write(store, &bytes, &meta, 1).await;
    assert_reads(store, &meta, &bytes).await;
}

async fn only_whole_pieces_fit(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 3);
    let digest = meta.digest();
    store.open(meta.clone()).await.expect("opens");
    let first = piece(&bytes, &meta, 0);
    let wrong = [
        (0, first.slice(1..)),
        (0, Bytes::new()),
        (3, first.clone()),
        (4, Bytes::new()),
        (u32::MAX, first),
    ];
    for (index, data) in wrong {
        let result = store.write(digest, index, data).await;
        assert!(
            matches!(result, Err(StoreError::Bounds { piece, .. }) if piece == index),
            "piece {index}: {result:?}"
        );
    }
    let have = store.open(meta).await.expect("opens");
    assert_eq!(have.count(), 0, "a refused write leaves no piece");
}

async fn reads_stay_within_what_is_there(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 4);
    let digest = meta.digest();
    store.open(meta.clone()).await.expect("opens");
    write(store, &bytes, &meta, 0).await;
    write(store, &bytes, &meta, 3).await;
    let size = meta.piece_length().bytes();
    let len = u32::try_from(size).expect("a piece");
    for (offset, len, missing) in [(size - 1, 2, 1), (size, 1, 1), (2 * size + 5, len, 2)] {
        let read = store.read(digest, offset, len).await;
        assert!(
            matches!(read, Err(StoreError::Missing { piece, .. }) if piece == missing),
            "{len} bytes at {offset}: {read:?}"
        );
    }
    assert_eq!(read(store, digest, 5, 10).await, bytes[5..15]);
    let tail = read(store, digest, 3 * size, u32::MAX).await;
    assert_eq!(tail, bytes[LEN - 1000..], "shorter where the blob ends");
    for offset in [LEN as u64, u64::MAX] {
        assert_eq!(
            read(store, digest, offset, 7).await,
            Bytes::new(),
            "past the end"
        );
    }
}

async fn sealing_needs_every_piece(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 5);
    store.open(meta.clone()).await.expect("opens");
    for index in [0, 1, 3] {
        write(store, &bytes, &meta, index).await;
    }
    let seal = store.seal(meta.digest()).await;
    assert!(
        matches!(seal, Err(StoreError::Missing { piece: 2, .. })),
        "{seal:?}"
    );
    let now = status(store, meta.digest()).await;
    assert!(matches!(now, BlobStatus::Partial { have, .. } if have.count() == 3));
    assert_eq!(store.list().await.expect("lists"), []);
}

async fn an_empty_blob_is_a_blob(store: &impl PieceStore) {
    let meta = MetaInfo::of(b"");
    let digest = meta.digest();
    assert!(store.open(meta.clone()).await.expect("opens").is_full());
    store.seal(digest).await.expect("nothing is missing");
    assert_eq!(status(store, digest).await, BlobStatus::Sealed { meta });
    assert_eq!(read(store, digest, 0, 10).await, Bytes::new());
}

async fn removed_blobs_are_gone(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 6);
    let digest = meta.digest();
    for seal in [false, true] {
        fill(store, &bytes, &meta).await;
        if seal {
            store.seal(digest).await.expect("is whole");
        }
        store.remove(digest).await.expect("removes");
        assert_eq!(status(store, digest).await, BlobStatus::Absent);
        assert_eq!(store.list().await.expect("lists"), []);
        let read = store.read(digest, 0, 1).await;
        assert!(matches!(read, Err(StoreError::Absent(_))), "{read:?}");
    }
    let again = store.open(meta.clone()).await.expect("opens");
    assert_eq!(again.count(), 0, "nothing of a removed blob is left");
    write(store, &bytes, &meta, 0).await;
    store.discard(digest).await.expect("discards");
    store.discard(digest).await.expect("absent is no error");
    assert_eq!(status(store, digest).await, BlobStatus::Absent);
    fill(store, &bytes, &meta).await;
    store.seal(digest).await.expect("is whole");
    store.discard(digest).await.expect("is sealed");
    assert_reads(store, &meta, &bytes).await;
}

async fn sealed_blobs_are_listed_in_order(store: &impl PieceStore) {
    let mut sealed = Vec::new();
    for seed in 0..8 {
        let (bytes, meta) = blob(100, 100 + seed);
        fill(store, &bytes, &meta).await;
        if seed % 4 != 0 {
            store.seal(meta.digest()).await.expect("is whole");
            sealed.push(meta.digest());
        }
    }
    sealed.sort_unstable();
    assert_eq!(store.list().await.expect("lists"), sealed);
}

async fn another_metainfo_keeps_no_wrong_piece(store: &impl PieceStore) {
    let (bytes, meta) = blob(LEN, 7);
    let digest = meta.digest();
    let (_, other) = blob(LEN, 8);
    // The right digest, length and number of states; the states are another blob's.
    let mut encoding = other.encode();
    encoding[5..37].copy_from_slice(digest.as_bytes());
    let forged = MetaInfo::decode(&encoding).expect("well-formed");
    store.open(forged).await.expect("opens");
    // Whoever believes the forged metainfo would verify this piece.
    let wrong = super::bytes(LEN, 8);
    write(store, &wrong, &meta, 1).await;

    let have = store.open(meta.clone()).await.expect("opens");
    assert!(!have.has(1), "a piece that does not verify is not there");
    for index in have.missing() {
        write(store, &bytes, &meta, index).await;
    }
    store.seal(digest).await.expect("is whole");
    assert_reads(store, &meta, &bytes).await;

    let whole = PieceLength::new(1 << 20).expect("a power of two");
    let (bytes, small) = blob(LEN, 9);
    let large = MetaInfo::new(small.digest(), LEN as u64, whole, vec![]).expect("one piece");
    fill(store, &bytes, &small).await;
    let have = store.open(large.clone()).await.expect("opens");
    assert_eq!(have.len(), 1, "the answer fits the metainfo that was given");
    for index in have.missing() {
        write(store, &bytes, &large, index).await;
    }
    store.seal(large.digest()).await.expect("is whole");
    assert_reads(store, &large, &bytes).await;
}

async fn an_open_metainfo_grows(store: &impl PieceStore) {
    let (bytes, whole) = blob(LEN, 11);
    let digest = whole.digest();
    let mut meta = MetaInfo::open(digest, LEN as u64).expect("fits");
    while !meta.is_whole() {
        assert_eq!(
            store.open(meta.clone()).await.expect("opens").count(),
            meta.known_states()
        );
        let index = meta.known_states();
        let state = meta
            .state_before(index)
            .advance(&piece(&bytes, &whole, index));
        let longer = meta.continued([state]).expect("fits");
        store.open(longer.clone()).await.expect("opens");
        write(store, &bytes, &longer, index).await;
        // Somebody who knows less loses nothing.
        let have = store.open(meta).await.expect("opens");
        assert_eq!(have.count(), index + 1);
        meta = longer;
        let sealed = store.seal(digest).await;
        assert!(
            matches!(sealed, Err(StoreError::Missing { .. })),
            "{sealed:?}"
        );
    }
    assert_eq!(meta, whole);
    write(store, &bytes, &meta, meta.piece_count() - 1).await;
    store.seal(digest).await.expect("is whole");
    assert_eq!(status(store, digest).await, BlobStatus::Sealed { meta });
    assert_reads(store, &whole, &bytes).await;
}

async fn an_open_metainfo_of_other_bytes_keeps_no_wrong_piece(store: &impl PieceStore) {
    let (bytes, whole) = blob(LEN, 12);
    let wrong = super::bytes(LEN, 13);
    let open = MetaInfo::open(whole.digest(), LEN as u64).expect("fits");
    let mut meta = open.clone();
    for index in 0..2 {
        let state = meta
            .state_before(index)
            .advance(&piece(&wrong, &whole, index));
        meta = meta.continued([state]).expect("fits");
        store.open(meta.clone()).await.expect("opens");
        write(store, &wrong, &meta, index).await;
    }
    let state = open.state_before(0).advance(&piece(&bytes, &whole, 0));
    let right = open.continued([state]).expect("fits");
    let have = store.open(right).await.expect("opens");
    assert_eq!(have.count(), 0, "nothing of it fits");
    fill(store, &bytes, &whole).await;
    store.seal(whole.digest()).await.expect("is whole");
    assert_reads(store, &whole, &bytes).await;
}

async fn tasks_may_work_on_one_blob_at_once(store: &impl PieceStore) {
    let (bytes, meta) = blob(8 * (256 << 10), 10);
    let digest = meta.digest();
    let task = async |shift: u32| {
        let count = meta.piece_count();
        store.open(meta.clone()).await.expect("opens");
        for index in 0..count {
            let index = (index + shift) % count;
            write(store, &bytes, &meta, index).await;
            let range = meta.piece_range(index);
            let got = read(store, digest, range.start, meta.piece_size(index)).await;
            assert_eq!(got, piece(&bytes, &meta, index), "piece {index}");
        }
        store.seal(digest).await.expect("is whole");
        assert_reads(store, &meta, &bytes).await;
    };
    join_all((0..6).map(task)).await;
    assert_eq!(store.list().await.expect("lists"), [digest]);
}

async fn status(store: &impl PieceStore, digest: Digest) -> BlobStatus {
    store.status(digest).await.expect("the store can be read")
}

async fn read(store: &impl PieceStore, digest: Digest, offset: u64, len: u32) -> Bytes {
    let read = store.read(digest, offset, len).await;
    read.expect("the pieces are there")
}

async fn write(store: &impl PieceStore, bytes: &[u8], meta: &MetaInfo, index: u32) {
    let written = store.write(meta.digest(), index, piece(bytes, meta, index));
    written.await.expect("the piece fits");
}

async fn fill(store: &impl PieceStore, bytes: &[u8], meta: &MetaInfo) {
    let have = store.open(meta.clone()).await.expect("opens");
    for index in have.missing() {
        write(store, bytes, meta, index).await;
    }
}

pub(super) async fn assert_reads(store: &impl PieceStore, meta: &MetaInfo, bytes: &[u8]) {
    let size = usize::try_from(meta.piece_length().bytes()).expect("a piece");
    let whole = (0, bytes.len());
    let across = (size - 100, 200);
    for (offset, len) in [whole, across, (1, 1), (bytes.len() - 3, 3)] {
        let end = (offset + len).min(bytes.len());
        let expected = &bytes[offset.min(end)..end];
        let len = u32::try_from(len).expect("small");
        let got = read(store, meta.digest(), offset as u64, len).await;
        assert!(got == expected, "{len} bytes at {offset} differ");
    }
}
