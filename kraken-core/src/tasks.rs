//! Everything a handle has started, and how it ends.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A cancellation token and a task tracker: tasks end when they are done or when the token says so.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// Starts a task that is dropped at its next wait once the handle stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Stops every task, without waiting.
    pub(crate) fn cancel(&self) {
        self.token.cancel();
    }

    /// Stops every task, and waits for them until the deadline.
    pub(crate) async fn stop(&self, deadline: Duration) {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tracker.len(), "tasks did not end in time");
        }
    }
}
