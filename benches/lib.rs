//! Benchmarks of the Kraken crates: `cargo bench -p kraken-benches`, and the program `datapath`.

pub mod rate;
