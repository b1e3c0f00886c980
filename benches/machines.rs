//! What the machines cost: the proof of a piece, one piece through the scheduler, one chunk through the
//! fair queue, and one announce at a tracker.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kraken_proto::limits::fair::FairQueue;
use kraken_proto::tracker::handout::{Tracker, TrackerConfig};
use kraken_proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, Bitfield, BlobSpec, ChainHasher, Config, ConnId,
    Digest, Input, Message, MetaInfo, Namespace, PeerId, PeerInfo, PeerRole, Scheduler, Timestamp,
};

/// One pass of SHA-256 over 4 MiB, with the chain's states; and the check of one piece.
fn proof(c: &mut Criterion) {
    let bytes = vec![0x5a; 4 << 20];
    let meta = MetaInfo::of(&bytes);
    let mut group = c.benchmark_group("proof");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("chain hasher, 4 MiB", |b| {
        b.iter(|| {
            let mut hasher = ChainHasher::new();
            hasher.update(black_box(&bytes));
            hasher.finish()
        });
    });
    let piece = &bytes[..meta.piece_size(0) as usize];
    group.throughput(Throughput::Bytes(piece.len() as u64));
    group.bench_function("verify one piece", |b| {
        b.iter(|| meta.verify(0, black_box(piece)))
    });
    group.finish();
}

const PIECES: u32 = 1024;
const PEERS: u64 = 12;

/// A leecher with twelve neighbours that have these pieces, ready to be sent pieces.
fn leecher(have: &Bitfield) -> (Scheduler, Digest) {
    let digest = Digest::of(b"bench");
    let length = u64::from(PIECES) << 20;
    let piece_length = kraken_proto::PieceLength::for_blob(length);
    let local = peer(0);
    let mut scheduler = Scheduler::new(Timestamp::ZERO, local, Config::lan(), 1);
    let spec = BlobSpec {
        namespace: Namespace::default(),
        digest,
        length,
        piece_length,
    };
    scheduler.handle(
        Timestamp::ZERO,
        Input::Open {
            spec,
            have: Bitfield::empty(PIECES),
        },
    );
    for number in 1..=PEERS {
        let conn = ConnId(number);
        let up = Input::ConnUp {
            conn,
            peer: peer(number as u8).id,
            dialled: false,
        };
        scheduler.handle(Timestamp::ZERO, up);
        let hello = Message::Hello {
            role: PeerRole::Agent,
            contact: None,
        };
        scheduler.handle(
            Timestamp::ZERO,
            Input::Message {
                conn,
                message: hello,
            },
        );
        let message = Message::Subscribe {
            digest,
            piece_length,
            have: have.clone(),
            is_partial: false,
        };
        scheduler.handle(Timestamp::ZERO, Input::Message { conn, message });
    }
    (scheduler, digest)
}

fn peer(number: u8) -> PeerInfo {
    let addr = ([10, 0, 0, number], 7600).into();
    PeerInfo {
        id: PeerId::from_bytes([number; 32]),
        addr,
        role: PeerRole::Agent,
        zone: None,
    }
}

/// Answers every request until the blob is complete: two inputs a piece.
fn download((mut scheduler, digest): (Scheduler, Digest)) -> u32 {
    // Later than the end game's patience: at the beginning of time every request is old.
    let now = Timestamp::ZERO + Duration::from_secs(1);
    let stored = serve(&mut scheduler, now, digest);
    assert_eq!(stored, PIECES);
    stored
}

fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    group.throughput(Throughput::Elements(2 * u64::from(PIECES)));
    group.bench_function("inputs of a download, 12 neighbours", |b| {
        let have = Bitfield::full(PIECES);
        b.iter_batched(|| leecher(&have), download, BatchSize::LargeInput);
    });
    let inputs = (PEERS + 2) * u64::from(PIECES);
    group.throughput(Throughput::Elements(inputs));
    group.bench_function("inputs of a crowd, 12 neighbours", |b| {
        let have = Bitfield::empty(PIECES);
        b.iter_batched(|| leecher(&have), crowd, BatchSize::LargeInput);
    });
    group.finish();
}

