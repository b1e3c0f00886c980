//! Whole swarms, each replayable from its seed.

use std::time::Duration;

use kraken_sim::{
    Blob, Churn, Faults, KilledOrigin, Partition, Pauses, Percentiles, Plan, Report, run,
};

/// The longest blob that is still cut into pieces of 512 KiB.
const BLOB: u64 = (64 << 20) - 1;
const MIB: u64 = 1 << 20;

/// Everybody who was to finish has, and no rule was broken.
fn well(plan: &Plan) -> Report {
    let report = run(plan);
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(
        report.finished(),
        "still at it after {} s: {:?}",
        report.ended,
        report.completions
    );
    report
}

fn show(name: &str, report: &Report, blob: u64) -> String {
    let Percentiles {
        p50, p90, p99, max, ..
    } = report.percentiles();
    let share = report.origin_bytes as f64 / blob as f64;
    let messages = report.messages;
    format!(
        "{name}: p50 {p50:.3} p90 {p90:.3} p99 {p99:.3} max {max:.3} s, origins {share:.2} x blob, {messages} messages"
    )
}

/// An origin that dies, and the others notice at once.
fn killed(origin: usize, at: Duration) -> KilledOrigin {
    KilledOrigin {
        origin,
        at,
        silent: false,
        back_after: None,
    }
}

#[test]
fn two_hundred_hosts_complete_and_spare_the_origins() {
    let plan = Plan {
        blobs: vec![Blob::from(BLOB)],
        ..Plan::swarm(7, 200)
    };
    let report = well(&plan);
    println!("{}", show("200 hosts", &report, BLOB));
    assert!(report.completions.iter().all(Option::is_some));
    assert!(
        report.origin_bytes < 8 * BLOB,
        "{}",
        show("200 hosts", &report, BLOB)
    );
    assert!(report.percentiles().max < 4.0 * BLOB as f64 / plan.network.down as f64);
    assert!(report.bans.is_empty());
}

#[test]
fn a_seed_names_one_run() {
    let first = well(&Plan::swarm(1, 30));
    assert_eq!(first, well(&Plan::swarm(1, 30)));
    assert_ne!(first.trace, well(&Plan::swarm(2, 30)).trace);
}

#[test]
fn many_seeds_break_no_rule() {
    for seed in 100..115 {
        well(&Plan {
            readers: seed % 2 == 0,
            ..Plan::crashing(seed, 16, 4)
        });
        well(&Plan::lying(seed, 16, vec![3]));
    }
}

#[test]
fn readers_in_step_spare_the_origins_too() {
    let report = well(&Plan {
        readers: true,
        ..Plan::swarm(3, 60)
    });
    println!("{}", show("60 hosts with readers", &report, 16 * MIB));
    assert!(
        report.origin_bytes < 9 * 16 * MIB,
        "{}",
        show("readers", &report, 16 * MIB)
    );
}

#[test]
fn crashed_hosts_come_back_with_their_pieces() {
    // That no piece is stored twice on a host, whatever life it is in, is among the rules.
    let plan = Plan {
        blobs: vec![Blob::from(32 * MIB)],
        ..Plan::crashing(11, 100, 20)
    };
    let report = well(&plan);
    println!("{}", show("100 hosts, 5 % crash", &report, 32 * MIB));
    let quick = report
        .completions
        .iter()
        .flatten()
        .filter(|seconds| **seconds < 1.0)
        .count();
    assert!(
        quick >= 95,
        "only {quick} of 100 hosts were not held up by the crash of 5"
    );
}

#[test]
fn everybody_is_restarted_one_after_the_other() {
    let restarted = |origin| KilledOrigin {
        back_after: Some(Duration::from_millis(200)),
        ..killed(origin, Duration::from_millis(100 + 300 * origin as u64))
    };
    let churn = Churn {
        share: 1.0,
        during: Duration::from_millis(300)..Duration::from_millis(900),
        silent: 0.0,
        back_after: Some(Duration::from_millis(100)),
        hand_over: Duration::from_millis(100),
    };
    let plan = Plan {
        blobs: vec![Blob::from(BLOB); 4],
        faults: Faults {
            churn: Some(churn),
            killed_origins: (0..3).map(restarted).collect(),
            ..Faults::default()
        },
        ..Plan::swarm(9, 100)
    };
    let report = well(&plan);
    println!("{}", show("100 hosts, all restarted", &report, 4 * BLOB));
    let ratios = report.ratios;
    assert_eq!((ratios.restarted.len(), ratios.ordinary.len()), (100, 0));
}

