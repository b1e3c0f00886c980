//! Logs that programs read.

use std::fs;

use serde_json::{Value, json};

use crate::common::{Lab, pull, push, random, until, within};

/// What is wrong with a line that is to be an object, if anything is.
fn wrong(line: &str) -> Option<String> {
    let Ok(told) = serde_json::from_str::<Value>(line) else {
        return Some(format!("no JSON: {line}"));
    };
    let keys = ["timestamp", "level", "target", "message"];
    let lacks = keys.into_iter().find(|key| !told[key].is_string());
    lacks.map(|key| format!("no {key}: {line}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_an_object_where_that_is_configured() {
    within(120, "logs", async {
        let lab = Lab::start_with(1, 1, |_, config| {
            config["log_format"] = json!("json");
            config["log"] = json!("debug");
        })
        .await;
        let digest = push(&lab.host("proxy"), &random(1 << 20, 4)).await;
        assert_eq!(pull(&lab.host("agent-1"), digest).await, 1 << 20);
        for name in lab.names() {
            let log = fs::read_to_string(lab.path(&format!("{name}.err"))).unwrap();
            // The last line may be half written.
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            assert!(whole.contains("\"message\":\"started\""), "{name}: {log}");
            let wrong = whole.lines().find_map(wrong);
            assert!(wrong.is_none(), "{name}: {}", wrong.unwrap_or_default());
        }

        let config = fs::read(lab.config("agent-1")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["log_format"] = json!("text");
        lab.replace("agent-1.yaml", &config.to_string());
        until("the agent logs text", async || {
            let log = fs::read_to_string(lab.path("agent-1.err")).unwrap();
            let is_told = |line: &str| line.contains("INFO") && line.contains("log_format");
            let mut lines = log.lines().filter(|line| wrong(line).is_some());
            lines.any(is_told).then_some(())
        })
        .await;
    })
    .await;
}