/// Every neighbour tells of every piece, and one of them sends it: what a host of a flash crowd
/// hears.
fn crowd((mut scheduler, digest): (Scheduler, Digest)) -> u32 {
    let (mut now, mut stored) = (Timestamp::ZERO, 0);
    for piece in 0..PIECES {
        for number in 1..=PEERS {
            now = now + Duration::from_micros(300);
            let (conn, pieces) = (ConnId(number), vec![piece]);
            let message = Message::Have { digest, pieces };
            scheduler.handle(now, Input::Message { conn, message });
        }
        stored += serve(&mut scheduler, now, digest);
    }
    assert_eq!(stored, PIECES);
    stored
}

/// Answers the requests that have been made; says how many.
fn serve(scheduler: &mut Scheduler, now: Timestamp, digest: Digest) -> u32 {
    let mut served = 0;
    while let Some(action) = scheduler.poll_action() {
        let kraken_proto::Action::Send {
            conn,
            message: Message::Request { piece, .. },
        } = action
        else {
            continue;
        };
        let len = 1 << 20;
        let message = Message::Piece { digest, piece, len };
        scheduler.handle(now, Input::Message { conn, message });
        let done = Input::PieceStored {
            digest,
            piece,
            conn,
        };
        scheduler.handle(now, done);
        served += 1;
    }
    served
}

/// A pop, and a push of the blob's next chunk: what a busy sender does.
fn fair(c: &mut Criterion) {
    let mut group = c.benchmark_group("fair queue");
    for blobs in [2_u8, 200] {
        let mut queue = FairQueue::new();
        queue.set_head_start(4 << 20);
        for chunk in 0..16 * u64::from(blobs) {
            let blob = Digest::from_bytes([(chunk % u64::from(blobs)) as u8; 32]);
            queue.push(blob, chunk, 1 << 16, chunk);
        }
        group.bench_function(format!("pop and push, {blobs} blobs"), |b| {
            b.iter(|| {
                if let Some((blob, chunk)) = queue.pop() {
                    queue.push(blob, chunk, 1 << 16, chunk);
                }
            });
        });
    }
    group.finish();
}

/// An announce of a host that wants one blob, to a tracker that knows 10,000 hosts with 100 blobs each.
fn tracker(c: &mut Criterion) {
    const HOSTS: u32 = 10_000;
    const BLOBS: u32 = 100;
    let host = |number: u32| PeerInfo {
        id: PeerId::from_bytes(*Digest::of(&number.to_be_bytes()).as_bytes()),
        addr: ([10, 0, (number >> 8) as u8, number as u8], 7610).into(),
        role: PeerRole::Agent,
        zone: None,
    };
    let wants = |blob: u32, state: AnnounceState| AnnounceBlob {
        namespace: Namespace::default(),
        digest: Digest::of(&[b"blob", &blob.to_be_bytes()[..]].concat()),
        state,
        links: 0,
        progress: None,
        needy: false,
    };
    let mut tracker = Tracker::new(TrackerConfig::default(), 1);
    let now = Timestamp::ZERO;
    for number in 0..HOSTS {
        let blobs = (0..BLOBS).map(|blob| wants(blob, AnnounceState::Seeding));
        let request = AnnounceRequest {
            peer: host(number),
            blobs: blobs.collect(),
        };
        tracker
            .announce(now, &request, &|_| Vec::new())
            .expect("within the bounds");
    }
    let mut group = c.benchmark_group("tracker");
    let mut turn = 0;
    group.bench_function("announce, 1,000,000 pairs", |b| {
        b.iter(|| {
            turn += 1;
            let request = AnnounceRequest {
                peer: host(turn % HOSTS),
                blobs: vec![wants(turn % BLOBS, AnnounceState::Leeching)],
            };
            tracker.announce(now, &request, &|_| Vec::new())
        });
    });
    group.finish();
}

criterion_group!(benches, proof, scheduler, fair, tracker);
criterion_main!(benches);
