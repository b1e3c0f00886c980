use std::collections::BTreeMap;
use std::fs;

use super::*;

fn mirror() -> Mirror {
    Mirror {
        agent: "127.0.0.1:7611".parse().unwrap(),
        ca: None,
        docker: Some("127.0.0.1:7612".parse().unwrap()),
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
        let at_first = files(root);
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
            agent: "127.0.0.1:9".parse().unwrap(),
            docker: Some("127.0.0.1:9".parse().unwrap()),
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
        assert_eq!(files(root), at_first, "{runtime}");
    }
}

#[test]
fn containerd_gets_a_file_for_each_registry_and_is_told_where() {
    let root = tempfile::tempdir().unwrap();
    let config =
        "# ours\nversion = 3\n\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'x' # why\n";
    write(root.path(), "/etc/containerd/config.toml", config);
    write(root.path(), "/etc/containerd/certs.d/README", "theirs");
    let before = files(root.path());
    install(root.path(), Runtime::Containerd, &mirror()).unwrap();
    let after = files(root.path());
    let hosts = "etc/containerd/certs.d/docker.io/hosts.toml";
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
    // One registry less takes its file out.
    let fewer = Mirror {
        upstreams: vec!["docker.io".parse().unwrap()],
        ..mirror()
    };
    install(root.path(), Runtime::Containerd, &fewer).unwrap();
    assert!(!files(root.path()).contains_key(other));
    remove(root.path(), Runtime::Containerd).unwrap();
    assert_eq!(files(root.path()), before);
}

#[test]
fn what_containerd_would_not_take_or_others_wrote_is_not_changed() {
    let two = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n";
    let three = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n";
    for config in [
        format!("{two}config_path = '/elsewhere'\n"),
        format!("{three}config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n"),
        // Together with config_path, containerd loads no CRI.
        format!(
            "{two}[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'a.example']\nendpoint = []\n"
        ),
        format!("{two}[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'a.example'.tls]\n"),
        "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n".to_owned(),
        "[plugins.cri]\n".to_owned(),
    ] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "/etc/containerd/config.toml", &config);
        let said = install(root.path(), Runtime::Containerd, &mirror()).unwrap();
        assert!(!is_well(&said), "{config}: {said:?}");
        assert_eq!(files(root.path())["etc/containerd/config.toml"], config);
    }
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "/etc/containerd/config.toml", "nonsense = [");
    assert!(install(root.path(), Runtime::Containerd, &mirror()).is_err());
    assert_eq!(files(root.path()).len(), 1, "nothing was written");
    let root = tempfile::tempdir().unwrap();
    let hosts = "etc/containerd/certs.d/docker.io/hosts.toml";
    write(root.path(), hosts, "server = 'theirs'\n");
    let said = install(root.path(), Runtime::Containerd, &mirror()).unwrap();
    assert!(!is_well(&said), "{said:?}");
    assert_eq!(files(root.path())[hosts], "server = 'theirs'\n");
}

#[test]
fn a_key_in_a_table_on_one_line_is_set_too() {
    let root = tempfile::tempdir().unwrap();
    let config = "version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = { registry = {} } }\n";
    write(root.path(), "/etc/containerd/config.toml", config);
    let said = install(root.path(), Runtime::Containerd, &mirror()).unwrap();
    assert!(is_well(&said), "{said:?}");
    let said = check(root.path(), Runtime::Containerd, &mirror()).unwrap();
    assert!(is_well(&said), "{said:?}");
}

#[test]
fn a_registry_that_podman_knows_otherwise_is_left_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let theirs = "[[registry]]\nlocation = 'registry.example.com:5000'\ninsecure = true\n";
    write(root.path(), "/etc/containers/registries.conf", theirs);
    let said = install(root.path(), Runtime::Containers, &mirror()).unwrap();
    assert!(!is_well(&said), "{said:?}");
    assert_eq!(files(root.path()).len(), 1, "nothing was written");
}

