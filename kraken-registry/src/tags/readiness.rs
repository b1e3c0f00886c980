//! Whether a build-index can do its work: alone, and together with the others.

use futures::stream::{FuturesUnordered, StreamExt as _};
use kraken_proto::tags::list::ListId;
use kraken_proto::tags::rejoin::Told;

use super::backend::TagBackend;
use super::ring::TagRing;

impl TagRing {
    /// Whether this build-index votes: after its start it may first have to learn what the tags are.
    pub fn is_ready(&self) -> bool {
        self.why_not_ready().is_none()
    }

    /// Why it does not vote, or should not be asked any more.
    pub fn why_not_ready(&self) -> Option<&'static str> {
        let store = self.here();
        if !store.standing().votes() {
            if let Some(reason) = self.backend().and_then(TagBackend::why_not_read) {
                return Some(reason);
            }
            return Some("it waits for the other build-indexes: it does not know the tags yet");
        }
        let has_left = store.lists().is_some_and(|it| it.has_left(self.name()));
        has_left.then_some("it is not on the list of build-indexes any more: it can be stopped")
    }

    /// Why tags cannot all be read and set by asking this build-index: it does not vote, its disk is full or has
    /// failed, or too few of the others answer. Asks them, for 3 s at most.
    pub async fn why_not_serving(&self) -> Option<String> {
        if let Some(reason) = self.why_not_ready() {
            return Some(reason.to_owned());
        }
        if self.here().has_failed() {
            let store = self.here().clone();
            let why = tokio::task::spawn_blocking(move || store.why_not_writable());
            if let Some(why) = why.await.ok().flatten() {
                return Some(format!("its tags cannot be written: {why}"));
            }
        }
        self.why_too_few().await
    }

    /// Which others do not answer, when without them a tag may have no majority.
    async fn why_too_few(&self) -> Option<String> {
        // This one votes.
        let mut missing = self.view().enough().saturating_sub(1);
        let asked = self.others().into_iter().map(|(name, owner)| async move {
            let told = owner.standing().await;
            (name, told)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let lists = self.view().asked();
        let mut silent = Vec::new();
        while missing > 0
            && let Some((name, told)) = asked.next().await
        {
            match why_no_vote(told, &lists) {
                None => missing -= 1,
                Some(why) => silent.push(format!("{name}: {why}")),
            }
        }
        silent.sort();
        let silent = silent.join("; ");
        (missing > 0)
            .then(|| format!("too few build-indexes answer to read and set tags: {silent}"))
    }
}

fn why_no_vote(told: Result<Told, String>, asked: &[ListId]) -> Option<String> {
    match told {
        Ok(told) if !told.standing.votes() => Some("it does not know the tags yet".into()),
        Ok(told) if told.lists.as_ref().is_some_and(|lists| !lists.allow(asked)) => Some(
            "it goes by another list of build-indexes: give this one the same, and start it anew"
                .into(),
        ),
        Ok(_) => None,
        Err(error) => Some(error),
    }
}
