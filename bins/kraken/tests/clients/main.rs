//! Real container clients against a real cluster: they push to the proxy and pull through agents.
//!
//! The test runs itself again in network, mount and process namespaces of their own, where there
//! is nothing but loopback. So no client can reach anything else, whatever it falls back to, and
//! nothing that it leaves running or mounted outlives the test.
//!
//! It wants root, or `sudo` without a password. What cannot be checked is named on stderr behind
//! `SKIPPED:`; with `KRAKEN_REQUIRE_CLIENTS=1` it fails the test instead.
#![expect(clippy::unwrap_used, reason = "in a test, also in what it is made of")]

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "the faults use more of it")]
mod common;
mod cri;
mod docker;
mod lab;
mod layout;
mod namespace;
mod oras;
mod preload;
mod relay;
mod tokens;

use std::fs;

use lab::Lab;
use namespace::say;
use relay::Relay;

/// What the image prints when it is run.
const WORDS: &str = "hello-from-kraken";
/// The name that only mirrors know.
const MIRRORED: &str = "registry.example.test";
/// What the last line of the inner run says.
const PASSED: &str = "every check passed";

type Check = fn(&Lab);

#[test]
fn real_clients() {
    if !namespace::inside() {
        if namespace::lacks("every client", &["skopeo", "umoci", "busybox"]) {
            return;
        }
        let Some(output) = namespace::run_inside("real_clients") else {
            return;
        };
        assert!(output.contains(PASSED), "the inner run did nothing");
        return;
    }
    let mut lab = Lab::new();
    lab.start_kraken();
    make_image(&lab);
    let checks: [(&str, Check); 12] = [
        ("skopeo pushes", skopeo_pushes),
        ("skopeo pulls", skopeo_pulls),
        ("podman pulls and runs", podman_pulls),
        ("containerd pulls, runs and pushes", containerd_pulls),
        ("containerd is preloaded", preload::containerd),
        ("podman is preloaded", preload::podman),
        ("an index goes through whole", index_goes_through),
        ("buildah and podman push in chunks", chunked_pushes),
        ("buildah pushes a mixed index", buildah_index),
        ("ORAS pushes and pulls artifacts", oras::artifacts),
        ("what is unknown is called unknown", unknown_is_unknown),
        ("skopeo deletes", skopeo_deletes),
    ];
    for (what, check) in checks {
        say(&format!("clients: {what}"));
        check(&lab);
    }
    say("clients: all is there after a restart");
    restart(&mut lab);
    lab.stop_kraken();
    println!("{PASSED}");
}

/// Three layers: a busybox, 12 MB of noise, and another busybox as the shell.
fn make_image(lab: &Lab) {
    let noise: Vec<u8> = {
        use rand::Rng as _;
        let mut noise = vec![0; 12_000_000];
        rand_pcg::Pcg64Mcg::new(7).fill_bytes(&mut noise);
        noise
    };
    fs::write(lab.path("noise"), noise).unwrap();
    let (layout, noise) = (lab.path("image"), lab.path("noise"));
    let busybox = namespace::find("busybox").unwrap();
    let busybox = busybox.display();
    lab.ok(&format!("umoci init --layout {layout}"));
    lab.ok(&format!("umoci new --image {layout}:v1"));
    lab.ok(&format!(
        "umoci config --image {layout}:v1 --config.cmd /bin/busybox --config.cmd echo --config.cmd {WORDS}"
    ));
    for (from, to) in [
        (busybox.to_string(), "/bin/busybox"),
        (noise, "/data/noise"),
        (busybox.to_string(), "/bin/sh"),
    ] {
        lab.ok(&format!("umoci insert --image {layout}:v1 {from} {to}"));
    }
    assert_eq!(layout::layers(&layout, "v1").len(), 3);
    lab.ok(&format!(
        "umoci unpack --image {layout}:v1 {}",
        lab.path("bundle")
    ));
}

