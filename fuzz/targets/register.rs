//! Registers of tags, as they are on the disk.

#![no_main]

use kraken_registry::tags::fuzz_register;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_register(bytes));
