//! What each policy is worth, on swarms small enough for every run of the tests. The large ones are
//! plans in `benches/plans`.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

use std::time::Duration;

use kraken_sim::{Plan, Report, run};

/// 150 hosts at 100 MB/s that want two blobs of 50 MB within 0.3 s: a floor of one second.
const CROWD: &str = r#"
    hosts = 150
    origins = 5
    trackers = 3
    [[blobs]]
    size = "50MB"
    count = 2
    [caps]
    up = "100MB"
    down = "100MB"
    origin = "100MB"
    [arrival]
    within_seconds = 0.3
"#;

fn plan(changes: &str) -> Plan {
    Plan::from_toml(&format!("{CROWD}\n{changes}")).unwrap()
}

/// Everybody completes and no rule is broken.
fn well(plan: &Plan) -> Report {
    let report = run(plan);
    assert_eq!(report.violations, Vec::<String>::new());
    assert_eq!(report.unfinished, 0, "of {}", report.hosts);
    report
}

#[test]
fn a_crowd_stays_near_line_rate_and_spares_the_origins() {
    for seed in 1..4 {
        let report = well(&Plan { seed, ..plan("") });
        let (ratio, origins) = (report.ratio, report.origin_bytes_ratio);
        assert!(ratio.p50 < 1.12 && ratio.max < 1.3, "{ratio:?}");
        assert!(origins < 1.8, "{origins} copies left the origins");
        assert!(report.duplicate_ratio < 0.01, "{}", report.duplicate_ratio);
        assert!(
            report.longest_gap_seconds < 0.3,
            "{}",
            report.longest_gap_seconds
        );
    }
}

#[test]
fn nobody_is_faster_than_the_network_allows() {
    let mut uneven = plan("");
    (uneven.network.up, uneven.network.origin) = (50_000_000, 50_000_000);
    let report = well(&uneven);
    assert!(report.floor_seconds > 1.9, "{}", report.floor_seconds);
    let fastest = report
        .completions
        .iter()
        .flatten()
        .copied()
        .fold(f64::MAX, f64::min);
    assert!(fastest >= 1.0, "{fastest} s for 100 MB at 100 MB/s");
}

#[test]
fn the_original_policies_are_slower_and_cost_the_origins_more() {
    let ours = well(&plan(""));
    let mut original = Plan::from_toml(&format!("policy = \"original\"\n{CROWD}")).unwrap();
    original.limit *= 4;
    let theirs = well(&original);
    assert!(
        theirs.ratio.p50 > ours.ratio.p50 * 1.1,
        "{:?}",
        theirs.ratio
    );
    assert!(theirs.origin_bytes_ratio > ours.origin_bytes_ratio);
}

const RACKS: &str = "[network]\nracks = { hosts = 30, oversubscription = 4.0, known = KNOWN }";

#[test]
fn hosts_that_know_their_rack_keep_the_bytes_in_it() {
    let [known, blind] = ["true", "false"].map(|known| well(&plan(&RACKS.replace("KNOWN", known))));
    let (near, far) = (known.across_ratio, blind.across_ratio);
    assert!(
        near < far * 0.6,
        "{near} of the bytes cross racks, blind {far}"
    );
    assert!(known.ratio.p999 < 1.3, "{:?}", known.ratio);
    assert!(blind.ratio.p50 > known.ratio.p50 * 1.5, "{:?}", blind.ratio);
}

#[test]
fn peers_lead_to_peers_when_all_trackers_are_dead() {
    // Half of the hosts are still to come when the trackers die, and these never come back.
    let dead = "[faults]\noutages = [{ from_seconds = 0.15 }]";
    let met = Plan {
        known_peers: 6,
        ..plan(dead)
    };
    let report = well(&met);
    assert!(report.ratio.max < 1.4, "{:?}", report.ratio);
    // Without anybody from earlier pulls nobody tells them where to begin.
    let stranded = run(&plan(dead));
    assert!(stranded.unfinished > 30, "{}", stranded.unfinished);
}

