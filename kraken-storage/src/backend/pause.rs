//! Servers that say when they want to be asked again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

/// The moments before which servers want no request, from their last `Retry-After` (RFC 9110,
/// section 10.2.3). One holds for all requests to its server, not only for the one that was refused.
#[derive(Debug)]
pub(super) struct Pause {
    until: Mutex<HashMap<String, Instant>>,
    patience: Duration,
}

/// Servers that are remembered at once.
const MOST: usize = 1024;

impl Pause {
    /// A request waits for at most `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            until: Mutex::default(),
            patience,
        }
    }

    /// Notes what an answer says.
    pub(super) fn heed(&self, host: &str, status: StatusCode, headers: &HeaderMap) {
        let refused = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        if refused.contains(&status)
            && let Some(wait) = retry_after(headers, SystemTime::now())
        {
            let until = Instant::now() + wait;
            let mut known = self.until.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MOST {
                let now = Instant::now();
                known.retain(|_, until| *until > now);
            }
            let known = known.entry(host.to_string()).or_insert(until);
            *known = until.max(*known);
        }
    }

    /// Waits until the server may be asked.
    ///
    /// # Errors
    /// How long it still wants to be left alone, when that is too long to wait for.
    pub(super) async fn over(&self, host: &str) -> Result<(), Duration> {
        loop {
            let until = {
                let known = self.until.lock().unwrap_or_else(PoisonError::into_inner);
                known.get(host).copied()
            };
            let wait = until.map(|until| until.saturating_duration_since(Instant::now()));
            match wait {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(wait) if wait > self.patience => return Err(wait),
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }
}

/// Seconds, or a date. At most an hour is believed.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(Duration::from_secs(3600)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("99999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:40:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            let wait = retry_after(&headers, now);
            assert_eq!(wait, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_requests_wait_as_long_as_they_can() {
        let pause = Pause::new(Duration::from_secs(10));
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "8".parse().unwrap());
        pause.heed("a", StatusCode::OK, &headers);
        let started = Instant::now();
        pause.over("a").await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        pause.heed("a", StatusCode::TOO_MANY_REQUESTS, &headers);
        pause.over("a").await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(8));
        headers.insert(RETRY_AFTER, "60".parse().unwrap());
        pause.heed("a", StatusCode::SERVICE_UNAVAILABLE, &headers);
        let left = pause.over("a").await.unwrap_err();
        assert!(left > Duration::from_secs(50), "{left:?}");
        assert_eq!(pause.over("b").await, Ok(()), "another server");
    }
}
