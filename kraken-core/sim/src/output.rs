//! A report for programs and for people.

use std::fmt::Write as _;

use serde::Serialize;

use crate::report::{Percentiles, Report};

/// The keys in their order; `docs/simulator.md` explains them.
#[derive(Serialize)]
struct Json<'a> {
    plan: &'a str,
    hosts: usize,
    floor_seconds: f64,
    ratio: Ratio,
    unfinished: usize,
    origin_bytes_ratio: f64,
    duplicate_ratio: f64,
    messages_per_host: f64,
    control_bytes_per_host: f64,
    tracker_requests_per_second: f64,
    wall_seconds: f64,
    trace: &'a str,
    seed: u64,
    slow_ratio: Option<Ratio>,
    restarted_ratio: Option<Ratio>,
    blobs: Vec<BlobSeconds>,
    across_ratio: f64,
    longest_gap_seconds: f64,
    violations: &'a [String],
    ended_seconds: f64,
}

/// Times over their floor.
#[derive(Serialize)]
struct Ratio {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl From<Percentiles> for Ratio {
    fn from(of: Percentiles) -> Self {
        Self {
            p50: of.p50,
            p99: of.p99,
            p999: of.p999,
            max: of.max,
        }
    }
}

/// How long hosts took for one blob.
#[derive(Serialize)]
struct BlobSeconds {
    p50: f64,
    p999: f64,
    max: f64,
}

impl Report {
    /// One line of JSON. `seed` is the plan's, `wall_seconds` how long the caller's clock says that
    /// the run took. What has no value, such as the percentiles of no host, is null.
    pub fn to_json(&self, seed: u64, wall_seconds: f64) -> String {
        let blob = |it: &Percentiles| BlobSeconds {
            p50: it.p50,
            p999: it.p999,
            max: it.max,
        };
        let json = Json {
            plan: &self.plan,
            hosts: self.hosts,
            floor_seconds: self.floor_seconds,
            ratio: self.ratio.into(),
            unfinished: self.unfinished,
            origin_bytes_ratio: self.origin_bytes_ratio,
            duplicate_ratio: self.duplicate_ratio,
            messages_per_host: self.messages_per_host,
            control_bytes_per_host: self.control_bytes_per_host,
            tracker_requests_per_second: self.tracker_requests_per_second,
            wall_seconds,
            trace: &self.trace,
            seed,
            slow_ratio: self.slow_ratio.map(Into::into),
            restarted_ratio: self.restarted_ratio.map(Into::into),
            blobs: self.blobs.iter().map(blob).collect(),
            across_ratio: self.across_ratio,
            longest_gap_seconds: self.longest_gap_seconds,
            violations: &self.violations,
            ended_seconds: self.ended,
        };
        serde_json::to_string(&json).expect("numbers and text, and no map with other keys")
    }

    /// A short table. `seed` and `wall_seconds` as in [`Report::to_json`].
    pub fn to_text(&self, seed: u64, wall_seconds: f64) -> String {
        let mut table = Table::default();
        table.row("plan", format!("{}, seed {seed}", self.plan));
        table.row("hosts", format!("{}, {}", self.hosts, self.outcome()));
        table.row("floor", format!("{:.3} s", self.floor_seconds));
        table.row("time / floor", ratios(&self.ratio));
        for (name, of) in [
            ("  slow hosts", self.slow_ratio),
            ("  restarted", self.restarted_ratio),
        ] {
            if let Some(of) = of {
                table.row(name, ratios(&of));
            }
        }
        self.blob_rows(&mut table);
        table.row(
            "origins sent",
            format!("{:.2} x the blobs", self.origin_bytes_ratio),
        );
        table.row("duplicates", percent(self.duplicate_ratio));
        if self.across_ratio > 0.0 {
            table.row("across racks", percent(self.across_ratio));
        }
        let kilobytes = self.control_bytes_per_host / 1e3;
        table.row(
            "messages",
            format!("{:.0} per host, {kilobytes:.1} kB", self.messages_per_host),
        );
        let requests = self.tracker_requests_per_second;
        table.row("trackers", format!("{requests:.0} requests/s"));
        table.row("longest gap", format!("{:.3} s", self.longest_gap_seconds));
        table.row("took", format!("{wall_seconds:.1} s of real time"));
        table.row("trace", self.trace.clone());
        for violation in &self.violations {
            table.row("BROKEN RULE", violation.clone());
        }
        table.0
    }

    fn outcome(&self) -> String {
        let ended = self.ended;
        match self.unfinished {
            0 => format!("all done, ended at {ended:.3} s"),
            unfinished => format!("{unfinished} NOT DONE at {ended:.3} s"),
        }
    }

