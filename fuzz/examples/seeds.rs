//! Writes the inputs that the targets start from into `seeds/`, anew: `cargo run --example seeds`.

use std::error::Error;
use std::fs;
use std::path::Path;

use kraken_proto::wire::codec::{self, PREFIX};
use kraken_proto::wire::message::Contact;
use kraken_proto::{
    AnnounceBlob, AnnounceRequest, AnnounceState, Bitfield, Digest, Message, MetaInfo, PeerId,
    PeerInfo, PeerRole, PieceLength, Progress,
};

fn main() -> Result<(), Box<dyn Error>> {
    for (number, message) in messages().iter().enumerate() {
        seed("message", &number.to_string(), &body(message))?;
    }
    for (name, bytes) in metainfos() {
        seed("metainfo", name, &bytes)?;
    }
    seed("peer", "joins", &joins())?;
    seed("announce", "two", &announces()?)?;
    for (name, text) in manifests() {
        seed("manifest", name, text.as_bytes())?;
    }
    for (name, text) in requests() {
        seed("registry", name, &text)?;
    }
    seed(
        "config",
        "extends",
        b"extends: [base.yaml]\nzone: rack-17\n",
    )?;
    for (name, bytes) in headers() {
        seed("range", name, &bytes)?;
    }
    seed("record", "piece", &records())?;
    for (name, bytes) in registers() {
        seed("register", name, &bytes)?;
    }
    for (name, text) in CHALLENGES {
        seed("challenge", name, text.as_bytes())?;
    }
    for (name, text) in SCOPES {
        seed("scope", name, text.as_bytes())?;
    }
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config"))? {
        let path = file?.path();
        let name = path.file_stem().expect("it has a name").to_string_lossy();
        seed("config", &name, &fs::read(&path)?)?;
    }
    Ok(())
}

const CHALLENGES: [(&str, &str); 2] = [
    (
        "hub",
        "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:library/a:pull,push\"",
    ),
    (
        "both",
        "Basic realm=\"a\"\nbearer Realm=https://a/t , service=b",
    ),
];

const SCOPES: [(&str, &str); 2] = [
    (
        "repositories",
        "repository:team/app:pull,push repository(plugin):a:*",
    ),
    ("catalog", "registry:catalog:*"),
];

/// Headers about bytes of a blob of ten bytes, in the form of the target `range`.
fn headers() -> Vec<(&'static str, Vec<u8>)> {
    let values = [
        ("from", "bytes=3-"),
        ("some", "bytes=0-4"),
        ("last", "bytes=-4"),
        ("content", "bytes 5-9"),
        ("offset", "7"),
    ];
    let length = 10_u64.to_be_bytes();
    let with_length = |value: &str| [&length[..], value.as_bytes()].concat();
    values
        .map(|(name, value)| (name, with_length(value)))
        .into()
}

/// A record over TCP.
fn record(kind: u8, stream: u32, number: u32, body: &[u8]) -> Vec<u8> {
    let (stream, number) = (stream.to_be_bytes(), number.to_be_bytes());
    [&[kind][..], &stream, &number, body].concat()
}

/// One of each kind.
fn records() -> Vec<u8> {
    [
        record(0, 0, 0, b""),
        record(1, 0, 2, b"hi"),
        record(2, 0, 2, b"hi"),
        record(3, 0, 4, b"some"),
        record(4, 1, 0, b""),
        record(5, 1, 1 << 17, b""),
        record(6, 0, 1, b""),
        record(7, 0, 9, b""),
        record(8, 0, 3, b"bye"),
    ]
    .concat()
}

/// Registers with no record, and with two.
fn registers() -> Vec<(&'static str, Vec<u8>)> {
    let head = [&[1][..], &[1; 32], &[1]].concat();
    let set = [&[2; 8][..], b"\x04east\x01", wanted().as_bytes()].concat();
    let removed = [&[1; 8][..], b"\x04west\x00"].concat();
    vec![
        ("empty", [&head[..], &[0]].concat()),
        ("two", [&head[..], &[2], &set, &removed].concat()),
    ]
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)?;
    Ok(())
}

/// A frame without its length.
fn body(message: &Message) -> Vec<u8> {
    codec::encode(message)[PREFIX..].to_vec()
}

fn wanted() -> Digest {
    Digest::of(b"wanted")
}

fn agent(number: u8) -> PeerInfo {
    PeerInfo {
        id: PeerId::from_bytes([number; 32]),
        addr: ([10, 0, 0, number], 7611).into(),
        role: PeerRole::Agent,
        zone: None,
    }
}

fn messages() -> Vec<Message> {
    let digest = wanted();
    let piece = 3;
    let contact = Contact {
        addr: ([10, 0, 0, 1], 7611).into(),
        zone: "rack-17".parse().ok(),
    };
    let meta = MetaInfo::of(&[7; 600 << 10]);
    let part = meta.encode();
    vec![
        Message::Hello {
            role: PeerRole::Agent,
            contact: Some(contact),
        },
        Message::Hello {
            role: PeerRole::Origin,
            contact: None,
        },
        Message::Subscribe {
            digest,
            piece_length: PieceLength::MIN,
            have: Bitfield::full(12),
            is_partial: false,
        },
        Message::Subscribe {
            digest,
            piece_length: PieceLength::MIN,
            have: Bitfield::empty(12),
            is_partial: true,
        },
        Message::Have {
            digest,
            pieces: vec![0, 3, 11],
        },
        Message::Request { digest, piece },
        Message::Piece {
            digest,
            piece,
            len: 256 << 10,
        },
        Message::Refuse { digest, piece },
        Message::Offer { digest, piece },
        Message::Cancel { digest, piece },
        Message::AskPeers { digest },
        Message::Peers {
            digest,
            peers: vec![agent(2), agent(3)],
        },
        Message::AskMetaInfo { digest, offset: 0 },
        Message::MetaInfo {
            digest,
            total: part.len() as u32,
            offset: 0,
            part,
        },
        Message::Unsubscribe { digest },
    ]
}

