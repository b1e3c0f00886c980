//! What ships under `deploy/` is what the processes take.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kraken_daemon::agent::AgentConfig;
use kraken_daemon::build_index::BuildIndexConfig;
use kraken_daemon::config::{load, ring};
use kraken_daemon::origin::OriginConfig;
use kraken_daemon::proxy::ProxyConfig;
use kraken_daemon::tracker::TrackerConfig;
use kraken_daemon::{ConfigError, OriginEntry};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// Reads a configuration, such as `agent-1.yaml`, as the process does that it is for.
fn read(path: &Path) -> Result<(), ConfigError> {
    let name = path.file_stem().unwrap().to_str().unwrap();
    match name.trim_end_matches(|it: char| it == '-' || it.is_ascii_digit()) {
        "agent" => load::<AgentConfig>(path).map(drop),
        "origin" => load::<OriginConfig>(path).map(drop),
        "tracker" => load::<TrackerConfig>(path).map(drop),
        "proxy" => load::<ProxyConfig>(path).map(drop),
        "build-index" => load::<BuildIndexConfig>(path).map(drop),
        "origins" => {
            let origins: Vec<OriginEntry> = load(path)?;
            assert!(!ring(&origins).unwrap().is_empty(), "{}", path.display());
            Ok(())
        }
        "trackers" | "build-indexes" => {
            let urls: Vec<String> = load(path)?;
            let https = |url: &String| url.starts_with("https://");
            assert!(!urls.is_empty() && urls.iter().all(https), "{urls:?}");
            Ok(())
        }
        _ => panic!("nobody reads {}", path.display()),
    }
}

fn read_all(dir: &Path, at_least: usize) {
    let files = fs::read_dir(dir).unwrap().map(|it| it.unwrap().path());
    let files: Vec<_> = files
        .filter(|it| it.extension() == Some("yaml".as_ref()))
        .collect();
    assert!(
        files.len() >= at_least,
        "{} files in {}",
        files.len(),
        dir.display()
    );
    for file in files {
        read(&file).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The address of a `.socket` unit.
fn listened(units: &Path, unit: &str) -> String {
    let text = fs::read_to_string(units.join(unit)).unwrap();
    let line = text.lines().find_map(|it| it.strip_prefix("ListenStream="));
    line.unwrap().to_string()
}

/// A process takes a socket only at the address of its configuration.
fn sockets_fit(units: &Path, configs: &Path) {
    let agent: AgentConfig = load(&configs.join("agent.yaml")).unwrap();
    let socket = listened(units, "kraken-agent.socket");
    assert_eq!(socket, agent.registry_listen.to_string());
    let proxy: ProxyConfig = load(&configs.join("proxy.yaml")).unwrap();
    assert_eq!(
        listened(units, "kraken-proxy.socket"),
        proxy.listen.to_string()
    );
}

#[test]
fn the_examples_are_read_by_the_processes_that_they_are_for() {
    read_all(&deploy().join("config"), 8);
    read_all(&deploy().join("compose/config"), 10);
    sockets_fit(&deploy().join("systemd"), &deploy().join("config"));
}

#[test]
fn units_let_a_process_reload_and_read_what_it_needs() {
    for role in ["agent", "origin", "tracker", "proxy", "build-index"] {
        let path = deploy().join(format!("systemd/kraken-{role}.service"));
        let unit = fs::read_to_string(path).unwrap();
        let has = |line: &str| unit.lines().any(|it| it == line);
        assert!(has("ExecReload=/bin/kill -HUP $MAINPID"), "{role}");
        // These two read files of /proc that are of no process.
        let needs_all = ["agent", "origin"].contains(&role);
        assert_eq!(has("ProcSubset=pid"), !needs_all, "{role}");
    }
}

#[test]
fn every_process_has_a_user_of_its_own_who_reads_its_own_key_only() {
    let units = deploy().join("systemd");
    let users = fs::read_to_string(units.join("kraken.sysusers")).unwrap();
    let modes = fs::read_to_string(units.join("kraken.tmpfiles")).unwrap();
    for role in ["agent", "origin", "tracker", "proxy", "build-index"] {
        let unit = fs::read_to_string(units.join(format!("kraken-{role}.service"))).unwrap();
        for key in ["User", "Group"] {
            let wanted = format!("{key}=kraken-{role}");
            assert!(unit.lines().any(|it| it == wanted), "{role}: no {wanted}");
        }
        let made = format!("u kraken-{role} ");
        assert!(users.lines().any(|it| it.starts_with(&made)), "{role}");
        let key = format!("z /etc/kraken/tls/{role}.key 0640 root kraken-{role}");
        assert!(modes.lines().any(|it| it == key), "{role}");
    }
    let keys = modes.lines().filter(|it| it.contains(".key"));
    let (own, other): (Vec<_>, Vec<_>) = keys.partition(|it| it.contains("kraken-"));
    assert_eq!(own.len(), 5);
    assert_eq!(other, ["z /etc/kraken/tls/operator.key 0600 root root"]);
}

#[test]
fn a_key_that_nobody_knows_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(deploy().join("config/tracker.yaml")).unwrap();
    let path = dir.path().join("tracker.yaml");
    fs::write(&path, text + "listens: 0.0.0.0:1\n").unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains("listens"), "{error}");
}

