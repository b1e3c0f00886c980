//! Would it do for my cluster? The machines that ship, on hosts that are played: 300 hosts in racks of 40
//! with uplinks that are oversubscribed 4:1, one in twenty slow, pull a release of 256 MiB while an
//! origin dies. The same seed gives the same run. `cargo run --release -p kraken-examples --example simulate_cluster`
#![expect(clippy::print_stdout, reason = "an example that shows what it does")]

use kraken_sim::{Plan, run};

const CLUSTER: &str = r#"
name = "my cluster"
seed = 7
hosts = 300

[[blobs]]
size = "256MiB"

[caps]
up = "300MB"
down = "300MB"

[network]
racks = { hosts = 40, oversubscription = 4.0 }
slow = { share = 0.05, up = "60MB", down = "60MB" }

[faults]
killed_origins = [{ origin = 0, at_seconds = 0.5 }]
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    simulate(CLUSTER)
}

fn simulate(cluster: &str) -> Result<(), Box<dyn std::error::Error>> {
    let plan = Plan::from_toml(cluster)?;
    let report = run(&plan);
    assert!(
        report.finished() && report.violations.is_empty(),
        "{:?}",
        report.violations
    );
    println!(
        "at 300 MB/s a host would need {:.2} s alone; half of the hosts need {:.2} times that, 99 of 100 at most {:.2} times",
        report.floor_seconds, report.ratio.p50, report.ratio.p99
    );
    println!(
        "the origins sent {:.1} copies of it to {} hosts",
        report.origin_bytes_ratio, report.hosts
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CLUSTER, simulate};

    #[test]
    fn a_smaller_one_comes_to_its_end() {
        let smaller = CLUSTER
            .replace("hosts = 300", "hosts = 60")
            .replace("256MiB", "32MiB");
        assert_ne!(smaller, CLUSTER);
        simulate(&smaller).unwrap();
    }
}
