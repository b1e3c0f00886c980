//! Every rule of the specification, over blobs and tags in memory.

use kraken_registry::memory::{MemoryBlobs, MemoryTags};
use kraken_registry::pull::{self, PullState};
use kraken_registry::push::{self, PushState};

use crate::common::serve;
use crate::conformance::Registries;

#[tokio::test]
async fn every_rule_of_the_specification_holds() {
    let (blobs, tags) = (MemoryBlobs::default(), MemoryTags::default());
    let pull = PullState::new(blobs.clone(), tags.clone());
    let takes_pushes = push::router(PushState::new(pull, blobs.clone()));
    let mirror = pull::router(PullState::mirror(blobs, tags));
    let registries = Registries {
        push: serve(takes_pushes).await,
        read: serve(mirror).await,
    };
    let (wrong, asked) = registries.check().await;
    assert!(asked >= 200, "{asked} questions are too few");
    assert!(
        wrong.is_empty(),
        "{} of {asked}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