/// Stands in for the programs: writes the files that `kraken ca` writes, and each key has a number of its own.
const PROGRAM: &str = r#"#!/bin/sh
set -e
what=$2
while [ $# -gt 0 ]; do
    case $1 in
    --dir) dir=$2 ;;
    --name) name=$2 ;;
    --out) out=$2 ;;
    --cert) cert=$2 ;;
    esac
    shift
done
case $what in
init) mkdir -p "$dir" && echo AUTHORITY $$ >"$dir/ca.crt" && echo KEY >"$dir/ca.key" ;;
issue)
    [ ! -e "$out/$name.key" ]
    echo ISSUED >"$out/$name.crt"
    echo KEY $$ >"$out/$name.key"
    cp "$dir/ca.crt" "$out/"
    ;;
renew) [ -e "$cert" ] && echo RENEWED >"$cert" ;;
esac
"#;

/// The turn of one test: who is started while another writes a program has that open too, and what is open to write
/// cannot be run.
fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory to call `bundle` from, with programs in it; archives go to `out`.
struct Bench {
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        let turn = turn();
        let dir = tempfile::tempdir().unwrap();
        let roles = ["agent", "origin", "tracker", "proxy", "build-index"];
        let others = roles.map(|role| format!("kraken-{role}"));
        for name in others.iter().map(String::as_str).chain(["kraken"]) {
            let path = dir.path().join(name);
            fs::write(&path, PROGRAM).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir, _turn: turn }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Calls it, with paths as seen from the directory.
    fn call(&self, args: &[&str]) -> Output {
        let script = deploy().join("systemd/bundle").canonicalize().unwrap();
        Command::new(script)
            .args(args)
            .current_dir(self.dir.path())
            .env("KRAKEN_BIN", ".")
            .env("KRAKEN_OUT", "out")
            .output()
            .unwrap()
    }

    fn bundle(&self, args: &[&str]) {
        let done = self.call(args);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
    }

    /// What is in an archive.
    fn unpacked(&self, name: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let archive = self.out().join(name).with_extension("tar.gz");
        let mut tar = Command::new("tar");
        let done = tar
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(root.path())
            .status()
            .unwrap();
        assert!(done.success(), "{}", archive.display());
        root
    }

    /// The files of an archive that processes prove themselves by.
    fn tls(&self, name: &str) -> BTreeMap<String, String> {
        let root = self.unpacked(name);
        let files = fs::read_dir(root.path().join("etc/kraken/tls")).unwrap();
        let files = files.map(|file| {
            let file = file.unwrap();
            let text = fs::read_to_string(file.path()).unwrap();
            (file.file_name().into_string().unwrap(), text)
        });
        files.collect()
    }
}

