//! Runtimes are told to pull, by the command line and by an agent.

use std::fs;

use serde_json::json;

use crate::lab::{self, Lab};
use crate::{MIRRORED, WORDS, layout, namespace};

const KRAKEN: &str = env!("CARGO_BIN_EXE_kraken");

/// Pushes an image of a layer that no runtime has yet; its digest.
fn image(lab: &Lab, tag: &str) -> String {
    let (layout, file) = (lab.path("image"), lab.path(tag));
    fs::write(&file, format!("{tag} {}", "x".repeat(1_000_000))).unwrap();
    lab.ok(&format!("umoci tag --image {layout}:v1 {tag}"));
    lab.ok(&format!(
        "umoci insert --image {layout}:{tag} {file} /data/{tag}"
    ));
    let target = format!("{}/library/preloaded:{tag}", lab.proxy());
    lab.skopeo_push(&format!("oci:{layout}:{tag}"), &target, "");
    layout::digest(&layout, tag)
}

pub(crate) fn containerd(lab: &Lab) {
    let programs = ["containerd", "ctr", "runc", "containerd-shim-runc-v2"];
    if namespace::lacks("containerd", &programs) {
        return;
    }
    let socket = lab.path("containerd.sock");
    let preload = json!({
        "runtime": "containerd", "socket": socket, "namespace": "preload", "snapshotter": "native",
    });
    let (_agent, addr) = lab.start_agent("agent-of-containerd", preload);
    let _containerd = lab.start_containerd(&addr);
    let ctr = |namespace: &str| format!("ctr --address {socket} --namespace {namespace}");
    let holds = |namespace: &str, name: &str, digest: &str| {
        let listed = lab.ok(&format!("{} images list name=={name}", ctr(namespace)));
        assert!(listed.contains(digest), "{listed}");
    };
    let digest = image(lab, "by-agent");
    let ask = format!("{KRAKEN} preload --agent {addr}");
    let said = lab.ok(&format!("{ask} library/preloaded:by-agent"));
    let name = format!("{addr}/library/preloaded:by-agent");
    assert_eq!(said, format!("the runtime has {name}\n"));
    holds("preload", &name, &digest);
    lab.ok(&format!(
        "{ask} library/preloaded@{digest} --namespace {}",
        lab::CGROUP
    ));
    let by_digest = format!("{addr}/library/preloaded@{digest}");
    holds(lab::CGROUP, &by_digest, &digest);
    let run = format!("{} run --rm --snapshotter native", ctr(lab::CGROUP));
    assert_eq!(
        lab.ok(&format!("{run} {by_digest} preloaded")).trim(),
        WORDS
    );
    let errors = lab.fails(&format!("{ask} library/preloaded:none"));
    assert!(errors.contains("not found"), "{errors}");
    let errors = lab.fails(&format!(
        "{ask} --runtime podman --socket /x library/preloaded:v1"
    ));
    assert!(
        errors.contains("socket: this means nothing to podman"),
        "{errors}"
    );

    // From here, by the mirror that is configured, under the name that containers use.
    let digest = image(lab, "by-mirror");
    let words = format!(
        "--runtime containerd --socket {socket} --namespace other --snapshotter native \
         --registry {MIRRORED} --hosts-dir {}",
        lab.hosts()
    );
    lab.ok(&format!("{ask} {words} library/preloaded:by-mirror"));
    let name = format!("{MIRRORED}/library/preloaded:by-mirror");
    holds("other", &name, &digest);
}

pub(crate) fn podman(lab: &Lab) {
    if namespace::lacks("podman", &["podman", "runc", "conmon"]) {
        return;
    }
    let (_agent, addr) = lab.start_agent("agent-of-podman", json!({"runtime": "podman"}));
    let ask = format!("{KRAKEN} preload --agent {addr}");
    let seen = |name: &str| {
        let seen = lab.ok(&format!(
            "podman image inspect --format {{{{.Digest}}}} {name}"
        ));
        seen.trim().to_owned()
    };
    let digest = image(lab, "into-podman");
    lab.ok(&format!("{ask} library/preloaded:into-podman"));
    assert_eq!(
        seen(&format!("{addr}/library/preloaded:into-podman")),
        digest
    );
    let errors = lab.fails(&format!("{ask} library/preloaded:none"));
    assert!(errors.contains("manifest unknown"), "{errors}");
    let digest = image(lab, "into-podman-by-mirror");
    let words = format!("--runtime podman --registry {MIRRORED}");
    lab.ok(&format!(
        "{ask} {words} library/preloaded:into-podman-by-mirror"
    ));
    let name = format!("{MIRRORED}/library/preloaded:into-podman-by-mirror");
    assert_eq!(seen(&name), digest);
}