#[test]
fn peers_tell_what_a_blob_is_when_nobody_else_does() {
    // The later half of the hosts knows a few others and nothing of the blob; nor do trackers.
    let dead = "[faults]\noutages = [{ from_seconds = 0.15 }]";
    let met = Plan {
        known_peers: 6,
        metainfo_from_peers: true,
        ..plan(dead)
    };
    let report = well(&met);
    assert!(report.ratio.max < 2.0, "{:?}", report.ratio);
    // And when all origins die, those that hold it tell those who come later.
    let gone = "[faults]\nkilled_origins = [{ origin = 0, at_seconds = 2, silent = true }, \
                { origin = 1, at_seconds = 2, silent = true }, \
                { origin = 2, at_seconds = 2, silent = true }]";
    let mut late = Plan {
        metainfo_from_peers: true,
        ..plan(gone)
    };
    late.arrival.late = (0..10).map(|it| (it, Duration::from_secs(3))).collect();
    let report = well(&late);
    assert!(report.ratio.max < 2.0, "{:?}", report.ratio);
}

#[test]
fn the_rest_hardly_feels_what_goes_wrong() {
    let faults = [
        "[faults]\nkilled_origins = [{ origin = 0, at_seconds = 0.1, silent = true }, \
         { origin = 1, at_seconds = 0.1, silent = true }]",
        "[faults]\nchurn = { share = 0.05, from_seconds = 0.3, to_seconds = 0.9, silent = 0.5, \
         back_after_seconds = 0.5 }",
        "[network]\nthin_paths = [{ share = 0.05, rate = \"2MB\" }]",
        "[network]\nslow = { share = 0.1, up = \"10MB\", down = \"10MB\" }",
        "[network]\nnoise = 0.3\npauses = { per_second = 0.2, length_ms = [10, 100] }",
        "[network]\nrtt_ms = [10.0, 12.0]\njitter_ms = 1.0\nloss = 0.001",
    ];
    for fault in faults {
        let report = well(&plan(fault));
        assert!(report.ratio.p50 < 1.3, "{fault}: {:?}", report.ratio);
        assert!(report.ratio.max < 2.5, "{fault}: {:?}", report.ratio);
    }
}

#[test]
fn a_host_that_restarts_fetches_only_what_it_lacks() {
    // That no piece is written twice is among the rules; here nothing arrives twice either.
    let churn = "[faults]\nchurn = { share = 0.1, from_seconds = 0.6, to_seconds = 0.9, \
                 silent = 0.0, back_after_seconds = 0.3 }";
    let report = well(&plan(churn));
    let restarted = report.restarted_ratio.unwrap();
    // The time away, and what was on the way when it crashed.
    assert!(restarted.max < 1.9, "{restarted:?}");
    assert!(report.duplicate_ratio < 0.01, "{}", report.duplicate_ratio);
}

#[test]
fn a_partition_heals() {
    let cut = "[faults]\npartition = { share = 0.2, from_seconds = 0.5, to_seconds = 8.0 }";
    let report = well(&plan(cut));
    assert!(
        report.ended > 8.0 && report.ended < 12.0,
        "{}",
        report.ended
    );
}

#[test]
fn a_small_blob_beside_a_large_one_takes_at_most_twice_its_time() {
    let small = r#"
        hosts = 40
        origins = 5
        [[blobs]]
        size = "10MB"
        after_seconds = 2.0
        [arrival]
        within_seconds = 0.5
    "#;
    let alone = well(&Plan::from_toml(small).unwrap());
    let beside = format!("{small}\n[[blobs]]\nsize = \"2GB\"\n");
    let beside = well(&Plan::from_toml(&beside).unwrap());
    let (alone, beside) = (alone.blobs[0], beside.blobs[0]);
    assert!(beside.p50 < alone.p50 * 2.0, "{beside:?}, alone {alone:?}");
    assert!(beside.max < alone.max * 2.0, "{beside:?}, alone {alone:?}");
}
