//! What other registries answer to who may not read (`WWW-Authenticate`), one header in each line.

#![no_main]

use kraken_storage::backend::web::fuzz_challenges;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| fuzz_challenges(text));