#[test]
fn docker_keeps_its_other_mirrors_and_keys() {
    let root = tempfile::tempdir().unwrap();
    let theirs = r#"{"debug": true, "registry-mirrors": ["https://mirror.example.com"]}"#;
    write(root.path(), "/etc/docker/daemon.json", theirs);
    let before = files(root.path());
    let read = || -> serde_json::Value {
        serde_json::from_str(&files(root.path())["etc/docker/daemon.json"]).unwrap()
    };
    install(root.path(), Runtime::Docker, &mirror()).unwrap();
    let mirrors = ["http://127.0.0.1:7612", "https://mirror.example.com"];
    assert_eq!(read()["registry-mirrors"], serde_json::json!(mirrors));
    assert_eq!(read()["debug"], true);
    // Another port takes the place of the first.
    let moved = Mirror {
        docker: Some("127.0.0.1:7700".parse().unwrap()),
        ..mirror()
    };
    install(root.path(), Runtime::Docker, &moved).unwrap();
    assert_eq!(read()["registry-mirrors"][0], "http://127.0.0.1:7700");
    // Without a port it is left out, and what was there goes.
    let without = Mirror {
        docker: None,
        ..mirror()
    };
    assert!(is_well(
        &install(root.path(), Runtime::Docker, &without).unwrap()
    ));
    assert_eq!(files(root.path()), before);
    install(root.path(), Runtime::Docker, &mirror()).unwrap();
    fs::remove_file(root.path().join("etc/docker/daemon.json")).unwrap();
    remove(root.path(), Runtime::Docker).unwrap();
    write(
        root.path(),
        "/etc/docker/daemon.json",
        r#"{"registry-mirrors": "one"}"#,
    );
    assert!(install(root.path(), Runtime::Docker, &mirror()).is_err());
}

#[test]
fn addresses_are_hosts_with_ports() {
    for good in [
        "127.0.0.1:7610",
        "agent.example.com:80",
        "[::1]:7610",
        "https://agent.example.com:443",
    ] {
        let address: Address = good.parse().unwrap();
        assert_eq!(address.to_string(), good);
        assert_eq!(address.is_secure(), good.contains("https"));
        assert!(!address.host().contains("//"));
    }
    for bad in [
        "",
        "127.0.0.1",
        "http://127.0.0.1:1",
        "a:b",
        "a:1/x",
        "u@a:1",
        "a b:1",
        "https://a",
        "https://a:1/",
    ] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

#[test]
fn what_was_installed_is_known_again() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(noted(root.path()).unwrap(), None);
    note(root.path(), &mirror()).unwrap();
    assert_eq!(noted(root.path()).unwrap(), Some(mirror()));
    forget(root.path()).unwrap();
    assert_eq!(noted(root.path()).unwrap(), None);
    write(root.path(), INSTALLED, "{}");
    assert!(noted(root.path()).is_err());
}

#[test]
fn an_agent_with_tls_is_written_with_its_authority() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, "an authority\n").unwrap();
    let secure = Mirror {
        agent: "https://agent:7610".parse().unwrap(),
        ca: Some(ca.clone()),
        ..mirror()
    };
    for runtime in [Runtime::Containerd, Runtime::Containers] {
        assert!(is_well(&install(root, runtime, &secure).unwrap()));
        assert!(is_well(&check(root, runtime, &secure).unwrap()));
        assert!(!is_well(&check(root, runtime, &mirror()).unwrap()));
    }
    let written = files(root);
    let hosts = &written["etc/containerd/certs.d/docker.io/hosts.toml"];
    assert!(hosts.contains("[host.\"https://agent:7610\"]"), "{hosts}");
    let line = format!("  ca = \"{}\"\n", ca.display());
    assert!(hosts.contains(&line), "{hosts}");
    let conf = &written["etc/containers/registries.conf.d/50-kraken.conf"];
    assert!(
        conf.contains("location = \"agent:7610/docker.io\""),
        "{conf}"
    );
    assert!(!conf.contains("insecure"), "{conf}");
    let kept = &written["etc/containers/certs.d/agent:7610/ca.crt"];
    assert!(kept.ends_with("an authority\n"), "{kept}");
    // Without TLS again, the authority goes.
    install(root, Runtime::Containers, &mirror()).unwrap();
    assert!(!files(root).keys().any(|name| name.ends_with("ca.crt")));
    for runtime in [Runtime::Containerd, Runtime::Containers] {
        install(root, runtime, &secure).unwrap();
        remove(root, runtime).unwrap();
    }
    assert_eq!(files(root), BTreeMap::new());
}
