//! One thread that writes: what comes while a transaction is being made durable goes into the next
//! one, together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use kraken_core::storage::database::DatabaseFile;
use redb::{Database, Durability, WriteTransaction};
use tokio::sync::oneshot;

use super::store::TagStoreError;

/// Changes that wait for the disk; whoever has more to say is refused.
const WAITING: usize = 4096;
/// Changes in one transaction.
const TOGETHER: usize = 256;

/// Makes a change within a transaction, and gives what answers it once that is durable.
type Job = Box<dyn FnOnce(&WriteTransaction) -> Result<Answer, redb::Error> + Send>;
type Answer = Box<dyn FnOnce(Result<(), TagStoreError>) + Send>;

/// The way to the thread that writes, which ends with the last of these.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    db: Arc<DatabaseFile>,
}

impl Writer {
    pub(super) fn start(db: Arc<DatabaseFile>) -> Self {
        let (jobs, waiting) = sync_channel(WAITING);
        let writing = db.clone();
        std::thread::spawn(move || {
            while let Some(batch) = next(&waiting) {
                // A job that panics leaves its batch unanswered and unwritten; those after it are not to suffer.
                let _ = catch_unwind(AssertUnwindSafe(|| write(&writing, batch)));
            }
        });
        Self { jobs, db }
    }

    /// Makes a change, which is durable when this returns. After an error it may have been made.
    pub(super) async fn run<R: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<R, redb::Error> + Send + 'static,
    ) -> Result<R, TagStoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            let result = change(transaction)?;
            let answer: Answer = Box::new(move |durable| {
                // Nobody waits any more: the change holds all the same.
                let _ = reply.send(durable.map(|()| result));
            });
            Ok(answer)
        });
        match self.jobs.try_send(job) {
            Ok(()) => answer.await.map_err(|_| self.why_not_written())?,
            Err(TrySendError::Full(_)) => Err(TagStoreError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(TagStoreError::Interrupted),
        }
    }

    /// Why nothing answered.
    fn why_not_written(&self) -> TagStoreError {
        match self.db.failure() {
            Some(why) => TagStoreError::Database(why.into()),
            None => TagStoreError::Interrupted,
        }
    }
}

/// All that waits, up to a bound; nothing once nobody can say more.
fn next(waiting: &Receiver<Job>) -> Option<Vec<Job>> {
    let mut batch = vec![waiting.recv().ok()?];
    batch.extend(waiting.try_iter().take(TOGETHER - 1));
    Some(batch)
}

fn write(db: &DatabaseFile, batch: Vec<Job>) {
    let mut answers = Vec::with_capacity(batch.len());
    let written = db.write(|db| transact(db, batch, &mut answers));
    for answer in answers {
        answer(match &written {
            Ok(()) => Ok(()),
            Err(error) => Err(TagStoreError::Database(error.to_string().into())),
        });
    }
}

/// A job that fails takes the whole batch with it: nothing of it is written, and its own answer is
/// that it was interrupted.
fn transact(db: &Database, batch: Vec<Job>, answers: &mut Vec<Answer>) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    for job in batch {
        answers.push(job(&transaction)?);
    }
    Ok(transaction.commit()?)
}
