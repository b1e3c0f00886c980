//! What a neighbour sends over TCP: heads of records, and bodies as long as these say.

#![no_main]

use kraken_net::tcp::fuzz_records;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_records(bytes));
