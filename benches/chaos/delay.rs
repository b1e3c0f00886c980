//! Packets that are late: taken out of a netfilter queue and put back after a while.
//!
//! The kernel of a test machine need not have `netem`. What arrives is held up, never what leaves:
//! packets that wait to leave count against the small queues of TCP, which would slow it down.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nfq::{Queue, Verdict};

use crate::Outcome;
use crate::net::Net;

/// The queue that the rule of [`crate::net::Wrong::Late`] fills.
const QUEUE: u16 = 1;
/// How often it is looked whether packets came, or are due.
const LOOK: Duration = Duration::from_micros(500);
/// Packets that wait; with more, they are let through at once.
const MOST: u32 = 100_000;
/// What is copied of each.
const HEADER: u16 = 64;

/// A process that holds up what arrives at a host, until this is dropped.
pub(crate) struct Delay(Child);

impl Delay {
    pub(crate) fn start(net: &Net, host: usize, late: Duration) -> Outcome<Self> {
        let mut command = net.at(host, std::env::current_exe()?);
        command.arg("--delay").arg(late.as_millis().to_string());
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut delay = Self(piped?);
        let mut said = String::new();
        if let Some(out) = delay.0.stdout.take() {
            BufReader::new(out).read_line(&mut said)?;
        }
        if said.is_empty() {
            return Err("packets cannot be held up: this needs NFQUEUE".into());
        }
        Ok(delay)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had ended by itself.
    pub(crate) fn end(mut self) -> Outcome<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("what holds up packets ended: {status}").into()),
        }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        // The rule that fills the queue is gone by now, and the queue is empty.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a child: holds up packets until it is killed.
pub(crate) fn hold_up(late: Duration) -> Outcome<()> {
    kraken_benches::process::end_with_parent()?;
    let mut queue = Queue::open()?;
    queue.bind(QUEUE)?;
    queue.set_recv_gso(QUEUE, true)?;
    queue.set_fail_open(QUEUE, true)?;
    queue.set_queue_max_len(QUEUE, MOST)?;
    queue.set_copy_range(QUEUE, HEADER)?;
    queue.set_nonblocking(true);
    println!("ready");
    let mut waiting = VecDeque::new();
    loop {
        match queue.recv() {
            Ok(mut packet) => {
                packet.set_verdict(Verdict::Accept);
                waiting.push_back((Instant::now() + late, packet));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => return Err(error.into()),
        }
        while waiting
            .front()
            .is_some_and(|(due, _)| *due <= Instant::now())
        {
            if let Some((_, packet)) = waiting.pop_front() {
                queue.verdict(packet)?;
            }
        }
    }
}
