//! Headers about bytes of a blob at an origin. The input is the blob's length, eight bytes, and the header.

#![no_main]

use kraken_net::origin::fuzz_ranges;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((length, value)) = bytes.split_first_chunk() {
        fuzz_ranges(value, u64::from_be_bytes(*length));
    }
});
