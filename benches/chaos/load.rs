//! Pushes and pulls without a pause, and a book of all that was acknowledged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken::client::{Checked, Registry};
use kraken_core::Digest;
use kraken_core::proto::rng::Rng;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::Outcome;

/// What is pushed to.
const REPOSITORY: &str = "chaos/blobs";
/// How long a pull, and a push, may take. A client gives up about then.
const PULL: Duration = Duration::from_secs(60);
const PUSH: Duration = Duration::from_secs(120);

/// When something was wrong with which member.
#[derive(Debug, Clone, Copy)]
struct Spell {
    at: usize,
    from: Instant,
    /// `None` while it lasts.
    until: Option<Instant>,
}

impl Spell {
    fn overlaps(&self, from: Instant, until: Instant) -> bool {
        self.from < until && self.until.is_none_or(|end| end > from)
    }
}

/// How long after the death of a process its clients may notice.
const LATE: Duration = Duration::from_secs(4);

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// The member that was asked.
    pub(crate) at: usize,
    from: Instant,
    until: Instant,
    pub(crate) is_good: bool,
    /// It was given up.
    is_late: bool,
}

impl Attempt {
    pub(crate) fn took(&self) -> Duration {
        self.until - self.from
    }
}

/// A blob and its image, which a proxy has acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) blob: Digest,
    pub(crate) manifest: Digest,
    pub(crate) tag: String,
}

/// What happened.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) acknowledged: Vec<Acknowledged>,
    pub(crate) pushes: Vec<Attempt>,
    pub(crate) pulls: Vec<Attempt>,
    pub(crate) wrong: usize,
    /// Whether pushes wait.
    pub(crate) pushes_rest: bool,
    /// What alone is pulled, if not all.
    pub(crate) only: Option<Vec<Acknowledged>>,
    /// Nothing may fail, whatever is done to the member that is asked.
    pub(crate) excuses_none: bool,
    spells: Vec<Spell>,
    /// Why attempts failed that should not have.
    pub(crate) reasons: Vec<String>,
}

impl Book {
    pub(crate) fn fault_began(&mut self, at: usize) {
        let from = Instant::now();
        let until = None;
        self.spells.push(Spell { at, from, until });
    }

    pub(crate) fn fault_ended(&mut self, at: usize) {
        let open = self
            .spells
            .iter_mut()
            .rev()
            .find(|it| it.at == at && it.until.is_none());
        if let Some(spell) = open {
            // A process that starts needs a moment until it answers.
            spell.until = Some(Instant::now() + Duration::from_secs(2));
        }
    }

    /// Whether anything was wrong while it ran.
    pub(crate) fn was_in_trouble(&self, attempt: &Attempt) -> bool {
        self.spells
            .iter()
            .any(|it| it.overlaps(attempt.from, attempt.until))
    }

    /// Whether something was wrong with the member that was asked while it ran.
    pub(crate) fn was_hit(&self, attempt: &Attempt) -> bool {
        let mut spells = self.spells.iter().filter(|it| it.at == attempt.at);
        spells.any(|it| it.overlaps(attempt.from, attempt.until))
    }

    /// Whether something was wrong with the member that was asked, just when the attempt failed. One
    /// that was not done in time has no such excuse.
    pub(crate) fn is_excused(&self, attempt: &Attempt) -> bool {
        let around = attempt.until - LATE.min(attempt.took());
        let mut spells = self.spells.iter().filter(|it| it.at == attempt.at);
        !self.excuses_none
            && !attempt.is_late
            && spells.any(|it| it.overlaps(around, attempt.until))
    }
}

/// The book, shared.
pub(crate) type Shared = Arc<Mutex<Book>>;

pub(crate) fn open(book: &Shared) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A member that is used, and where.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) at: usize,
    pub(crate) http: String,
}