fn skopeo_pushes(lab: &Lab) {
    let (layout, proxy) = (lab.path("image"), lab.proxy());
    let digest = layout::digest(&layout, "v1");
    // The second time everything is there.
    for _ in 0..2 {
        let pushed = lab.skopeo_push(
            &format!("oci:{layout}:v1"),
            &format!("{proxy}/library/app:v1"),
            "",
        );
        assert_eq!(pushed, digest);
    }
    for _ in 0..2 {
        let pushed = lab.skopeo_push(
            &format!("oci:{layout}:v1"),
            &format!("{proxy}/library/app:docker"),
            "--format v2s2",
        );
        assert_ne!(pushed, digest, "another format, another manifest");
    }
    // The same blobs under another name.
    let pushed = lab.skopeo_push(
        &format!("oci:{layout}:v1"),
        &format!("{proxy}/team/copy:v1"),
        "",
    );
    assert_eq!(pushed, digest);
    for registry in [proxy, lab.agent(1)] {
        let listed = lab.ok(&format!(
            "skopeo list-tags --tls-verify=false docker://{registry}/library/app"
        ));
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(
            listed["Tags"],
            serde_json::json!(["docker", "v1"]),
            "{registry}"
        );
    }
}

fn skopeo_pulls(lab: &Lab) {
    let (image, pulled, agent) = (lab.path("image"), lab.path("pulled"), lab.agent(1));
    // The second time the agent has everything.
    for _ in 0..2 {
        if fs::exists(&pulled).unwrap() {
            fs::remove_dir_all(&pulled).unwrap();
        }
        let digest = lab.skopeo_pull(
            &format!("{agent}/library/app:v1"),
            &format!("oci:{pulled}:v1"),
            "",
        );
        assert_eq!(digest, layout::digest(&image, "v1"));
        assert_eq!(layout::tree(&pulled, "v1"), layout::tree(&image, "v1"));
    }
    // By digest, from a repository that shares all blobs.
    let digest = layout::digest(&image, "v1");
    let other = lab.path("pulled-by-digest");
    lab.skopeo_pull(
        &format!("{agent}/team/copy@{digest}"),
        &format!("oci:{other}:v1"),
        "",
    );
    assert_eq!(layout::tree(&other, "v1"), layout::tree(&image, "v1"));

    // The other format as it is: its own manifest over the same layers.
    let docker = lab.path("docker");
    let digest = lab.skopeo_pull(
        &format!("{agent}/library/app:docker"),
        &format!("dir:{docker}"),
        "",
    );
    let manifest = fs::read(format!("{docker}/manifest.json")).unwrap();
    assert_eq!(layout::sha256(&manifest), digest);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    let layers: Vec<_> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(layout::digest_of)
        .collect();
    assert_eq!(layers, layout::layers(&image, "v1"));
    for layer in layers {
        let bytes = fs::read(format!("{docker}/{}", layer.trim_start_matches("sha256:"))).unwrap();
        assert_eq!(layout::sha256(&bytes), layer);
    }
}

fn podman_pulls(lab: &Lab) {
    if namespace::lacks("podman", &["podman", "runc", "conmon"]) {
        return;
    }
    let digest = layout::digest(&lab.path("image"), "v1");
    let noise = layout::sha256(&fs::read(lab.path("noise")).unwrap());
    let mirrored = format!("{MIRRORED}/library/app:v1");
    let direct = format!("{}/library/app:docker", lab.agent(2));
    lab.ok(&format!("podman pull {mirrored}"));
    lab.ok(&format!("podman pull --tls-verify=false {direct}"));
    let seen = lab.ok(&format!(
        "podman image inspect --format {{{{.Digest}}}} {mirrored}"
    ));
    assert_eq!(seen.trim(), digest);
    let run = format!(
        "podman run --rm --network=none --cgroup-parent=/{}",
        lab::CGROUP
    );
    for image in [mirrored, direct] {
        let said = lab.ok(&format!("{run} {image}"));
        assert_eq!(said.trim(), WORDS);
        let said = lab.ok(&format!("{run} {image} /bin/busybox sha256sum /data/noise"));
        assert_eq!(
            format!("sha256:{}", said.split_whitespace().next().unwrap()),
            noise
        );
    }
}

