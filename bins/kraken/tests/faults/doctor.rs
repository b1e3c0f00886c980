//! `kraken doctor`: green on a cluster that is well, and each fault that it knows is named by it.

use std::fs;
use std::path::Path;
use std::process::Command;

use axum::Router;
use axum::routing::get;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken_core::net::CertAuthority;
use kraken_core::net::http::serve;
use kraken_daemon::doctor::blob::test_blob;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::common::{Lab, Ran, free_addr, identity, kraken, until, within};
use crate::namespace;

/// A finding as the doctor prints it.
fn finding<'a>(told: &'a Value, check: &str) -> &'a Value {
    let checks = told["checks"].as_array().unwrap();
    let found = checks
        .iter()
        .find(|it| it["check"].as_str().unwrap().starts_with(check));
    found.unwrap_or_else(|| panic!("nothing about {check} in {told:#}"))
}

/// It failed, or whatever `state` says, and the text and the advice together say all of this.
fn says(told: &Value, check: &str, state: &str, words: &[&str]) {
    let found = finding(told, check);
    assert_eq!(found["state"], state, "{told:#}");
    let text = format!("{} {}", found["what"], found["advice"]);
    for word in words {
        assert!(text.contains(word), "{check}: {word:?} is not in {text}");
    }
    assert_eq!(told["green"] == true, state != "failed", "{told:#}");
}

