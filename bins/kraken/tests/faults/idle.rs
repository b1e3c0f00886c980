//! What a cluster does that is well, and that nobody asks for anything.

use std::time::Duration;

use crate::common::{Lab, pull, push, random, until, within};

/// Bytes that a process which rests may write within [`INTERVAL`]: what it says to the others, and its log.
const RESTS: u64 = 64 << 10;
const INTERVAL: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn who_has_nothing_to_do_writes_nothing() {
    within(120, "rest", async {
        let lab = Lab::start(2, 1).await;
        let digest = push(&lab.host("proxy"), &random(1 << 20, 4)).await;
        assert_eq!(pull(&lab.host("agent-1"), digest).await, 1 << 20);
        let refused = "kraken_certificate_refusals_total{reason=\"role\"}";
        for name in lab.names() {
            // Members ask each other only for what they may have.
            let refused = lab.counter(&name, refused).await;
            assert!(matches!(refused, None | Some(0)), "{name}: {refused:?}");
            until(&format!("{name} rests"), async || {
                let before = lab.written(&name);
                tokio::time::sleep(INTERVAL).await;
                (lab.written(&name) - before < RESTS).then_some(())
            })
            .await;
        }
    })
    .await;
}
