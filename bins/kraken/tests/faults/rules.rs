//! Every rule of the specification, through a proxy and an agent of a real cluster.

use crate::common::{Lab, within};
use crate::conformance::Registries;

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_the_specification_holds_in_a_cluster() {
    let lab = Lab::start(2, 1).await;
    let registries = Registries {
        push: format!("http://{}", lab.host("proxy")),
        read: format!("http://{}", lab.host("agent-1")),
    };
    let (wrong, asked) = within(300, "all rules", registries.check()).await;
    assert!(asked >= 200, "{asked} questions are too few");
    assert!(
        wrong.is_empty(),
        "{} of {asked}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