/// Pushes images of one blob to one proxy after the other, for ever.
pub(crate) async fn push(book: Shared, proxies: Vec<Target>, seed: u64) -> Outcome<()> {
    let mut rng = Rng::seeded(seed);
    for number in 0_u64.. {
        while open(&book).pushes_rest {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let target = &proxies[rng.below(proxies.len())];
        let tag = format!("s{seed}-{number}");
        let from = Instant::now();
        let pushed = push_once(&target.http, &mut rng, &tag).await;
        let is_late = matches!(&pushed, Err(error) if error.is::<Late>());
        let attempt = Attempt {
            at: target.at,
            from,
            until: Instant::now(),
            is_good: pushed.is_ok(),
            is_late,
        };
        let pause = {
            let mut book = open(&book);
            book.pushes.push(attempt);
            match pushed {
                Ok(image) => {
                    book.acknowledged.push(image);
                    Duration::from_millis(100)
                }
                Err(reason) => {
                    if !book.is_excused(&attempt) {
                        book.reasons
                            .push(format!("push to {}: {reason}", target.http));
                    }
                    Duration::from_secs(1)
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Pushes one image of random bytes, and gives up in time.
pub(crate) async fn push_once(proxy: &str, rng: &mut Rng, tag: &str) -> Outcome<Acknowledged> {
    let size = 1 << (14 + rng.below(8));
    let bytes = random(rng, size);
    let pushed = timeout(PUSH, push_image(proxy, &bytes, tag)).await;
    pushed.unwrap_or_else(|_| Err(Box::new(Late)))
}

/// Pushes a blob of random bytes, and no image of it.
pub(crate) async fn push_blob(proxy: &str, rng: &mut Rng) -> Outcome<()> {
    let bytes = random(rng, 1 << 16);
    let body = futures::stream::iter([Ok(bytes)]);
    let registry = Registry::new(proxy)?;
    timeout(PUSH, registry.push_blob(REPOSITORY, body)).await??;
    Ok(())
}

/// It was given up.
#[derive(Debug)]
struct Late;

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not in time")
    }
}

impl std::error::Error for Late {}

async fn push_image(proxy: &str, bytes: &Bytes, tag: &str) -> Outcome<Acknowledged> {
    let registry = Registry::new(proxy)?;
    let chunks: Vec<_> = bytes
        .chunks(64 << 10)
        .map(|it| Ok(Bytes::copy_from_slice(it)))
        .collect();
    let (blob, size) = registry
        .push_blob(REPOSITORY, futures::stream::iter(chunks))
        .await?;
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let descriptor = json!({"mediaType": layer, "digest": blob.to_string(), "size": size});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": descriptor, "layers": [],
    });
    let manifest = Bytes::from(manifest.to_string());
    let digest = Digest::of(&manifest);
    registry
        .push_manifest(REPOSITORY, tag, media_type, manifest)
        .await?;
    Ok(Acknowledged {
        blob,
        manifest: digest,
        tag: tag.to_string(),
    })
}

/// Pulls what was acknowledged through one agent after the other, for ever.
pub(crate) async fn pull(book: Shared, agents: Vec<Target>, seed: u64) -> Outcome<()> {
    let mut rng = Rng::seeded(seed);
    loop {
        let target = &agents[rng.below(agents.len())];
        let image = {
            let book = open(&book);
            let (among, newest) = match &book.only {
                Some(only) => (only, 0),
                // Mostly what is new, as after a deployment.
                None => (
                    &book.acknowledged,
                    book.acknowledged.len().saturating_sub(20),
                ),
            };
            let from = if rng.below(4) == 0 { 0 } else { newest };
            let count = among.len();
            (count > 0).then(|| among[from + rng.below(count - from)].clone())
        };
        let Some(image) = image else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let from = Instant::now();
        let pulled = timeout(PULL, pull_blob(&target.http, image.blob)).await;
        let is_late = pulled.is_err();
        let pulled = pulled.unwrap_or_else(|_| Err("not within a minute".into()));
        let attempt = Attempt {
            at: target.at,
            from,
            until: Instant::now(),
            is_good: pulled.is_ok(),
            is_late,
        };
        let pause = {
            let mut book = open(&book);
            book.pulls.push(attempt);
            match pulled {
                Ok(is_right) => {
                    book.wrong += usize::from(!is_right);
                    Duration::from_millis(20)
                }
                Err(reason) => {
                    if !book.is_excused(&attempt) {
                        book.reasons
                            .push(format!("pull from {}: {reason}", target.http));
                    }
                    Duration::from_millis(500)
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Pulls a blob, and says whether it was right when it came to its end.
pub(crate) async fn pull_blob(registry: &str, digest: Digest) -> Outcome<bool> {
    let (length, mut body) = Registry::new(registry)?.blob(REPOSITORY, digest).await?;
    let mut checked = Checked::new(digest);
    while let Some(chunk) = body.next().await {
        checked.update(&chunk?);
    }
    if checked.bytes < length {
        return Err("the body ended early".into());
    }
    Ok(checked.finish().is_ok())
}

/// Whether a tag names what was acknowledged.
pub(crate) async fn is_tagged(registry: &str, image: &Acknowledged) -> Outcome<bool> {
    let (_, manifest) = Registry::new(registry)?
        .manifest(REPOSITORY, &image.tag)
        .await?;
    Ok(Digest::of(&manifest) == image.manifest)
}

fn random(rng: &mut Rng, len: usize) -> Bytes {
    let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    words.take(len.div_ceil(8)).flatten().collect()
}