fn metainfos() -> Vec<(&'static str, Vec<u8>)> {
    let whole = MetaInfo::of(&[7; 600 << 10]);
    let open = MetaInfo::open(whole.digest(), whole.length()).expect("it has a length that fits");
    vec![
        ("empty", MetaInfo::of(b"").encode()),
        ("whole", whole.encode()),
        ("open", open.encode()),
    ]
}

/// A neighbour that connects and says everything that can be said, in the form of the target `peer`.
fn joins() -> Vec<u8> {
    let mut steps = vec![0];
    for message in messages() {
        let body = body(&message);
        let Ok(len) = u16::try_from(body.len()) else {
            continue;
        };
        steps.push(4);
        steps.extend(len.to_be_bytes());
        steps.extend(body);
    }
    steps.extend([2 | 9 << 3, 1, 0, 2 | 15 << 3]);
    steps
}

fn announces() -> Result<Vec<u8>, Box<dyn Error>> {
    let mut lines = Vec::new();
    for (number, state) in [(1, AnnounceState::Seeding), (2, AnnounceState::Leeching)] {
        let blob = AnnounceBlob {
            namespace: "team/app".parse()?,
            digest: wanted(),
            state,
            links: 2,
            progress: Some(Progress { have: 3, of: 12 }),
            needy: number == 2,
        };
        let request = AnnounceRequest {
            peer: agent(number),
            blobs: vec![blob],
        };
        serde_json::to_writer(&mut lines, &request)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

fn descriptor(kind: &str, bytes: &[u8]) -> String {
    let (digest, size) = (Digest::of(bytes), bytes.len());
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
    )
}

/// A manifest of the blobs that [`requests`] pushes, and an index of it that has a subject.
fn manifests() -> Vec<(&'static str, String)> {
    let image = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        descriptor("config.v1+json", b"{}"),
        descriptor("layer.v1.tar+gzip", b"layer"),
    );
    let child = descriptor("manifest.v1+json", image.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{child}],"subject":{child}}}"#
    );
    let docker = image
        .replace("oci.image.manifest.v1", "docker.distribution.manifest.v2")
        .replace("oci.image.config.v1", "docker.container.image.v1");
    vec![("image", image), ("index", index), ("docker", docker)]
}

/// One request with what its body calls for.
fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: r\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let (config, layer) = (Digest::of(b"{}"), Digest::of(b"layer"));
    let [(_, image), (_, index), _] = &manifests()[..] else {
        unreachable!("there are three");
    };
    let get = |path: &str, headers: &str| request(&format!("GET /v2/{path}"), headers, b"");
    let push = [
        request(
            &format!("POST /v2/a/b/blobs/uploads/?digest={config}"),
            "",
            b"{}",
        ),
        request(
            &format!("POST /v2/a/b/blobs/uploads/?digest={layer}"),
            "",
            b"layer",
        ),
        request(
            "PUT /v2/a/b/manifests/v1",
            "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n",
            image.as_bytes(),
        ),
        request(
            "PUT /v2/a/b/manifests/all",
            "Content-Type: application/vnd.oci.image.index.v1+json\r\n",
            index.as_bytes(),
        ),
    ]
    .concat();
    let pull = [
        get("", ""),
        get("a/b/manifests/v1", "Accept: */*\r\n"),
        get(&format!("a/b/blobs/{layer}"), "Range: bytes=1-3\r\n"),
        get(&format!("a/b/blobs/{layer}"), "Range: bytes=-2\r\n"),
        get("a/b/tags/list?n=1&last=all", ""),
        get("_catalog?n=2", ""),
        get(
            &format!(
                "a/b/referrers/{}?artifactType=x",
                Digest::of(image.as_bytes())
            ),
            "",
        ),
    ]
    .concat();
    let begin = |id: &str, what: &str| format!("{what} /v2/a/b/blobs/uploads/{id}");
    // The first upload of a registry in memory has this name.
    let chunks = [
        request(&begin("", "POST"), "", b""),
        request(&begin("1", "PATCH"), "Content-Range: 0-2\r\n", b"lay"),
        request(&begin("1", "GET"), "", b""),
        request(
            &begin("1", "PATCH"),
            "Content-Range: bytes 3-4/*\r\n",
            b"er",
        ),
        request(&begin(&format!("1?digest={layer}"), "PUT"), "", b""),
        request(&begin(&format!("?mount={layer}&from=a/b"), "POST"), "", b""),
        request(&begin("2", "DELETE"), "", b""),
    ]
    .concat();
    let chunked = b"POST /v2/a/b/blobs/uploads/ HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nlay\r\n2;x=y\r\ner\r\n0\r\n\r\n";
    vec![
        ("push", push.clone()),
        ("pull", [push.clone(), pull].concat()),
        ("chunks", chunks),
        ("chunked", chunked.to_vec()),
        (
            "delete",
            [
                push,
                request("DELETE /v2/a/b/manifests/v1", "", b""),
                request(&format!("DELETE /v2/a/b/blobs/{layer}"), "", b""),
            ]
            .concat(),
        ),
    ]
}
