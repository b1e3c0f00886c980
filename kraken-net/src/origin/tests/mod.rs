//! Origins over real HTTP on the loopback, with memory behind them.

mod calls;
mod cluster;
mod fake;
