//! Tags: names whose digests a few build-indexes keep together.
//!
//! A tag is a register. Its owners hold it, most of them must agree to change it, and whoever asks
//! most of them sees the last change that was acknowledged: CASPaxos (Rystsov, "CASPaxos: Replicated
//! State Machines without logs", 2018), with one register per tag. [`register`] is an owner's side,
//! [`round`] the side of whoever reads or changes, [`rejoin`] how an owner that lost its disk comes
//! back, [`list`] how owners are added and taken away, [`record`] what is kept, [`outbox`] when what
//! another cluster lacks is sent there, and [`hours`] at which hours.

pub mod hours;
pub mod list;
pub mod outbox;
pub mod record;
pub mod register;
pub mod rejoin;
pub mod round;
#[cfg(test)]
mod tests;