fn containerd_pulls(lab: &Lab) {
    if namespace::lacks(
        "containerd",
        &["containerd", "ctr", "runc", "containerd-shim-runc-v2"],
    ) {
        return;
    }
    let digest = layout::digest(&lab.path("image"), "v1");
    let relay = Relay::start(lab.agent(3));
    let containerd = lab.start_containerd(&relay.addr.to_string());
    let ctr = format!(
        "ctr --address {} --namespace {}",
        lab.path("containerd.sock"),
        lab::CGROUP
    );
    let image = format!("{MIRRORED}/library/app:v1");
    // The second time it only asks whether the tag has moved.
    for _ in 0..2 {
        lab.ok(&format!(
            "{ctr} images pull --snapshotter native --hosts-dir {} {image}",
            lab.hosts()
        ));
    }
    // It names the registry that it takes the agent for.
    let said = relay.said().concat();
    for start in [
        "head /v2/library/app/manifests/v1",
        "get /v2/library/app/blobs/sha256:",
    ] {
        let mut asked = said.lines().filter(|line| line.starts_with(start));
        let named = format!("?ns={MIRRORED}");
        assert!(asked.any(|line| line.contains(&named)), "{start}\n{said}");
    }
    let listed = lab.ok(&format!("{ctr} images list name=={image}"));
    assert!(listed.contains(&digest), "{listed}");

    let mounted = lab.path("mounted");
    fs::create_dir(&mounted).unwrap();
    lab.ok(&format!(
        "{ctr} images mount --snapshotter native {image} {mounted}"
    ));
    assert_eq!(
        layout::files(&mounted),
        layout::files(&lab.path("bundle/rootfs")),
        "what was unpacked differs from what was pushed"
    );
    lab.ok(&format!("{ctr} images unmount {mounted}"));
    let said = lab.ok(&format!(
        "{ctr} run --rm --snapshotter native {image} check"
    ));
    assert_eq!(said.trim(), WORDS);

    // Its pushes carry each blob in one PUT.
    let target = format!("{}/library/from-containerd:v1", lab.proxy());
    lab.ok(&format!("{ctr} images tag {image} {target}"));
    for _ in 0..2 {
        lab.ok(&format!("{ctr} images push --plain-http {target}"));
    }
    let back = lab.path("from-containerd");
    let pulled = lab.skopeo_pull(
        &format!("{}/library/from-containerd:v1", lab.agent(1)),
        &format!("oci:{back}:v1"),
        "",
    );
    assert_eq!(pulled, digest);
    assert_eq!(
        layout::tree(&back, "v1"),
        layout::tree(&lab.path("image"), "v1")
    );
    drop(containerd);
}

/// An image of each of two machines under one tag, `multi`; its digest.
fn make_index(lab: &Lab) -> String {
    let layout = lab.path("image");
    lab.ok(&format!("umoci tag --image {layout}:v1 arm"));
    lab.ok(&format!(
        "umoci config --image {layout}:arm --architecture arm64"
    ));
    let noise = lab.path("arm-noise");
    fs::write(
        &noise,
        fs::read(lab.path("noise")).unwrap().split_at(3_000_000).0,
    )
    .unwrap();
    lab.ok(&format!(
        "umoci insert --image {layout}:arm {noise} /data/arm"
    ));
    layout::write_index(&layout, "multi", &[("v1", "amd64"), ("arm", "arm64")])
}

