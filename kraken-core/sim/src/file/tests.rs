use std::time::Duration;

use kraken_proto::{MetaInfo, PieceLength};

use crate::plan::{Network, Plan};

fn read(text: &str) -> Plan {
    Plan::from_toml(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn refusal(text: &str) -> String {
    match Plan::from_toml(text) {
        Ok(_) => panic!("taken: {text}"),
        Err(error) => error.to_string(),
    }
}

const EVERYTHING: &str = r#"
name = "everything"
seed = 7
hosts = 50
origins = 4
owners = 2
trackers = 3
known_peers = 8
metainfo_from_peers = true
readers = true
policy = "kraken"
limit_seconds = 90.5
settle_seconds = 1

[[blobs]]
size = "1.5GB"
count = 2
[[blobs]]
size = 4096
piece_length = "1MiB"
after_seconds = 0.25
share = 0.5

[caps]
up = "200MB"
down = "64MiB"
origin = 1_000_000
disk = "1GB"

[arrival]
within_seconds = 1.5
late = [{ host = 49, at_seconds = 5 }]

[network]
rtt_ms = [0.5, 12]
jitter_ms = 1
loss = 0.01
noise = 0.3
pauses = { per_second = 0.2, length_ms = [10, 100] }
slow = { share = 0.1, up = "30MB", down = "20MB" }
thin_paths = [{ share = 0.01, rate = "10MB" }, { share = 0.02, rate = "5MB" }]
racks = { hosts = 40, oversubscription = 4 }

[faults]
crashes = [{ host = 1, at_seconds = 2.0, silent = true, back_after_seconds = 1.0 }]
churn = { share = 0.05, from_seconds = 2, to_seconds = 8, silent = 0.5, back_after_seconds = 1, hand_over_seconds = 0.25 }
liars = [4, 5]
killed_origins = [{ origin = 3, at_seconds = 0.5, back_after_seconds = 2 }]
outages = [{ from_seconds = 0.7, to_seconds = 3 }, { from_seconds = 9 }]
partition = { share = 0.1, from_seconds = 1, to_seconds = 4 }

[agent]
target_degree = 9
have_delay_ms = 2.5
[origin]
offers = 3
[tracker]
degree = 11
"#;

#[test]
fn a_file_that_says_nothing_is_the_default() {
    assert_eq!(format!("{:?}", read("")), format!("{:?}", Plan::default()));
    let sections = "[caps]\n[arrival]\n[network]\n[faults]\n[agent]\n[origin]\n[tracker]\n[[blobs]]\nsize = '16MiB'";
    let mut plan = read(sections);
    plan.arrival.within = Plan::default().arrival.within;
    assert_eq!(format!("{plan:?}"), format!("{:?}", Plan::default()));
}

#[test]
fn every_key_reaches_the_plan() {
    let plan = read(EVERYTHING);
    let seconds = Duration::from_secs_f64;
    assert_eq!((plan.name.as_str(), plan.seed), ("everything", 7));
    assert_eq!((plan.agents, plan.origins, plan.owners), (50, 4, 2));
    assert_eq!((plan.trackers, plan.known_peers), (3, 8));
    assert!(plan.metainfo_from_peers);
    assert_eq!((plan.readers, plan.limit), (true, seconds(90.5)));
    assert_eq!(plan.settle, seconds(1.0));
    let [first, second, third] = plan.blobs.as_slice() else {
        panic!("{:?}", plan.blobs)
    };
    assert_eq!(first, second);
    assert_eq!((first.length, third.length), (1_500_000_000, 4096));
    assert_eq!(third.piece_length, PieceLength::new(1 << 20).unwrap());
    assert_eq!((third.after, third.share), (seconds(0.25), 0.5));
    assert_eq!(plan.arrival.within, seconds(1.5));
    assert_eq!(plan.arrival.late, vec![(49, seconds(5.0))]);
    assert_eq!(plan.agent.target_degree, 9);
    assert_eq!(plan.agent.have_delay, Duration::from_micros(2500));
    assert_eq!((plan.origin.offers, plan.tracker.degree), (3, 11));
}

#[test]
fn every_key_of_the_network_reaches_the_plan() {
    let network = read(EVERYTHING).network;
    let Network { up, down, .. } = network;
    assert_eq!((up, down), (200_000_000, 64 << 20));
    assert_eq!((network.origin, network.disk), (1_000_000, 1_000_000_000));
    let millis = Duration::from_millis;
    assert_eq!(network.rtt, Duration::from_micros(500)..=millis(12));
    assert_eq!(network.jitter, millis(1));
    assert_eq!((network.loss, network.noise), (0.01, 0.3));
    let pauses = network.pauses.unwrap();
    assert_eq!(pauses.per_second, 0.2);
    assert_eq!(pauses.length, millis(10)..=millis(100));
    let slow = network.slow.unwrap();
    assert_eq!(
        (slow.share, slow.up, slow.down),
        (0.1, 30_000_000, 20_000_000)
    );
    assert_eq!(network.thin_paths.len(), 2);
    assert_eq!(network.thin_paths[1].rate, 5_000_000);
    let racks = network.racks.unwrap();
    assert_eq!(
        (racks.hosts, racks.oversubscription, racks.known),
        (40, 4.0, true)
    );
}

#[test]
fn every_fault_reaches_the_plan() {
    let faults = read(EVERYTHING).faults;
    let seconds = Duration::from_secs_f64;
    let crash = &faults.crashes[0];
    assert_eq!(
        (crash.agent, crash.at, crash.silent),
        (1, seconds(2.0), true)
    );
    assert_eq!(crash.back_after, Some(seconds(1.0)));
    let churn = faults.churn.unwrap();
    assert_eq!(churn.during, seconds(2.0)..seconds(8.0));
    assert_eq!((churn.share, churn.silent), (0.05, 0.5));
    assert_eq!(churn.hand_over, seconds(0.25));
    assert_eq!(crash.hand_over, Duration::ZERO);
    assert_eq!(faults.liars, vec![4, 5]);
    let killed = &faults.killed_origins[0];
    assert_eq!(
        (killed.origin, killed.at, killed.silent),
        (3, seconds(0.5), false)
    );
    assert_eq!(killed.back_after, Some(seconds(2.0)));
    assert_eq!(faults.outages[0], seconds(0.7)..seconds(3.0));
    assert!(faults.outages[1].contains(&seconds(1e6)));
    let partition = faults.partition.unwrap();
    assert_eq!(
        (partition.share, partition.during),
        (0.1, seconds(1.0)..seconds(4.0))
    );
}

#[test]
fn the_original_policy_is_a_start_that_knobs_change() {
    let plan = read("policy = 'original'\n[agent]\npipeline_agent = 5");
    assert_eq!(plan.blobs[0].piece_length.bytes(), 4 << 20);
    let blob = "policy = 'original'\n[[blobs]]\nsize = '1GB'";
    let piece_length = |text: &str| read(text).blobs[0].piece_length.bytes();
    assert_eq!(piece_length(blob), 4 << 20);
    assert_eq!(
        piece_length(&format!("{blob}\npiece_length = '1MiB'")),
        1 << 20
    );
    assert_eq!((plan.agent.max_degree, plan.agent.pipeline_agent), (10, 5));
    assert_eq!((plan.origin.offers, plan.origin.pipeline_agent), (0, 3));
    assert_eq!((plan.tracker.degree, plan.tracker.balanced), (10, false));
    let plan = read("policy = 'original'\n[tracker]\nbalanced = true\nnear_share = 0.5");
    assert_eq!(
        (plan.tracker.balanced, plan.tracker.near_share),
        (true, 0.5)
    );
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_that_exists() {
    for (text, words) in [
        (
            "seed = 1\nhost = 3",
            "line 2, `host = 3`: unknown key `host`, did you mean `hosts`?",
        ),
        ("[caps]\nupp = 3", "did you mean `up`?"),
        ("[arrival]\nwithin = 3", "did you mean `within_seconds`?"),
        ("[agent]\ntarget_degre = 3", "did you mean `target_degree`?"),
        ("[tracker]\nmax_handouts = 3", "did you mean `max_handout`?"),
        (
            "[network]\nracks = { hosts = 4, oversubscribed = 1 }",
            "did you mean `oversubscription`?",
        ),
        (
            "[caps]\nbandwidth = 3",
            "unknown key `bandwidth`; here can be: up, down, origin, disk",
        ),
    ] {
        let told = refusal(text);
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn a_value_out_of_bounds_is_named_with_its_line_and_the_bounds() {
    let bytes = "expected bytes such as 4096, \"300MB\" or \"1.5GiB\", at least 1";
    let longest = &format!("at most {}GiB", MetaInfo::MAX_LENGTH >> 30);
    for (text, words) in [
        ("hosts = 0", "`0`, expected a whole number from 1 to 100000"),
        ("hosts = 100001", "a whole number from 1 to 100000"),
        ("hosts = 2.5", "a whole number from 1 to 100000"),
        ("seed = -1", "a whole number from 0"),
        ("origins = 1001", "a whole number from 0 to 1000"),
        ("trackers = 0", "a whole number from 1 to 1000"),
        ("known_peers = 1001", "a whole number from 0 to 1000"),
        ("readers = 1", "expected a boolean"),
        ("policy = 'best'", "expected `kraken` or `original`"),
        ("limit_seconds = -1", "seconds from 0 to 1000000"),
        ("limit_seconds = nan", "seconds from 0 to 1000000"),
        ("[[blobs]]\nsize = 0", bytes),
        ("[[blobs]]\nsize = 'lots'", bytes),
        ("[[blobs]]\nsize = '9PiB'", longest),
        ("[[blobs]]\nsize = 1.5", bytes),
        ("[[blobs]]\ncount = 1", "missing field `size`"),
        ("[[blobs]]\nsize = 1\ncount = 0", "from 1 to 10000"),
        ("[[blobs]]\nsize = 1\nshare = 1.5", "a share from 0 to 1"),
        (
            "[[blobs]]\nsize = 1\npiece_length = '3MiB'",
            "a power of two from 256KiB to 16MiB",
        ),
        ("blobs = []", "at least one blob"),
        ("[caps]\nup = 0", bytes),
        ("[caps]\ndown = '-3MB'", bytes),
        ("[network]\nnoise = 2", "a share from 0 to 1"),
        ("[network]\nloss = 1.0", "a share from 0 to 0.5"),
        ("[network]\nrtt_ms = [2, 1]", "smaller number first: [1, 2]"),
        ("[network]\nrtt_ms = 2", "an array of length 2"),
        (
            "[network]\npauses = { per_second = 0, length_ms = [1, 2] }",
            "a number per second from 0.001 to 1000",
        ),
        ("[network]\nthin_paths = [{ share = 0.1, rate = 0 }]", bytes),
        (
            "[network]\nracks = { hosts = 4, oversubscription = 0 }",
            "a factor from 0.01 to 1000",
        ),
        ("[agent]\ntarget_degree = 0", "a whole number from 1"),
        (
            "[agent]\nhave_delay_ms = -1",
            "milliseconds from 0 to 10000000",
        ),
    ] {
        let told = refusal(text);
        assert!(told.contains(words), "{told}");
        assert!(told.starts_with("line "), "{told}");
    }
}

#[test]
fn what_a_file_names_must_exist() {
    for (text, words) in [
        (
            "owners = 4",
            "line 1, `owners = 4`: a blob can be on 3 origins at most",
        ),
        (
            "[arrival]\nlate = [{ host = 20, at_seconds = 1 }]",
            "no 20 among the hosts: they go from 0 to 19",
        ),
        (
            "[faults]\nliars = [\n1,\n20]",
            "line 4, `20]`: there is no 20",
        ),
        (
            "[faults]\ncrashes = [{ host = 99, at_seconds = 1 }]",
            "among the hosts",
        ),
        (
            "[faults]\nkilled_origins = [{ origin = 3, at_seconds = 1 }]",
            "no 3 among the origins: they go from 0 to 2",
        ),
        (
            "origins = 0\n[faults]\nkilled_origins = [{ origin = 0, at_seconds = 1 }]",
            "the plan has none",
        ),
        (
            "[faults]\noutages = [{ from_seconds = 2, to_seconds = 1 }]",
            "line 2, `outages = [{ from_seconds = 2, to_seconds = 1 }]`: to_seconds (1) must come after from_seconds (2)",
        ),
        (
            "[faults]\nchurn = { share = 1, from_seconds = 2, to_seconds = 2 }",
            "must come after",
        ),
        (
            "[faults]\npartition = { share = 1, from_seconds = 2, to_seconds = 2 }",
            "must come after",
        ),
    ] {
        let told = refusal(text);
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    let error = Plan::from_toml("hosts = 3\nseed == 4").unwrap_err();
    assert_eq!(error.line(), Some(2));
    assert!(refusal("hosts = 3\nhosts = 4").contains("duplicate key"));
    let long = format!("name = \"{}\nhosts = 1", "ä".repeat(500));
    assert!(refusal(&long).len() < 300);
}
