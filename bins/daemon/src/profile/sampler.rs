//! Takes samples of all threads of the process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use kraken_core::net::http::{ApiError, Asked};
use pprof::{Frames, ProfilerGuardBuilder};
use serde::Deserialize;
use tokio::sync::Semaphore;

/// Samples are taken of the whole process, by one timer.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// No stack is taken within these: the first holds locks that taking it needs, the second cannot be unwound.
const BLOCKLIST: [&str; 2] = ["libgcc", "vdso"];

/// What a profile is to be like.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wanted {
    /// How long samples are taken.
    seconds: u64,
    /// Samples per second of processor time.
    frequency: i32,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            seconds: 10,
            // Not in step with what happens a hundred times a second.
            frequency: 99,
        }
    }
}

impl Wanted {
    const LONGEST: u64 = 60;
    const FINEST: i32 = 1000;

    fn check(self) -> Result<Self, ApiError> {
        if !(1..=Self::LONGEST).contains(&self.seconds) {
            let what = format!("seconds: 1 to {}, not {}", Self::LONGEST, self.seconds);
            return Err(ApiError::BadRequest(what));
        }
        if !(1..=Self::FINEST).contains(&self.frequency) {
            let what = format!("frequency: 1 to {}, not {}", Self::FINEST, self.frequency);
            return Err(ApiError::BadRequest(what));
        }
        Ok(self)
    }
}

/// Takes a profile, and gives it as folded stacks.
pub(super) async fn profile(Asked(wanted): Asked<Wanted>) -> Result<String, ApiError> {
    let wanted = wanted.check()?;
    let turn = ONE_AT_A_TIME.try_acquire().map_err(|_| {
        ApiError::Conflict("a profile is being taken: ask again when it is done".into())
    })?;
    let profiler = ProfilerGuardBuilder::default()
        .frequency(wanted.frequency)
        .blocklist(&BLOCKLIST)
        .build()
        .map_err(failed)?;
    // Who goes away meanwhile ends it: the profiler goes with this future.
    tokio::time::sleep(Duration::from_secs(wanted.seconds)).await;
    let looking_up = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let stacks = profiler.report().build_unresolved().map_err(failed)?.data;
        // Names are looked up behind the last sample, which is not to find that.
        drop(profiler);
        let named = stacks
            .into_iter()
            .map(|(stack, count)| (Frames::from(stack), count));
        Ok(folded(named))
    });
    looking_up
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err has it")]
fn failed(error: pprof::Error) -> ApiError {
    ApiError::Internal(format!("no profile: {error}"))
}

/// The form that makers of flame graphs take, sorted.
fn folded(stacks: impl Iterator<Item = (Frames, isize)>) -> String {
    let mut counts = BTreeMap::<String, isize>::new();
    for (stack, count) in stacks {
        let mut line = plain(&stack.thread_name_or_id());
        // The innermost comes first, and of what the compiler has put into another also.
        for symbol in stack.frames.iter().rev().flat_map(|it| it.iter().rev()) {
            line.push(';');
            line.push_str(&plain(&symbol.name()));
        }
        *counts.entry(line).or_default() += count;
    }
    let mut text = String::new();
    for (line, count) in counts {
        let _ = writeln!(text, "{line} {count}");
    }
    text
}

/// A name without what parts names here: an array's type has a semicolon.
fn plain(name: &str) -> String {
    name.replace([';', '\n'], ":")
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use axum::Router;
    use axum::body::{Body, to_bytes};
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;
    use crate::profile::with_profile;

    #[inline(never)]
    fn turn_the_mill(stop: &AtomicBool) -> u64 {
        let mut sum = 0u64;
        while !stop.load(Ordering::Relaxed) {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        sum
    }

    async fn ask(query: &str) -> (u16, String) {
        let router = with_profile(Router::new());
        let request = Request::get(format!("/x/profile{query}")).body(Body::empty());
        let answer = router.oneshot(request.unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 64 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn it_names_what_runs_one_profile_at_a_time() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let mill = thread::Builder::new().name("mill".into());
        let mill = mill.spawn(|| turn_the_mill(&STOP)).unwrap();
        let first = tokio::spawn(ask("?seconds=2&frequency=200"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (status, said) = ask("").await;
        assert_eq!(status, 409, "{said}");
        assert!(said.contains("ask again"), "{said}");
        let (status, profile) = first.await.unwrap();
        assert_eq!(status, 200, "{profile}");
        let of_mill = |line: &&str| line.starts_with("mill;") && line.contains("turn_the_mill");
        let lines: Vec<_> = profile.lines().filter(of_mill).collect();
        let counts = lines.iter().map(|line| line.rsplit_once(' ').unwrap().1);
        let samples: u64 = counts.map(|count| count.parse::<u64>().unwrap()).sum();
        assert!(samples > 0, "{profile}");
        // Once it is over there can be another.
        let (status, said) = ask("?seconds=1").await;
        assert_eq!(status, 200, "{said}");
        STOP.store(true, Ordering::Relaxed);
        black_box(mill.join().unwrap());
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused() {
        for (query, reason) in [
            ("?seconds=0", "seconds: 1 to 60"),
            ("?seconds=61", "seconds: 1 to 60"),
            ("?frequency=0", "frequency: 1 to 1000"),
            ("?frequency=1001", "frequency: 1 to 1000"),
            ("?frequency=-1", "frequency: 1 to 1000"),
            ("?hertz=9", "hertz"),
            ("?seconds=soon", "invalid"),
        ] {
            let (status, said) = ask(query).await;
            assert_eq!(status, 400, "{query}: {said}");
            assert!(said.contains(reason), "{query}: {said}");
        }
    }

    #[test]
    fn stacks_are_counted_by_name() {
        let stack = |thread: &str| Frames {
            frames: vec![vec![], vec![]],
            thread_name: thread.into(),
            thread_id: 1,
            sample_timestamp: std::time::SystemTime::UNIX_EPOCH,
        };
        let stacks = [(stack("b"), 1), (stack("a;c"), 2), (stack("b"), 3)];
        assert_eq!(folded(stacks.into_iter()), "a:c 2\nb 4\n");
    }
}