fn index_goes_through(lab: &Lab) {
    let (layout, digest) = (lab.path("image"), make_index(lab));
    let pushed = lab.skopeo_push(
        &format!("oci:{layout}:multi"),
        &format!("{}/library/multi:v1", lab.proxy()),
        "--all",
    );
    assert_eq!(pushed, digest);
    let pulled = lab.path("pulled-multi");
    let seen = lab.skopeo_pull(
        &format!("{}/library/multi:v1", lab.agent(2)),
        &format!("oci:{pulled}:multi"),
        "--all",
    );
    assert_eq!(seen, digest);
    let tree = layout::tree(&layout, "multi");
    assert_eq!(layout::tree(&pulled, "multi"), tree);
    assert_eq!(tree.len(), 1 + (2 + 3) + (2 + 4));
    // One of the two, as a client of that machine takes it.
    let arm = lab.path("pulled-arm");
    let source = format!("{}/library/multi:v1", lab.agent(3));
    lab.skopeo_pull(&source, &format!("oci:{arm}:arm"), "--override-arch arm64");
    assert_eq!(layout::tree(&arm, "arm"), layout::tree(&layout, "arm"));
}

/// What comes out of a storage is compressed on the way, so nobody knows its length beforehand.
fn chunked_pushes(lab: &Lab) {
    if namespace::lacks("buildah", &["buildah"]) {
        return;
    }
    let context = lab.path("context");
    fs::create_dir(&context).unwrap();
    fs::copy(lab.path("noise"), format!("{context}/noise")).unwrap();
    fs::copy(
        namespace::find("busybox").unwrap(),
        format!("{context}/busybox"),
    )
    .unwrap();
    fs::write(
        format!("{context}/Dockerfile"),
        format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY noise /data/noise\nCMD [\"/bin/busybox\", \"echo\", \"{WORDS}\"]\n"
        ),
    )
    .unwrap();
    let built = "localhost/built:v1";
    lab.ok(&format!("buildah bud --layers -t {built} {context}"));
    let wanted = layout::sha256(&fs::read(lab.path("noise")).unwrap());
    let relay = Relay::start(lab.proxy());
    let push = |tool: &str, image: &str, name: &str, options: &str| {
        let file = lab.path("digest");
        lab.ok(&format!(
            "{tool} push --tls-verify=false --digestfile {file} {options} {image} docker://{}/{name}:v1",
            relay.addr
        ));
        let pushed = fs::read_to_string(file).unwrap();
        // Every agent has it at once, and has the same.
        for agent in 1..=3 {
            let back = lab.path(&format!("back-{agent}-{}", name.replace('/', "-")));
            let source = format!("{}/{name}:v1", lab.agent(agent));
            let pulled = lab.skopeo_pull(&source, &format!("dir:{back}"), "");
            assert_eq!(pulled, pushed.trim(), "{name} by agent-{agent}");
        }
        let unpacked = lab.path(&format!("unpacked-{}", name.replace('/', "-")));
        let source = format!("{}/{name}:v1", lab.agent(1));
        lab.skopeo_pull(&source, &format!("oci:{unpacked}:v1"), "");
        lab.ok(&format!(
            "umoci unpack --image {unpacked}:v1 {unpacked}/bundle"
        ));
        let noise = fs::read(format!("{unpacked}/bundle/rootfs/data/noise")).unwrap();
        assert_eq!(layout::sha256(&noise), wanted, "{name}");
    };
    push("buildah", built, "built/oci", "");
    push("buildah", built, "built/docker", "--format v2s2");
    let said = relay.said();
    let patches: Vec<_> = said.iter().filter(|it| it.starts_with("patch ")).collect();
    let chunked = |it: &&String| it.contains("\r\ntransfer-encoding: chunked\r\n");
    assert!(patches.iter().any(chunked), "{} patches", patches.len());
    if !namespace::lacks("podman", &["podman"]) {
        // Blobs that it has seen elsewhere it asks the registry to mount.
        push("podman", built, "built/podman", "");
    }
}

