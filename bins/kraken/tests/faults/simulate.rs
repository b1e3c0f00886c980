//! `kraken sim`: its two reports, its exit codes, and plans that are wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{Ran, kraken, within};

/// Runs a plan of this text with more arguments.
async fn sim(dir: &Path, plan: &str, arguments: &[&str]) -> Ran {
    let path = dir.join("plan.toml");
    fs::write(&path, plan).unwrap();
    let mut all = vec!["sim", path.to_str().unwrap()];
    all.extend(arguments);
    kraken(&all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_played_and_reported() {
    within(60, "simulations", async {
        let dir = tempfile::tempdir().unwrap();
        let plan = "name = 'tiny'\nhosts = 6\nseed = 3";
        let table = sim(dir.path(), plan, &[]).await;
        assert!(table.status.success(), "{table:?}");
        assert!(table.stdout.contains("tiny, seed 3"), "{table:?}");
        let json = sim(dir.path(), plan, &["--json", "--seed", "4"]).await;
        let value: Value = serde_json::from_str(&json.stdout).unwrap();
        assert!(json.status.success() && json.stderr.is_empty(), "{json:?}");
        assert_eq!((&value["seed"], &value["hosts"]), (&4.into(), &6.into()));
        let picture = dir.path().join("plot.png");
        let plot = ["--plot", picture.to_str().unwrap()];
        let drawn = sim(dir.path(), plan, &plot).await;
        assert!(drawn.status.success(), "{drawn:?}");
        assert!(fs::read(picture).unwrap().starts_with(b"\x89PNG"));
        let late = sim(dir.path(), "hosts = 6\nlimit_seconds = 0.1", &[]).await;
        assert!(!late.status.success(), "{late:?}");
        assert!(late.stdout.contains("NOT DONE"), "{late:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_plans_are_named() {
    within(60, "plans", async {
        let dir = tempfile::tempdir().unwrap();
        let ran = sim(dir.path(), "seed = 1\nhost = 3", &[]).await;
        for words in ["plan.toml", "line 2", "did you mean `hosts`?"] {
            assert!(ran.stderr.contains(words), "{ran:?}");
        }
        assert!(!ran.status.success() && ran.stdout.is_empty(), "{ran:?}");
        let ran = sim(dir.path(), "hosts = 3", &["--plot", "/nowhere/a.svg"]).await;
        assert!(ran.stderr.contains("/nowhere/a.svg"), "{ran:?}");
        assert!(
            !ran.status.success() && ran.stdout.contains("all done"),
            "{ran:?}"
        );
        let ran = kraken(&["sim", "/nowhere/plan.toml"]).await;
        assert!(ran.stderr.contains("/nowhere/plan.toml"), "{ran:?}");
        assert!(!ran.status.success(), "{ran:?}");
    })
    .await;
}

#[test]
fn nobody_has_to_read_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.toml");
    fs::write(&path, "hosts = 6").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kraken"))
        .arg("sim")
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = child.wait_with_output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
}