#[test]
fn messages_that_a_pause_and_a_cut_hold_up_arrive_in_order() {
    // Whoever gets them in another order takes the sender for a liar, which is against the rules.
    for seed in 0..4 {
        let mut plan = Plan {
            blobs: vec![Blob::from(BLOB); 4],
            ..Plan::swarm(seed, 60)
        };
        plan.network.pauses = Some(Pauses {
            per_second: 2.0,
            length: Duration::from_millis(50)..=Duration::from_millis(300),
        });
        plan.faults.partition = Some(Partition {
            share: 0.3,
            during: Duration::from_millis(300)..Duration::from_millis(600),
        });
        well(&plan);
    }
}

#[test]
fn a_liar_is_banned_by_those_it_lied_to() {
    let report = well(&Plan::lying(5, 20, vec![4]));
    assert!(!report.bans.is_empty());
    assert!(
        report
            .bans
            .iter()
            .all(|(host, peer)| *peer == 4 && *host != 4)
    );
    let mut once = report.bans.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), report.bans.len(), "a liar was let in again");
    let honest = report
        .completions
        .iter()
        .enumerate()
        .filter(|(agent, _)| *agent != 4);
    assert!(honest.into_iter().all(|(_, seconds)| seconds.is_some()));
}

#[test]
fn one_of_three_origins_dies() {
    for origin in 0..2 {
        let killed_origins = vec![killed(origin, Duration::from_millis(60))];
        let faults = Faults {
            killed_origins,
            ..Faults::default()
        };
        let report = well(&Plan {
            faults,
            ..Plan::swarm(6, 40)
        });
        println!("{}", show("origin dies", &report, 16 * MIB));
    }
}

#[test]
fn the_tracker_is_out_for_a_while() {
    let outage = Duration::from_millis(100)..Duration::from_millis(1500);
    let faults = Faults {
        outages: vec![outage],
        ..Faults::default()
    };
    let report = well(&Plan {
        faults,
        ..Plan::swarm(8, 40)
    });
    println!("{}", show("tracker out", &report, 16 * MIB));
    assert!(report.percentiles().max < 5.0);
}

#[test]
fn two_blobs_at_once() {
    let report = well(&Plan {
        blobs: vec![Blob::from(24 * MIB), Blob::from(20 * MIB)],
        ..Plan::swarm(9, 60)
    });
    println!("{}", show("two blobs", &report, 44 * MIB));
    assert!(
        report.origin_bytes < 8 * 44 * MIB,
        "{}",
        show("two blobs", &report, 44 * MIB)
    );
}

#[test]
fn a_latecomer_finds_only_agents() {
    let dead_at = Duration::from_secs(3);
    let killed_origins = (0..3).map(|origin| killed(origin, dead_at)).collect();
    let faults = Faults {
        killed_origins,
        ..Faults::default()
    };
    let mut plan = Plan {
        faults,
        ..Plan::swarm(10, 20)
    };
    plan.arrival.late = vec![(19, Duration::from_secs(5))];
    let report = well(&plan);
    assert!(report.ended > 5.0);
    assert!(
        report.completions[19].is_some_and(|seconds| seconds < 2.0),
        "{report:?}"
    );
}

#[test]
fn a_run_that_cannot_finish_ends() {
    let limit = Duration::from_secs(20);
    let report = run(&Plan {
        origins: 0,
        limit,
        ..Plan::swarm(1, 4)
    });
    assert!(!report.finished() && report.ended <= 20.0);
    assert_eq!(report.violations, Vec::<String>::new());
}