#[test]
fn a_bundle_without_programs_says_what_to_build() {
    let bench = Bench::new();
    fs::remove_file(bench.dir.path().join("kraken-proxy")).unwrap();
    let done = bench.call(&["a=10.0.0.1"]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(
        said.contains("kraken-proxy") && said.contains("make release"),
        "{said}"
    );
    assert!(!bench.out().exists());
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(dir).unwrap();
    files
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn every_host_of_a_bundle_gets_configurations_of_its_own() {
    for (addresses, any) in [
        (["10.1.0.1", "10.1.0.2", "10.1.0.3"], "0.0.0.0"),
        (["fd00::1", "fd00::2", "fd00::3"], "[::]"),
    ] {
        let hosts = ["a", "b", "c-3"];
        let named: Vec<_> = hosts
            .iter()
            .zip(addresses)
            .map(|(host, at)| format!("{host}={at}"))
            .collect();
        let bench = Bench::new();
        bench.bundle(&named.iter().map(String::as_str).collect::<Vec<_>>());
        for (host, address) in hosts.iter().zip(addresses) {
            let root = bench.unpacked(host);
            let etc = root.path().join("etc/kraken");
            read_all(&etc, 8);
            sockets_fit(&root.path().join("usr/lib/systemd/system"), &etc);
            let origin: OriginConfig = load(&etc.join("origin.yaml")).unwrap();
            let told = origin.advertise.unwrap();
            assert_eq!(
                (origin.name.as_str(), told.ip().to_string().as_str()),
                (*host, address)
            );
            let listens = origin.listen.to_string();
            assert!(listens.starts_with(any), "{listens}");
            let index: BuildIndexConfig = load(&etc.join("build-index.yaml")).unwrap();
            let names: Vec<_> = index
                .build_indexes
                .iter()
                .map(|it| it.name.as_str())
                .collect();
            assert_eq!(
                (index.name.as_deref(), &names[..]),
                (Some(*host), &hosts[..])
            );
            let agent: AgentConfig = load(&etc.join("agent.yaml")).unwrap();
            assert_eq!(agent.advertise.unwrap().ip(), told.ip());
        }
    }
}

#[test]
fn keys_are_in_archives_only_and_the_operators_in_one_of_its_own() {
    let bench = Bench::new();
    bench.bundle(&["a=10.0.0.1", "b=10.0.0.2"]);
    let there = ["a.tar.gz", "b.tar.gz", "ca", "operator.tar.gz"];
    assert_eq!(names_in(&bench.out()), there.map(String::from).into());
    let root = bench.unpacked("a");
    let tls = root.path().join("etc/kraken/tls");
    assert!(!tls.join("operator.key").exists() && !tls.join("operator.crt").exists());
    for (root, key) in [
        (&root, "agent.key"),
        (&bench.unpacked("operator"), "operator.key"),
    ] {
        let key = root.path().join("etc/kraken/tls").join(key);
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o077, 0);
        let ca = key.with_file_name("ca.crt");
        assert_eq!(ca.metadata().unwrap().permissions().mode() & 0o444, 0o444);
    }
}

#[test]
fn a_further_host_gets_an_agent_of_the_same_cluster() {
    let bench = Bench::new();
    let early = bench.call(&["--agent", "d=10.0.0.4"]);
    assert_eq!(early.status.code(), Some(1), "there is no cluster yet");
    bench.bundle(&["a=10.0.0.1", "b=10.0.0.2"]);
    let before = bench.tls("a");
    bench.bundle(&["--agent", "d=10.0.0.4"]);
    assert_eq!(bench.tls("a"), before);

    let root = bench.unpacked("d");
    let etc = root.path().join("etc/kraken");
    read_all(&etc, 3);
    let agent: AgentConfig = load(&etc.join("agent.yaml")).unwrap();
    assert_eq!(agent.advertise.unwrap().to_string(), "10.0.0.4:7611");
    let of_a = bench.unpacked("a");
    for list in ["trackers.yaml", "build-indexes.yaml"] {
        let same = |root: &Path| fs::read_to_string(root.join("etc/kraken").join(list)).unwrap();
        assert_eq!(same(root.path()), same(of_a.path()));
    }
    let tls = ["agent.crt", "agent.key", "ca.crt"].map(String::from);
    assert_eq!(names_in(&etc.join("tls")), tls.into());
    let units = ["kraken-agent.service", "kraken-agent.socket"].map(String::from);
    assert_eq!(
        names_in(&root.path().join("usr/lib/systemd/system")),
        units.into()
    );

    for taken in ["a=10.0.0.5", "e=10.0.0.1"] {
        let done = bench.call(&["--agent", taken]);
        assert_eq!(done.status.code(), Some(2), "{taken}");
    }
}

#[test]
fn run_again_it_keeps_the_keys_of_the_archives_that_are_there() {
    let bench = Bench::new();
    bench.bundle(&["a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3"]);
    let before = ["a", "b", "c", "operator"].map(|name| bench.tls(name));
    fs::remove_file(bench.out().join("b.tar.gz")).unwrap();
    bench.bundle(&["a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.7", "d=10.0.0.4"]);
    let after = ["a", "b", "c", "operator"].map(|name| bench.tls(name));
    for (at, (key, is_kept)) in [
        ("origin.key", true),
        ("origin.key", false),
        ("origin.key", false),
        ("operator.key", true),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(before[at][key] == after[at][key], is_kept, "{at}");
        let cert = &after[at][&key.replace(".key", ".crt")];
        let said = if is_kept { "RENEWED\n" } else { "ISSUED\n" };
        assert_eq!(cert, said, "{at}");
    }
    assert_eq!(bench.tls("d")["ca.crt"], before[0]["ca.crt"]);
}

#[test]
fn hosts_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    for hosts in [
        &["kraken-1"][..],
        &["Kraken=10.0.0.1"],
        &["=10.0.0.1"],
        &["a="],
        &["a=10.0.0.1;true"],
        &["ca=10.0.0.1"],
        &["operator=10.0.0.1"],
        &["a=10.0.0.1", "b=10.0.0.2", "a=10.0.0.3"],
        &["a=10.0.0.1", "b=10.0.0.1"],
        &["--agent"],
        &[],
    ] {
        let done = bench.call(hosts);
        assert_eq!(done.status.code(), Some(2), "{hosts:?}");
        assert!(!bench.out().exists(), "{hosts:?}");
    }
}

#[test]
fn what_the_chart_writes_is_read_by_the_processes() {
    // Helm is not everywhere: `.ci/deploy` renders the chart and says where.
    let Some(dir) = std::env::var_os("KRAKEN_CHART_CONFIGS") else {
        eprintln!("SKIPPED: KRAKEN_CHART_CONFIGS does not say where the chart was rendered");
        return;
    };
    let variants: Vec<_> = fs::read_dir(dir).unwrap().collect();
    assert!(variants.len() >= 4);
    for variant in variants {
        read_all(&variant.unwrap().path(), 8);
    }
}
