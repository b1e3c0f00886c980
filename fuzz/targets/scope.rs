//! What clients want a token for.

#![no_main]

use kraken_registry::access::fuzz_scopes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| fuzz_scopes(text));
