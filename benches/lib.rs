//! Benchmarks of the Kraken crates: `cargo bench -p kraken-benches`, and the programs beside them.

pub mod linearizability;
pub mod memory;
pub mod process;
pub mod rate;
