//! Manifests and indexes, as clients push them.

#![no_main]

use kraken_registry::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What it refers to is read from it without a panic, and reading is no matter of chance.
    let told = |manifest| format!("{manifest:?}");
    let first = Manifest::parse(bytes).map(told);
    assert_eq!(first.is_ok(), Manifest::parse(bytes).is_ok());
});