/// As one sees them in the wild: images of both formats in one index.
fn buildah_index(lab: &Lab) {
    if namespace::lacks("buildah", &["buildah"]) {
        return;
    }
    let proxy = lab.proxy();
    lab.ok("buildah manifest create mixed");
    for (source, arch) in [("library/app:v1", "amd64"), ("library/app:docker", "arm64")] {
        lab.ok(&format!(
            "buildah manifest add --tls-verify=false --arch {arch} mixed docker://{proxy}/{source}"
        ));
    }
    let file = lab.path("digest");
    lab.ok(&format!(
        "buildah manifest push --all --tls-verify=false --digestfile {file} mixed docker://{proxy}/library/mixed:v1"
    ));
    let pushed = fs::read_to_string(file).unwrap();
    for agent in 1..=3 {
        let back = lab.path(&format!("mixed-{agent}"));
        let source = format!("{}/library/mixed:v1", lab.agent(agent));
        let pulled = lab.skopeo_pull(&source, &format!("dir:{back}"), "--all");
        assert_eq!(pulled, pushed.trim());
    }
}

fn unknown_is_unknown(lab: &Lab) {
    for registry in [lab.agent(1), lab.proxy()] {
        for name in ["library/app:none", "library/none:v1"] {
            let errors = lab.fails(&format!(
                "skopeo inspect --tls-verify=false docker://{registry}/{name}"
            ));
            assert!(
                errors.contains("manifest unknown"),
                "{registry}/{name}: {errors}"
            );
        }
    }
    if !namespace::lacks("podman", &["podman"]) {
        let name = format!("{}/library/none:v1", lab.agent(2));
        let errors = lab.fails(&format!("podman pull --tls-verify=false {name}"));
        assert!(errors.contains("manifest unknown"), "{errors}");
    }
}

/// skopeo deletes the manifest that a tag points to, by its digest.
fn skopeo_deletes(lab: &Lab) {
    let (image, proxy) = (lab.path("image"), lab.proxy());
    for name in ["short/lived:v1", "short/lived:v2", "short/other:v1"] {
        lab.skopeo_push(&format!("oci:{image}:v1"), &format!("{proxy}/{name}"), "");
    }
    lab.ok(&format!(
        "skopeo delete --tls-verify=false docker://{proxy}/short/lived:v1"
    ));
    for registry in [proxy, lab.agent(2)] {
        for tag in ["v1", "v2"] {
            let errors = lab.fails(&format!(
                "skopeo inspect --tls-verify=false docker://{registry}/short/lived:{tag}"
            ));
            assert!(
                errors.contains("manifest unknown"),
                "{registry} {tag}: {errors}"
            );
        }
        lab.ok(&format!(
            "skopeo inspect --tls-verify=false docker://{registry}/short/other:v1"
        ));
    }
    lab.skopeo_push(
        &format!("oci:{image}:v1"),
        &format!("{}/short/lived:v1", lab.proxy()),
        "",
    );
    lab.ok(&format!(
        "skopeo inspect --tls-verify=false docker://{}/short/lived:v1",
        lab.agent(2)
    ));
}

fn restart(lab: &mut Lab) {
    lab.stop_kraken();
    lab.start_kraken();
    let image = lab.path("image");
    // Agent 1 has pulled the one already, but never the other machine's half of the index.
    for (agent, name, tag, options) in [
        (1, "library/app", "v1", ""),
        (3, "library/app", "v1", ""),
        (1, "library/multi", "multi", "--all"),
    ] {
        let pulled = lab.path(&format!("again-{agent}-{tag}"));
        let source = format!("{}/{name}:v1", lab.agent(agent));
        let digest = lab.skopeo_pull(&source, &format!("oci:{pulled}:{tag}"), options);
        assert_eq!(digest, layout::digest(&image, tag));
        assert_eq!(layout::tree(&pulled, tag), layout::tree(&image, tag));
    }
    // And it still takes pushes.
    let target = format!("{}/library/later:v1", lab.proxy());
    let pushed = lab.skopeo_push(&format!("oci:{image}:arm"), &target, "");
    let later = lab.path("later");
    let source = format!("{}/library/later:v1", lab.agent(2));
    assert_eq!(
        lab.skopeo_pull(&source, &format!("oci:{later}:arm"), ""),
        pushed
    );
    assert_eq!(layout::tree(&later, "arm"), layout::tree(&image, "arm"));
}
