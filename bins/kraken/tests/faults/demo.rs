//! The demo's report.

use std::collections::BTreeSet;

use kraken::demo::{self, DemoOptions};
use serde_json::Value;

use crate::common::{kraken, within};

#[tokio::test(flavor = "multi_thread")]
async fn every_agent_is_right_and_the_origins_send_less_than_three_copies() {
    let options = DemoOptions {
        agents: 5,
        origins: 3,
        size: 64 << 20,
        bars: false,
    };
    let report = within(80, "the demo", demo::run(&options)).await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.agents.len(), 5);
    assert!(report.image_bytes >= options.size);
    let mut manifests = BTreeSet::new();
    for agent in &report.agents {
        assert!(agent.verified && agent.error.is_none(), "{agent:?}");
        assert_eq!(agent.bytes, report.image_bytes);
        // What it took is what it served, each byte once, and the manifest.
        let taken = agent.origin_bytes + agent.peer_bytes;
        manifests.insert(taken.checked_sub(agent.bytes).expect("all it served"));
    }
    let manifest = manifests.first().copied().unwrap();
    assert!(
        manifests.len() == 1 && (1..64 << 10).contains(&manifest),
        "{manifests:?}"
    );
    assert!(report.origin_bytes < 3 * report.image_bytes, "{report:?}");
    // Sums over the agents and what the origins counted: the same bytes.
    let taken: u64 = report.agents.iter().map(|agent| agent.origin_bytes).sum();
    assert!(report.origin_bytes >= taken, "{report:?}");
    println!(
        "origins sent {:.2} x the image",
        report.origin_bytes as f64 / report.image_bytes as f64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_report_is_one_object_with_the_documented_fields() {
    let arguments = ["demo", "--agents", "2", "--size", "4MiB", "--json"];
    let ran = within(60, "the demo", kraken(&arguments)).await;
    assert!(ran.status.success(), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let fields = |value: &Value| {
        let object = value.as_object().expect("an object");
        object.keys().cloned().collect::<BTreeSet<_>>()
    };
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let expected: BTreeSet<_> = names(&[
        "ok",
        "image_bytes",
        "push_seconds",
        "pull_seconds",
        "origin_bytes",
        "peer_bytes",
        "agents",
    ]);
    assert_eq!(fields(&report), expected);
    assert_eq!(report["ok"], true);
    let agents = report["agents"].as_array().unwrap();
    assert_eq!(agents.len(), 2);
    let expected: BTreeSet<_> = names(&[
        "name",
        "seconds",
        "bytes",
        "origin_bytes",
        "peer_bytes",
        "verified",
    ]);
    for (index, agent) in agents.iter().enumerate() {
        assert_eq!(fields(agent), expected);
        assert_eq!(agent["name"], format!("agent-{}", index + 1));
        assert_eq!(agent["verified"], true);
        assert_eq!(agent["bytes"], report["image_bytes"]);
    }
}
