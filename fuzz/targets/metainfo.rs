//! Metainfo, whole, open, and what is added to an open one.

#![no_main]

use kraken_proto::MetaInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(meta) = MetaInfo::decode(bytes) else {
        return;
    };
    assert!(meta.encode().len() <= MetaInfo::MAX_ENCODED);
    assert_eq!(MetaInfo::decode(&meta.encode()).as_ref(), Ok(&meta));
    for after in 0..=meta.known_states().min(3) {
        let more = meta.encode_after(after);
        assert_eq!(
            MetaInfo::decode_after(&more, Some(&meta)).as_ref(),
            Ok(&meta)
        );
        // A flipped bit is an error or a metainfo of the same blob, and never a panic.
        let mut damaged = more;
        let at = bytes.len() % damaged.len();
        damaged[at] ^= 1;
        if let Ok(other) = MetaInfo::decode_after(&damaged, Some(&meta)) {
            assert!(other.provable() <= other.piece_count());
        }
    }
});
