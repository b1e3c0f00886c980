//! The plan files of the repository.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

use std::fs;
use std::path::PathBuf;

use kraken_sim::Plan;

/// Every file in `benches/plans` that is a plan: its name without the extension, and its text.
fn files() -> Vec<(String, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../benches/plans");
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let plans = entries.filter(|path| path.extension().is_some_and(|it| it == "toml"));
    let mut files: Vec<_> = plans
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_plan_is_read_named_like_its_file_and_says_what_it_shows() {
    let files = files();
    assert!(files.len() >= 20);
    for (name, text) in files {
        let plan = Plan::from_toml(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plan.name, name);
        assert!(text.starts_with("# "), "{name} does not say what it shows");
    }
}

#[test]
fn the_usual_rollout_is_what_the_table_says() {
    let text = files().into_iter().find(|(name, _)| name == "seed-2600");
    let plan = Plan::from_toml(&text.unwrap().1).unwrap();
    assert_eq!((plan.agents, plan.origins, plan.trackers), (2600, 5, 5));
    let lengths: Vec<_> = plan.blobs.iter().map(|blob| blob.length).collect();
    assert_eq!(lengths, [1_500_000_000; 2]);
    let network = plan.network;
    assert_eq!([network.up, network.down, network.origin], [300_000_000; 3]);
    assert_eq!(plan.arrival.within.as_secs_f64(), 1.5);
}
