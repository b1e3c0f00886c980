//! `kraken store`: what an agent or an origin keeps on its disks.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::Table;
use kraken_core::Digest;
use kraken_core::net::http::{ApiError, segment};
use kraken_daemon::store::Age;
use kraken_daemon::store::http::{
    BlobFile, BlobInfo, BlobList, SweepReport, VerdictInfo, Verified,
};

use crate::Failure;
use crate::operator::{Operator, failed};

/// The store of an agent or an origin.
#[derive(Debug)]
pub struct Store {
    process: Operator,
}

/// The longest answer that is read, in bytes: a thousand blobs at some 200 bytes, and room.
const ANSWER: usize = 4 << 20;

/// What is to go.
#[derive(Debug, Clone, Default)]
pub struct Collect {
    /// So that no more than so many hundredths of the limit are used.
    pub percent: Option<u8>,
    /// What was not used for so long.
    pub idle: Option<Age>,
    /// What came so long ago.
    pub age: Option<Age>,
    /// Only says what would go.
    pub dry_run: bool,
}

impl Store {
    /// The store of the process that `operator` asks.
    pub fn new(operator: Operator) -> Self {
        Self { process: operator }
    }

    /// Up to a thousand blobs, from the one after `after` on.
    ///
    /// # Errors
    /// The process does not answer.
    pub async fn list(&self, after: Option<Digest>) -> Result<BlobList, Failure> {
        let after = after.map_or_else(String::new, |after| format!("?after={after}"));
        let path = format!("/x/store{after}");
        let answer = self.process.send("GET", &path).await.map_err(failed)?;
        answer.json(ANSWER).await.map_err(failed)
    }

    /// Lets blobs go.
    ///
    /// # Errors
    /// The process does not answer, or what is asked for makes no sense.
    pub async fn collect(&self, collect: &Collect) -> Result<SweepReport, Failure> {
        let mut query = vec![format!("dry_run={}", collect.dry_run)];
        query.extend(collect.percent.map(|percent| format!("percent={percent}")));
        for (name, time) in [("idle", collect.idle), ("age", collect.age)] {
            query.extend(time.map(|time| format!("{name}={}", segment(&time.to_string()))));
        }
        let path = format!("/x/store/gc?{}", query.join("&"));
        let answer = self.process.send("POST", &path).await.map_err(failed)?;
        answer.json(ANSWER).await.map_err(failed)
    }

    /// Reads a blob back.
    ///
    /// # Errors
    /// The process does not answer.
    pub async fn verify(&self, digest: Digest) -> Result<VerdictInfo, Failure> {
        let path = format!("/x/store/blobs/{digest}/verify");
        let answer = self.process.send("POST", &path).await.map_err(failed)?;
        let verified: Verified = answer.json(ANSWER).await.map_err(failed)?;
        Ok(verified.verdict)
    }

    /// Lets a blob stay whatever happens, or does not any more.
    ///
    /// # Errors
    /// The process does not answer.
    pub async fn pin(&self, digest: Digest, is_pinned: bool) -> Result<(), Failure> {
        let method = if is_pinned { "PUT" } else { "DELETE" };
        let path = format!("/x/store/pins/{digest}");
        self.process
            .send(method, &path)
            .await
            .map(drop)
            .map_err(failed)
    }

    /// Where the process has a blob's file; `None` when it does not have it whole.
    ///
    /// # Errors
    /// The process does not answer.
    pub async fn file(&self, digest: Digest) -> Result<Option<PathBuf>, Failure> {
        let path = format!("/x/store/blobs/{digest}");
        match self.process.send("GET", &path).await {
            Ok(answer) => {
                let file: BlobFile = answer.json(ANSWER).await.map_err(failed)?;
                Ok(Some(file.path.into()))
            }
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

/// The blobs as a table; `now_ms` is the time in milliseconds since 1970.
pub fn table(blobs: &[BlobInfo], now_ms: u64) -> Table {
    let mut table = Table::new();
    table.set_header(["digest", "size", "came", "used", ""]);
    for blob in blobs {
        table.add_row([
            blob.digest.to_string(),
            ByteSize(blob.bytes).to_string(),
            ago(blob.born_ms, now_ms),
            ago(blob.used_ms, now_ms),
            if blob.pinned { "pinned" } else { "" }.to_string(),
        ]);
    }
    table
}

/// How long ago, in the largest unit of which there is one.
pub(crate) fn ago(then_ms: u64, now_ms: u64) -> String {
    format!("{} ago", span(now_ms.saturating_sub(then_ms)))
}

/// A time in milliseconds, in that unit.
pub(crate) fn span(ms: u64) -> String {
    let secs = Duration::from_millis(ms).as_secs();
    let (count, unit) = match secs {
        0..60 => (secs, "s"),
        60..3600 => (secs / 60, "min"),
        3600..86_400 => (secs / 3600, "h"),
        _ => (secs / 86_400, "d"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_largest_unit() {
        let told = |secs: u64| ago(1000, 1000 + 1000 * secs);
        assert_eq!(told(59), "59 s ago");
        assert_eq!(told(3599), "59 min ago");
        assert_eq!(told(86_399), "23 h ago");
        assert_eq!(told(864_000), "10 d ago");
        assert_eq!(ago(5000, 1000), "0 s ago", "the clock was set back");
    }
}
