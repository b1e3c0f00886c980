//! The namespaces that the test runs in, and what it finds there.

use std::env;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Set in the run inside.
const INSIDE: &str = "KRAKEN_CLIENTS_INSIDE";
/// A failure instead of a skip.
const REQUIRE: &str = "KRAKEN_REQUIRE_CLIENTS";
/// State of the machine's own clients is neither seen nor touched.
const PREPARE: &str = "set -e
ip link set lo up
mount -t tmpfs tmpfs /run
for dir in /var/lib/containers /etc/containerd /etc/docker; do
    mkdir -p $dir
    mount -t tmpfs tmpfs $dir
done
exec \"$@\"";

/// Whether this is the run in the namespaces.
pub(crate) fn inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// A line on stderr that no test harness holds back.
pub(crate) fn say(line: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{line}").unwrap();
}

/// Tells that something is left out, or fails where nothing may be.
fn skip(what: &str, why: &str) {
    let line = format!("the checks of {what}: {why}");
    assert!(
        env::var(REQUIRE).as_deref() != Ok("1"),
        "{REQUIRE}=1 forbids to skip {line}"
    );
    say(&format!("SKIPPED: {line}"));
}

/// Whether a program is missing, and the checks of `what` are to be skipped.
pub(crate) fn lacks(what: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| find(program).is_none())
        .copied()
        .collect();
    if !missing.is_empty() {
        skip(what, &format!("not installed: {}", missing.join(", ")));
    }
    !missing.is_empty()
}

/// Where programs are, also those for root.
pub(crate) fn search_path() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// The program's file.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Runs one test of this file in new namespaces; gives what it printed to stdout.
pub(crate) fn run_inside(test: &str) -> Option<String> {
    if lacks("every client", &["unshare", "setpriv", "ip", "mount"]) {
        return None;
    }
    let probe = command(&["true"]).output().unwrap();
    if !probe.status.success() {
        let errors = String::from_utf8_lossy(&probe.stderr);
        let why = format!("no namespaces, root is needed: {}", errors.trim());
        skip("every client", &why);
        return None;
    }
    let exe = env::current_exe().unwrap();
    let output = command(&[exe.to_str().unwrap(), "--exact", test, "--nocapture"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "failed in the namespaces, see above\n{stdout}"
    );
    Some(stdout)
}

/// A command that is to run in new namespaces. All that is in them ends with it, and it ends with
/// the test.
fn command(program: &[&str]) -> Command {
    let mut words = Vec::new();
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout.trim_ascii() != b"0" && find("sudo").is_some() {
        words.extend(["sudo", "-n"].map(str::to_string));
    }
    words.extend(["setpriv", "--pdeathsig", "KILL", "env"].map(str::to_string));
    words.push(format!("PATH={}", search_path()));
    words.push(format!("{INSIDE}=1"));
    for name in [REQUIRE, "TMPDIR", "RUST_BACKTRACE"] {
        words.extend(env::var(name).map(|value| format!("{name}={value}")));
    }
    words.extend(
        "unshare --net --mount --pid --fork --kill-child --mount-proc sh -c"
            .split(' ')
            .map(str::to_string),
    );
    words.extend([PREPARE, "sh"].map(str::to_string));
    words.extend(program.iter().map(ToString::to_string));
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .env("PATH", search_path())
        .stdin(Stdio::null());
    command
}