    fn blob_rows(&self, table: &mut Table) {
        for (number, of) in self.blobs.iter().enumerate().take(BLOB_ROWS) {
            let Percentiles { p50, p999, max, .. } = of;
            let seconds = match max.is_nan() {
                true => "no host".to_owned(),
                false => format!("p50 {p50:.3}  p99.9 {p999:.3}  max {max:.3} s"),
            };
            table.row(&format!("blob {number}"), seconds);
        }
        if let Some(more) = self.blobs.len().checked_sub(BLOB_ROWS + 1) {
            table.row("", format!("and {} more blobs", more + 1));
        }
    }
}

/// The most blobs of which a table tells.
const BLOB_ROWS: usize = 4;

/// Lines of a name and what it is.
#[derive(Default)]
struct Table(String);

impl Table {
    fn row(&mut self, name: &str, value: String) {
        let separator = if self.0.is_empty() { "" } else { "\n" };
        write!(self.0, "{separator}{name:<14}{value}").expect("text takes everything");
    }
}

fn ratios(of: &Percentiles) -> String {
    let Percentiles {
        p50,
        p90,
        p99,
        p999,
        max,
    } = of;
    if max.is_nan() {
        return "no host".to_owned();
    }
    format!("p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  max {max:.3}")
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::plan::{Crash, Faults, Plan};
    use crate::world::run;

    const KEYS: &str = "plan hosts floor_seconds ratio unfinished origin_bytes_ratio \
        duplicate_ratio messages_per_host control_bytes_per_host tracker_requests_per_second \
        wall_seconds trace seed slow_ratio restarted_ratio blobs across_ratio \
        longest_gap_seconds violations ended_seconds";

    fn keys(value: &Value) -> Vec<&str> {
        let object = value.as_object().expect("an object");
        object.keys().map(String::as_str).collect()
    }

    #[test]
    fn the_json_has_these_keys_in_this_order() {
        let plan = Plan::from_toml("name = 'tiny'\nseed = 3\nhosts = 4").unwrap();
        let json = run(&plan).to_json(plan.seed, 0.5);
        let value: Value = serde_json::from_str(&json).unwrap();
        let mut expected: Vec<_> = KEYS.split(' ').collect();
        let at = |key: &&str| json.find(&format!("\"{key}\":")).unwrap();
        assert!(expected.is_sorted_by_key(at), "{json}");
        expected.sort_unstable();
        let mut found = keys(&value);
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(keys(&value["ratio"]), ["max", "p50", "p99", "p999"]);
        assert_eq!(keys(&value["blobs"][0]), ["max", "p50", "p999"]);
        assert_eq!(
            (&value["plan"], &value["hosts"]),
            (&"tiny".into(), &4.into())
        );
        assert_eq!(
            (&value["seed"], &value["wall_seconds"]),
            (&3.into(), &0.5.into())
        );
        assert_eq!(
            (&value["unfinished"], &value["slow_ratio"]),
            (&0.into(), &Value::Null)
        );
        assert!(value["ratio"]["p50"].as_f64().unwrap() >= 1.0, "{json}");
        assert_eq!(value["violations"], Value::Array(Vec::new()));
    }

    #[test]
    fn what_no_host_has_done_is_null() {
        let plan = Plan::from_toml("hosts = 2\norigins = 0\nlimit_seconds = 2").unwrap();
        let report = run(&plan);
        assert!(report.to_text(1, 0.0).contains("2 NOT DONE"));
        assert!(!report.to_text(1, 0.0).contains("NaN"));
        let json = report.to_json(1, 0.0);
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&value["ratio"]["max"], &value["unfinished"]),
            (&Value::Null, &2.into())
        );
        assert_eq!(value["blobs"][0]["p50"], Value::Null);
        assert!(!json.contains("NaN"), "{json}");
    }

    #[test]
    fn the_table_names_who_was_slow_restarted_or_late_and_what_broke() {
        let crash = Crash {
            agent: 0,
            at: std::time::Duration::from_millis(100),
            silent: false,
            back_after: Some(std::time::Duration::from_millis(100)),
            hand_over: std::time::Duration::ZERO,
        };
        let mut plan = Plan::from_toml("hosts = 6\nblobs = [{ size = '9MB', count = 6 }]").unwrap();
        plan.faults = Faults {
            crashes: vec![crash],
            ..Faults::default()
        };
        let mut report = run(&plan);
        report.violations.push("a rule".to_owned());
        let text = report.to_text(1, 0.25);
        for words in [
            "hosts         6, all done",
            "  restarted   p50",
            "and 2 more blobs",
            "BROKEN RULE   a rule",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("slow hosts"), "{text}");
    }
}
