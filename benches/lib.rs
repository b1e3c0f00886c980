//! Benchmarks of the Kraken crates: `cargo bench -p kraken-benches`.