/// Runs the doctor of an agent.
async fn examine(agent: &str, root: &Path) -> (Ran, Value) {
    let root = root.to_str().unwrap();
    let ran = kraken(&["doctor", "--agent", agent, "--root", root, "--json"]).await;
    let told = serde_json::from_str(&ran.stdout);
    let told: Value = told.unwrap_or_else(|_| panic!("{}{}", ran.stdout, ran.stderr));
    assert_eq!(ran.status.success(), told["green"] == true);
    (ran, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_leads_nowhere_and_a_url_of_something_else_are_named() {
    within(120, "doctor", async {
        let nowhere = free_addr();
        let lab = Lab::start_with(1, 1, |role, config| {
            if role == "agent" {
                config["advertise"] = json!(nowhere);
                config["build_indexes"] = config["trackers"].clone();
            }
        })
        .await;
        let root = tempfile::tempdir().unwrap();
        let told = examine(&lab.host("agent-1"), root.path()).await.1;
        let way_in = finding(&told, "way in");
        assert_eq!(way_in["state"], "warning", "{told:#}");
        let text = format!("{} {}", way_in["what"], way_in["advice"]);
        assert!(
            text.contains(&nowhere.to_string()) && text.contains("advertise"),
            "{text}"
        );
        let words = ["of role tracker", "of role build-index", "correct the URL"];
        says(&told, "build-index", "failed", &words);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_that_is_away_is_named_by_the_doctor() {
    within(150, "doctor", async {
        let mut lab = Lab::start(2, 1).await;
        let (agent, root) = (lab.host("agent-1"), tempfile::tempdir().unwrap());
        let doctor = async || examine(&agent, root.path()).await.1;

        let told = doctor().await;
        assert_eq!(told["green"], true, "{told:#}");
        for check in [
            "tracker",
            "build-index",
            "clock of tracker",
            "origin origin-1",
            "path MTU",
            "way in",
            "test blob",
            "pull by a client",
            "certificate",
            "disk",
        ] {
            // The disk and the buffers of the machine that tests run on are its own affair.
            let state = finding(&told, check)["state"].as_str().unwrap();
            assert!(state == "ok" || check == "disk", "{told:#}");
        }
        says(&told, "test blob", "ok", &["4.0 MiB from origins"]);
        says(
            &told,
            "container runtimes",
            "skipped",
            &["kraken runtime install"],
        );
        let left = format!("/x/store/blobs/{}", test_blob().digest);
        assert!(lab.get_json("agent-1", &left).await.is_none());
        let words = kraken(&["doctor", "--agent", &agent, "--root", "/nowhere"]).await;
        assert!(
            words.status.success() && words.stdout.contains("ok"),
            "{words:?}"
        );

        lab.kill("tracker");
        says(
            &doctor().await,
            "tracker",
            "failed",
            &["takes no connection", "start it"],
        );
        lab.restart("tracker").await;
        lab.sees_origins(2).await;

        lab.kill("build-index");
        says(
            &doctor().await,
            "build-index",
            "failed",
            &["takes no connection", "start it"],
        );
        lab.restart("build-index").await;

        lab.kill("origin-2");
        lab.sees_origins(1).await;
        says(
            &doctor().await,
            "origin origin-2",
            "warning",
            &["does not answer"],
        );
        lab.kill("origin-1");
        lab.sees_origins(0).await;
        let told = doctor().await;
        says(&told, "origin origin-1", "failed", &["no origin answers"]);
        says(&told, "test blob", "failed", &["named above"]);
        for origin in ["origin-1", "origin-2"] {
            lab.restart(origin).await;
        }
        lab.sees_origins(2).await;
        until("all is well again", async || {
            (doctor().await["green"] == true).then_some(())
        })
        .await;

        lab.kill("agent-1");
        says(
            &doctor().await,
            "registry",
            "failed",
            &["does not answer", "--agent"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_clocks_that_do_not_fit_are_named_by_the_doctor() {
    within(120, "doctor", async {
        let mut lab = Lab::start(1, 1).await;
        let (agent, root) = (lab.host("agent-1"), tempfile::tempdir().unwrap());
        let tracker = lab.host("tracker").parse().unwrap();
        lab.kill("tracker");
        let fake = async |router: Router, authority: &CertAuthority| {
            let stop = CancellationToken::new();
            let identity = identity(authority, "tracker");
            let server = until("the tracker's port is free", async || {
                serve(tracker, router.clone(), Some(&identity), stop.clone()).ok()
            });
            let server = server.await;
            let told = examine(&agent, root.path()).await.1;
            stop.cancel();
            server.stopped().await.unwrap();
            told
        };

        let told = fake(Router::new(), &CertAuthority::create().unwrap()).await;
        says(
            &told,
            "tracker",
            "failed",
            &["UnknownIssuer", "another authority"],
        );

        let late = async || [("date", "Thu, 26 Nov 2020 13:50:49 GMT")];
        let late = Router::new().route("/readiness", get(late));
        let told = fake(late, lab.authority()).await;
        says(&told, "clock of tracker", "failed", &["behind", "NTP"]);

        let dying = async || (http::StatusCode::SERVICE_UNAVAILABLE, "out of tune");
        let dying = Router::new().route("/readiness", get(dying));
        let told = fake(dying, lab.authority()).await;
        says(&told, "tracker", "failed", &["not ready", "out of tune"]);

        // What this host would start with next time.
        let other = CertAuthority::create().unwrap().to_pem().0;
        fs::write(lab.path("ca.crt"), other).unwrap();
        let told = examine(&agent, root.path()).await.1;
        says(
            &told,
            "certificates",
            "failed",
            &["authority", "would not start"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runtimes_that_do_not_pull_through_the_agent_are_named_by_the_doctor() {
    within(120, "doctor", async {
        let own = |role: &str, config: &mut Value| {
            if role == "agent" {
                config["own_names"] = json!(["registry.example.test"]);
            }
        };
        let lab = Lab::start_with(1, 1, own).await;
        let (agent, root) = (lab.host("agent-1"), tempfile::tempdir().unwrap());
        let root = root.path();
        fs::create_dir_all(root.join("etc/containers")).unwrap();
        let text = root.to_str().unwrap();
        let install = async |upstream: &str| {
            let words = [
                "runtime",
                "install",
                "--root",
                text,
                "--agent",
                &agent,
                "--upstream",
                upstream,
            ];
            kraken(&words).await
        };
        install("registry.example.test").await;
        says(
            &examine(&agent, root).await.1,
            "mirror",
            "ok",
            &["registry.example.test"],
        );
        says(
            &examine(&agent, root).await.1,
            "podman and CRI-O",
            "ok",
            &[],
        );

        install("quay.io").await;
        says(
            &examine(&agent, root).await.1,
            "mirror",
            "failed",
            &["does not mirror quay.io"],
        );

        install("registry.example.test").await;
        fs::remove_dir_all(root.join("etc/containers/registries.conf.d")).unwrap();
        says(
            &examine(&agent, root).await.1,
            "podman and CRI-O",
            "failed",
            &["kraken runtime install"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_looks_at_every_process_of_a_cluster_in_a_directory() {
    within(100, "doctor", async {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions {
            agents: 2,
            origins: 2,
            dir: dir.path().to_path_buf(),
            base_port: None,
        };
        let cluster = Cluster::start(&options).await.unwrap();
        let text = dir.path().to_str().unwrap();
        let doctor = async || {
            let ran = kraken(&["doctor", "--dir", text, "--json"]).await;
            let told: Value = serde_json::from_str(&ran.stdout).unwrap();
            (ran.status.success(), told)
        };
        until("the cluster is well", async || {
            doctor().await.0.then_some(())
        })
        .await;
        let (_, told) = doctor().await;
        let of = |name: &str| {
            let mut checks = told["checks"].as_array().unwrap().iter();
            assert!(checks.any(|it| it["process"] == name), "{name} in {told:#}");
        };
        for name in [
            "tracker-1",
            "build-index-1",
            "proxy-1",
            "origin-1",
            "origin-2",
            "agent-1",
            "agent-2",
        ] {
            of(name);
        }
        cluster.stop().await;
        let (well, told) = doctor().await;
        assert!(!well);
        for check in ["tracker", "proxy", "origin", "registry"] {
            says(&told, check, "failed", &["start it"]);
        }
        let none = kraken(&["doctor", "--dir", "/nowhere"]).await;
        assert!(
            !none.status.success() && none.stderr.contains("kraken dev"),
            "{none:?}"
        );
    })
    .await;
}

/// Disks and networks with faults, in namespaces of their own.
#[test]
fn blocked_networks_and_full_disks_are_named_by_the_doctor() {
    if namespace::inside() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let faults = within(200, "faults of the host", faults_of_the_host());
        runtime.unwrap().block_on(faults);
        return;
    }
    if namespace::lacks("blocked networks", &["iptables", "ip", "mount"]) {
        return;
    }
    namespace::run_inside("doctor::blocked_networks_and_full_disks_are_named_by_the_doctor");
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let mut program = Command::new(words.next().unwrap());
    let program = program.args(words).env("PATH", namespace::search_path());
    let output = program.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
}

async fn faults_of_the_host() {
    let disk = tempfile::tempdir().unwrap();
    let disk = disk.path().to_str().unwrap();
    run(&format!("mount -t tmpfs -o size=64m tmpfs {disk}"));
    let store = |role: &str, config: &mut Value| {
        if role == "agent" {
            config["store"] = json!(disk);
        }
    };
    let lab = Lab::start_with(1, 1, store).await;
    let (agent, root) = (lab.host("agent-1"), tempfile::tempdir().unwrap());
    let doctor = async || examine(&agent, root.path()).await.1;
    says(&doctor().await, "disk", "warning", &["only", "are free"]);

    let peer = fs::read_to_string(lab.config("origin-1")).unwrap();
    let peer: Value = serde_json::from_str(&peer).unwrap();
    let peer: std::net::SocketAddr = peer["peer_listen"].as_str().unwrap().parse().unwrap();
    let rule = |how: &str, protocol: &str| {
        let port = peer.port();
        run(&format!(
            "iptables -w {how} INPUT -p {protocol} --dport {port} -j DROP"
        ));
    };
    rule("-I", "udp");
    let told = doctor().await;
    says(
        &told,
        "origin origin-1",
        "failed",
        &["UDP to", "is blocked", "transport: auto"],
    );
    rule("-I", "tcp");
    says(
        &doctor().await,
        "origin origin-1",
        "failed",
        &["neither UDP nor TCP"],
    );
    rule("-D", "udp");
    rule("-D", "tcp");

    run("ip link set lo mtu 1300");
    says(
        &doctor().await,
        "path MTU",
        "warning",
        &["datagrams of 12", "MTU"],
    );
    run("ip link set lo mtu 65536");

    let filler = format!("{disk}/filler");
    // The disk has no room for all of it.
    fs::write(&filler, vec![1; 65 << 20]).unwrap_err();
    says(&doctor().await, "disk", "failed", &["the disk is full"]);
    fs::remove_file(&filler).unwrap();
    until("all is well again", async || {
        (doctor().await["green"] == true).then_some(())
    })
    .await;

    // What is open for writing stays so; only this place becomes read-only.
    run(&format!("mount --bind {disk} {disk}"));
    run(&format!("mount -o remount,bind,ro {disk}"));
    says(
        &doctor().await,
        "disk",
        "failed",
        &["mounted read-only", "dmesg"],
    );
}
