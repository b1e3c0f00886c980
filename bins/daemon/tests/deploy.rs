//! What ships under `deploy/` is what the processes take.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
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
fn a_key_that_nobody_knows_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(deploy().join("config/tracker.yaml")).unwrap();
    let path = dir.path().join("tracker.yaml");
    fs::write(&path, text + "listens: 0.0.0.0:1\n").unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains("listens"), "{error}");
}

/// Stands in for the programs: writes the files that `kraken ca` writes.
const PROGRAM: &str = r#"#!/bin/sh
[ "$1 $2" = "ca issue" ] || exec mkdir -p "$4"
while [ $# -gt 0 ]; do
    case $1 in
    --name) name=$2 ;;
    --out) out=$2 ;;
    esac
    shift
done
for file in "$name.crt" "$name.key" ca.crt; do echo PEM >"$out/$file"; done
"#;

/// The turn of one test: who is started while another writes a program has that open too, and what is open to write
/// cannot be run.
fn turn() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the archives of three hosts, and gives the directory that they are in.
fn bundle(hosts: &[&str]) -> tempfile::TempDir {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "kraken",
        "kraken-agent",
        "kraken-origin",
        "kraken-tracker",
        "kraken-proxy",
        "kraken-build-index",
    ] {
        let path = dir.path().join(name);
        fs::write(&path, PROGRAM).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let done = Command::new(deploy().join("systemd/bundle"))
        .args(hosts)
        .env("KRAKEN_BIN", dir.path())
        .env("KRAKEN_OUT", dir.path().join("out"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    dir
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
        let dir = bundle(&named.iter().map(String::as_str).collect::<Vec<_>>());
        for (host, address) in hosts.iter().zip(addresses) {
            let root = dir.path().join("out").join(host);
            assert!(root.with_extension("tar.gz").is_file());
            let etc = root.join("etc/kraken");
            read_all(&etc, 8);
            sockets_fit(&root.join("usr/lib/systemd/system"), &etc);
            let origin: OriginConfig = load(&etc.join("origin.yaml")).unwrap();
            let told = origin.advertise.unwrap();
            assert_eq!(
                (origin.name.as_str(), told.ip().to_string().as_str()),
                (*host, address)
            );
            assert!(
                origin.listen.to_string().starts_with(any),
                "{}",
                origin.listen
            );
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
            let tls = etc.join("tls/agent.key");
            assert_eq!(tls.metadata().unwrap().permissions().mode() & 0o077, 0);
        }
    }
}

#[test]
fn hosts_that_make_no_sense_are_refused() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for host in [
        "kraken-1",
        "Kraken=10.0.0.1",
        "=10.0.0.1",
        "a=",
        "a=10.0.0.1;true",
    ] {
        let done = Command::new(deploy().join("systemd/bundle"))
            .arg(host)
            .env("KRAKEN_BIN", dir.path())
            .env("KRAKEN_OUT", dir.path().join("out"))
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(2), "{host}");
        assert!(!dir.path().join("out").exists(), "{host}");
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
