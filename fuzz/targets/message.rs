//! Frames between peers: whatever decodes, encodes to what decodes to the same.

#![no_main]

use kraken_proto::wire::codec::{self, PREFIX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok(message) = codec::decode(body) else {
        return;
    };
    let frame = codec::encode(&message);
    assert_eq!(frame.len(), codec::frame_len(&message));
    let (prefix, again) = frame
        .split_first_chunk::<PREFIX>()
        .expect("it has a length");
    assert_eq!(codec::body_len(*prefix), Ok(again.len()));
    assert_eq!(codec::decode(again), Ok(message));
});
