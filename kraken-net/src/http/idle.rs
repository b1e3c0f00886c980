//! Bounds on silence, because no time may bound a whole body.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use super::ByteStream;

/// The stream, ended by an error when nothing comes for `idle`.
pub(crate) fn until_idle(stream: ByteStream, idle: Duration) -> ByteStream {
    futures::stream::unfold(Some(stream), move |stream| async move {
        let mut stream = stream?;
        match timeout(idle, stream.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(stream))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => None,
            Err(_) => {
                let told = format!("nothing came for {} s", idle.as_secs());
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, told)), None))
            }
        }
    })
    .boxed()
}

/// Beats with every chunk that a watched stream gives.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The stream, watched.
    pub(crate) fn watch(&self, stream: ByteStream) -> ByteStream {
        let beats = self.0.clone();
        stream
            .inspect(move |_| {
                beats.fetch_add(1, Ordering::Relaxed);
            })
            .boxed()
    }

    /// Waits for `work` as long as the pulse beats, and for `patience` after that; `None` when
    /// the patience is over.
    pub(crate) async fn wait<W: Future>(&self, patience: Duration, work: W) -> Option<W::Output> {
        let mut work = pin!(work);
        loop {
            let before = self.0.load(Ordering::Relaxed);
            match timeout(patience, &mut work).await {
                Ok(done) => return Some(done),
                Err(_) if self.0.load(Ordering::Relaxed) == before => return None,
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn slow(gaps: &'static [u64]) -> ByteStream {
        futures::stream::iter(gaps)
            .then(async |gap| {
                tokio::time::sleep(Duration::from_secs(*gap)).await;
                Ok(Bytes::from_static(b"x"))
            })
            .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_passes_and_a_silent_one_ends() {
        let whole: Vec<_> = until_idle(slow(&[50, 50, 50]), IDLE).collect().await;
        assert!(whole.len() == 3 && whole.iter().all(Result::is_ok));
        let cut: Vec<_> = until_idle(slow(&[50, 70, 1]), IDLE).collect().await;
        assert!(cut.len() == 2 && cut[0].is_ok());
        let error = cut[1].as_ref().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn work_may_last_while_its_pulse_beats() {
        let pulse = Pulse::default();
        let body = pulse.watch(slow(&[50, 50, 50, 50]));
        assert_eq!(pulse.wait(IDLE, body.count()).await, Some(4));
        let silent = futures::future::pending::<()>();
        assert_eq!(pulse.wait(IDLE, silent).await, None);
    }
}
