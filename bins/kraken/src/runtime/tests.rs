use std::collections::BTreeMap;
use std::fs;

use super::*;

fn mirror() -> Mirror {
    Mirror {
        agent: "127.0.0.1:7611".into(),
        docker: Some("127.0.0.1:7612".into()),
        upstreams: ["docker.io", "registry.example.com:5000"]
            .map(|host| host.parse().unwrap())
            .into(),
    }
}

/// All files under a directory, and what they say.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn write(root: &Path, path: &str, text: &str) {
    let path = at(root, path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn is_well(said: &[Said]) -> bool {
    said.iter().all(|said| said.is_well)
}

#[test]
fn what_is_installed_is_found_well_and_removed_again() {
    for runtime in Runtime::ALL {
        let root = tempfile::tempdir().unwrap();
        let (root, mirror) = (root.path(), mirror());
        fs::create_dir_all(root.join(runtime.directory())).unwrap();
        assert_eq!(found(root), [runtime]);
        assert!(
            !is_well(&check(root, runtime, &mirror).unwrap()),
            "{runtime}"
        );
        let said = install(root, runtime, &mirror).unwrap();
        assert!(is_well(&said), "{runtime}: {said:?}");
        let said = check(root, runtime, &mirror).unwrap();
        assert!(is_well(&said), "{runtime}: {said:?}");
        // A second time changes nothing.
        let before = files(root);
        install(root, runtime, &mirror).unwrap();
        assert_eq!(files(root), before, "{runtime}");
        let other = Mirror {
            agent: "127.0.0.1:9".into(),
            docker: Some("127.0.0.1:9".into()),
            ..mirror.clone()
        };
        assert!(
            !is_well(&check(root, runtime, &other).unwrap()),
            "{runtime}"
        );
        remove(root, runtime).unwrap();
        assert!(
            !is_well(&check(root, runtime, &mirror).unwrap()),
            "{runtime}"
        );
        assert!(remove(root, runtime).unwrap().is_empty(), "{runtime}");
    }
}

#[test]
fn containerd_gets_a_file_for_each_registry_and_is_told_where() {
    let root = tempfile::tempdir().unwrap();
    let config =
        "# ours\nversion = 3\n\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'x' # why\n";
    write(root.path(), "/etc/containerd/config.toml", config);
    let hosts = "etc/containerd/certs.d/docker.io/hosts.toml";
    write(root.path(), hosts, "server = 'theirs'\n");
    install(root.path(), Runtime::Containerd, &mirror()).unwrap();
    let after = files(root.path());
    assert!(after[hosts].contains("server = \"https://registry-1.docker.io\""));
    assert!(after[hosts].contains("[host.\"http://127.0.0.1:7611\"]"));
    let other = "etc/containerd/certs.d/registry.example.com:5000/hosts.toml";
    assert!(after[other].contains("https://registry.example.com:5000"));
    let config = &after["etc/containerd/config.toml"];
    assert!(
        config.contains("# ours") && config.contains("'x' # why"),
        "{config}"
    );
    assert!(
        config.contains("config_path = \"/etc/containerd/certs.d\""),
        "{config}"
    );
    remove(root.path(), Runtime::Containerd).unwrap();
    let after = files(root.path());
    assert_eq!(after[hosts], "server = 'theirs'\n");
    assert!(!after.contains_key(other));
}

#[test]
fn a_containerd_that_looks_elsewhere_or_is_old_is_not_changed() {
    for config in [
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/elsewhere'\n",
        "[plugins.cri]\n",
    ] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "/etc/containerd/config.toml", config);
        let said = install(root.path(), Runtime::Containerd, &mirror()).unwrap();
        assert!(!is_well(&said), "{said:?}");
        assert_eq!(files(root.path())["etc/containerd/config.toml"], config);
    }
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "/etc/containerd/config.toml", "nonsense = [");
    assert!(install(root.path(), Runtime::Containerd, &mirror()).is_err());
}

#[test]
fn docker_keeps_its_other_mirrors_and_keys() {
    let root = tempfile::tempdir().unwrap();
    let theirs = r#"{"debug": true, "registry-mirrors": ["https://mirror.example.com"]}"#;
    write(root.path(), "/etc/docker/daemon.json", theirs);
    let read = || -> serde_json::Value {
        serde_json::from_str(&files(root.path())["etc/docker/daemon.json"]).unwrap()
    };
    install(root.path(), Runtime::Docker, &mirror()).unwrap();
    let mirrors = ["http://127.0.0.1:7612", "https://mirror.example.com"];
    assert_eq!(read()["registry-mirrors"], serde_json::json!(mirrors));
    assert_eq!(read()["debug"], true);
    // Another port takes the place of the first.
    let moved = Mirror {
        docker: Some("127.0.0.1:7700".into()),
        ..mirror()
    };
    install(root.path(), Runtime::Docker, &moved).unwrap();
    assert_eq!(read()["registry-mirrors"][0], "http://127.0.0.1:7700");
    remove(root.path(), Runtime::Docker).unwrap();
    let before: serde_json::Value = serde_json::from_str(theirs).unwrap();
    assert_eq!(read(), before);
    let without = Mirror {
        docker: None,
        ..mirror()
    };
    assert!(!is_well(
        &install(root.path(), Runtime::Docker, &without).unwrap()
    ));
}

#[test]
fn hosts_of_registries_are_checked() {
    for good in ["docker.io", "a:5000", "registry-1.example.com"] {
        assert!(good.parse::<Upstream>().is_ok(), "{good}");
    }
    for bad in ["", "a/b", "a b", "../etc", ".", "a\"", "[::1]"] {
        assert!(bad.parse::<Upstream>().is_err(), "{bad}");
    }
}
