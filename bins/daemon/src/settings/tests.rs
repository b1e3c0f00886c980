use super::*;
use crate::agent::AgentConfig;
use crate::config::tests::AGENT;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn sources(files: &[PathBuf], variables: &[(&str, &str)], flags: &[&str]) -> Sources {
    let variables = variables.iter();
    let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sources {
        files: files.to_vec(),
        variables: variables.collect(),
        flags: flags.iter().map(|it| (*it).to_owned()).collect(),
    }
}

fn load(sources: &Sources) -> Result<AgentConfig, String> {
    sources.load().map_err(|error| error.to_string())
}

#[test]
fn later_layers_win_and_maps_are_merged() {
    let dir = Dir::new();
    let base = dir.write(
        "base.yaml",
        &format!("{AGENT}limits: {{upload: 1MB, download: 2MB}}\n"),
    );
    let site = dir.write(
        "site.yaml",
        "limits: {upload: 3MB}\ntrackers: [https://b:1]\nzone: a\n",
    );
    let files = [base, site];
    let config = load(&sources(&files, &[], &[])).unwrap();
    let rates = |config: &AgentConfig| {
        let LimitsConfig { upload, download } = config.limits;
        (upload.map(|it| it.0.get()), download.map(|it| it.0.get()))
    };
    use crate::limits::LimitsConfig;
    assert_eq!(rates(&config), (Some(3_000_000), Some(2_000_000)));
    assert_eq!(config.trackers, ["https://b:1"]);
    let variables = [("KRAKEN_LIMITS__UPLOAD", "4MB"), ("KRAKEN_ZONE", "17")];
    let config = load(&sources(&files, &variables, &[])).unwrap();
    assert_eq!(rates(&config), (Some(4_000_000), Some(2_000_000)));
    assert_eq!(config.zone.unwrap().as_str(), "17");
    let flags = [
        "limits.upload=5MB",
        "limits.download=null",
        "trackers=['https://c:1']",
    ];
    let config = load(&sources(&files, &variables, &flags)).unwrap();
    assert_eq!(rates(&config), (Some(5_000_000), None));
    assert_eq!(config.trackers, ["https://c:1"]);
}

#[test]
fn a_file_extends_others_beside_it() {
    let dir = Dir::new();
    dir.write("base/agent.yaml", AGENT);
    dir.write(
        "base/zone.yaml",
        "extends: agent.yaml\nzone: a\nquic_mtu: 1452\n",
    );
    let file = dir.write("agent.yaml", "extends: base/zone.yaml\nzone: b\n");
    let layers = Sources::files(vec![file])
        .layers(&Schema::of::<AgentConfig>())
        .unwrap();
    assert_eq!(layers.files.len(), 3);
    let config: AgentConfig = layers.typed().unwrap();
    assert_eq!(config.zone.unwrap().as_str(), "b");
    assert_eq!(config.peer_listen.port(), 7610);
    let two = dir.write("two.yaml", "extends: [base/agent.yaml, limits.yaml]\n");
    dir.write("limits.yaml", "limits: {upload: 1MB}\n");
    let config = load(&Sources::files(vec![two])).unwrap();
    assert!(config.limits.upload.is_some());
}

#[test]
fn what_extends_itself_or_nothing_is_refused() {
    let dir = Dir::new();
    let a = dir.write("a.yaml", "extends: b.yaml\n");
    dir.write("b.yaml", "zone: a\nextends: ./a.yaml\n");
    let error = load(&Sources::files(vec![a])).unwrap_err();
    assert!(error.contains("extends itself"), "{error}");
    let none = dir.write("none.yaml", "extends: gone.yaml\n");
    let error = load(&Sources::files(vec![none])).unwrap_err();
    assert!(
        error.contains("cannot read") && error.contains("gone.yaml"),
        "{error}"
    );
    let map = dir.write("map.yaml", "extends: {a: b}\n");
    let error = load(&Sources::files(vec![map])).unwrap_err();
    assert!(error.contains("map.yaml:1:10: extends"), "{error}");
    for number in 0..20 {
        let next = format!("extends: {}.yaml\n", number + 1);
        dir.write(&format!("{number}.yaml"), &next);
    }
    let error = load(&Sources::files(vec![dir.0.path().join("0.yaml")])).unwrap_err();
    assert!(error.contains("more than 16"), "{error}");
}

#[test]
fn mistakes_are_told_with_their_place_and_what_may_be_meant() {
    let dir = Dir::new();
    let base = dir.write("base.yaml", AGENT);
    let with = |text: &str| {
        let site = dir.write("site.yaml", text);
        load(&sources(&[base.clone(), site], &[], &[])).unwrap_err()
    };
    for (text, says) in [
        (
            "\nlimits:\n  uplaod: 1MB\n",
            "site.yaml:3:3: limits: unknown key `uplaod`, did you mean `upload`?",
        ),
        (
            "tracker: []\n",
            "site.yaml:1:1: unknown key `tracker`, did you mean `trackers`?",
        ),
        ("store-limit: 1GB\n", "did you mean `store_limit`?"),
        (
            "xyz: 1\n",
            "unknown key `xyz`; here can be: name, store, store_limit",
        ),
        (
            "transport: qiuc\n",
            "site.yaml:1:12: transport: did you mean `quic`?",
        ),
        (
            "volumes:\n  - path: /a\n  - {weight: 1}\n",
            "site.yaml:3:5: volumes[1]: the key `path` is missing",
        ),
        ("limits: [1]\n", "site.yaml:1:9: limits: "),
        ("tls: {ca: null}\n", "tls: the key `ca` is missing"),
        (
            "quic_mtu: 3\n",
            "site.yaml:1:11: quic_mtu: quic_mtu is between",
        ),
        (
            "remember_peers: hunter2\n",
            "site.yaml:1:17: remember_peers: ",
        ),
        ("tls: hunter2\n", "site.yaml:1:6: tls: "),
        (
            "access: {rules: [{may: [pul]}]}",
            "access.rules[0].may[0]: did you mean `pull`?",
        ),
    ] {
        let error = with(text);
        assert!(
            error.contains(says) && !error.contains("hunter"),
            "{text}\n{error}"
        );
    }
    let without = dir.write("without.yaml", &AGENT.replace("tls:", "#"));
    let error = load(&Sources::files(vec![without])).unwrap_err();
    assert!(
        error.contains("without.yaml: the key `tls` is missing"),
        "{error}"
    );
    let files = [base.clone()];
    let error = load(&sources(&files, &[("KRAKEN_LIMTS__UPLOAD", "1")], &[])).unwrap_err();
    assert!(
        error.contains("KRAKEN_LIMTS__UPLOAD: unknown key `limts`, did you mean `limits`?"),
        "{error}"
    );
    let error = load(&sources(&files, &[], &["limits.upload=soon"])).unwrap_err();
    assert!(
        error.contains("--set limits.upload: limits.upload: "),
        "{error}"
    );
}

/// All that `--check-config` says of the keys of an origin's file.
fn all_wrong(text: &str) -> Vec<String> {
    use crate::origin::OriginConfig;
    let dir = Dir::new();
    let file = dir.write("origin.yaml", text);
    let schema = Schema::of::<OriginConfig>();
    let layers = Sources::files(vec![file]).layers(&schema).unwrap();
    let wrong = layers.typed_or_all::<OriginConfig>().err();
    let wrong = wrong.unwrap_or_default();
    let told = wrong.all().iter().map(ToString::to_string);
    // Without the directory.
    let told = told.map(|it| it.split_once("origin.yaml").unwrap().1.to_owned());
    told.collect()
}

const ORIGIN: &str = "
name: origin-1
store: /var/lib/kraken
backend: {local_disk: /b}
peer_listen: 10.0.0.1:1
listen: 10.0.0.1:2
origins: [{name: origin-1, url: 'https://a:1'}]
tls: {cert: a, key: b, ca: c}
";

#[test]
fn all_that_is_wrong_is_told_at_once() {
    assert_eq!(all_wrong(ORIGIN), [""; 0]);
    let text = "
name: origin-1
stroe: /var/lib/kraken
backend: {local_dsik: /b}
peer_listen: 10.0.0.1
listen: 10.0.0.1:2
limits: {uplaod: 1MB, download: soon}
origins:
  - {name: origin-1, url: 'https://a:1', wieght: 2}
  - {name: origin-2}
  - {name: origin-3, url: 'https://c:1', weight: heavy, zone: 'a b'}
tls: {crt: a, key: b, ca: c}
";
    let told = all_wrong(text);
    let expected = [
        ":3:1: unknown key `stroe`, did you mean `store`?",
        ":4:11: backend: unknown key `local_dsik`, did you mean `local_disk`?",
        ":5:14: peer_listen: ",
        ":7:10: limits: unknown key `uplaod`, did you mean `upload`?",
        ":7:33: limits.download: ",
        ":9:42: origins[0]: unknown key `wieght`, did you mean `weight`?",
        ":10:5: origins[1]: the key `url` is missing",
        ":11:50: origins[2].weight: ",
        ":11:63: origins[2].zone: ",
        ":12:7: tls: unknown key `crt`, did you mean `cert`?",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}, not {expected}");
    }
}

#[test]
fn what_follows_from_something_wrong_is_not_told_as_well() {
    // Neither that there is no backend, nor that there is no key `tls`.
    let wrong = ORIGIN.replace("local_disk", "disk").replace("ca: c", "");
    let told = all_wrong(&wrong);
    assert_eq!(told.len(), 2, "{told:#?}");
    // Items behind one that was left out keep their numbers.
    let wrong = ORIGIN.replace(
        "origins: [",
        "origins: [{nam: a}, {name: 'b', url: 'https://b:1', x: 1}, 3, ",
    );
    let told = all_wrong(&wrong);
    let lists = |at: usize| told.iter().any(|it| it.contains(&format!("origins[{at}]")));
    assert!(lists(0) && lists(1) && lists(2) && !lists(3), "{told:#?}");
}

#[test]
fn another_kind_of_storage_replaces_the_one_below() {
    use crate::backends::BackendConfig;
    use crate::tags_backend::TagsBackendConfig;
    let dir = Dir::new();
    let base = dir.write(
        "base.yaml",
        "backend: {s3: {bucket: a, region: b}}\nprefix: x\n",
    );
    let of = |text: &str| {
        let site = dir.write("site.yaml", text);
        let sources = sources(&[base.clone(), site], &[], &[]);
        sources.load::<TagsBackendConfig>().unwrap().backend
    };
    let disk = of("backend: {local_disk: /a}\n");
    assert_eq!(disk, BackendConfig::LocalDisk("/a".into()));
    let BackendConfig::S3(options) = of("backend: {s3: {bucket: c}}\n") else {
        panic!("it was s3");
    };
    assert_eq!(
        (options.bucket, options.region),
        ("c".into(), Some("b".into()))
    );
}

#[test]
fn the_whole_is_printed_without_secrets_and_reads_back() {
    use crate::origin::OriginConfig;
    let dir = Dir::new();
    let text = "
name: origin-1
store: /var/lib/kraken
backends:
  - namespace: ''
    backend:
      s3: {bucket: b, access_key_id: {env: KEY}, secret_access_key: {text: hunter2}}
  - {namespace: ^a/, backend: {registry: {url: 'https://me:hunter3@example.com/x'}}}
peer_listen: 10.0.0.1:1
listen: 10.0.0.1:2
origins: [{name: origin-1, url: 'https://a:1'}]
tls: {cert: a, key: b, ca: c}
";
    let file = dir.write("origin.yaml", text);
    let schema = Schema::of::<OriginConfig>();
    let flags = ["heal.after=2m"];
    let sources = sources(&[file], &[("KRAKEN_ZONE", "17")], &flags);
    let printed = sources.layers(&schema).unwrap().text(&schema);
    assert!(!printed.contains("hunter"), "{printed}");
    for line in [
        "store: /var/lib/kraken  # ",
        "origin.yaml:3:1",
        "zone: 17  # KRAKEN_ZONE",
        "  after: 2m  # --set heal.after",
        "scrub: 20MB/s  # default",
        "  order: recent  # default",
        "    timeout: 30s  # default",
        "replicas: 3  # default",
        "transport: quic  # default",
        "          env: KEY  # ",
        "log: info  # default",
        "  rate: 100MB/s  # default",
    ] {
        assert!(printed.contains(line), "{line}\n{printed}");
    }
    // They would contradict what is there: one of the storages names blobs itself, and there is no limit.
    for absent in ["layout", "high:", "low:"] {
        assert!(!printed.contains(absent), "{absent}\n{printed}");
    }
    let again = dir.write("again.yaml", &printed);
    let again: OriginConfig = Sources::files(vec![again]).load().unwrap();
    let first: OriginConfig = sources.load().unwrap();
    assert_eq!(
        (again.replicas, again.heal, again.scrub),
        (first.replicas, first.heal, first.scrub)
    );
    assert_eq!(again.zone, first.zone);
    assert_eq!(again.backends.len(), 2);
}

#[test]
fn keys_that_differ_are_named() {
    let layers = |text: &str| Layers::of_text(text).unwrap();
    let one = layers("a: 1\nb: {c: [1, 2]}\nd: x\n");
    let mut two = layers("b: {c: [1, 3]}\nd: 'x'\ne: 5\na: 1\n");
    assert_eq!(one.differs_in(&two), ["b", "e"]);
    two.take_over(&["b", "e"], &one);
    assert!(one.differs_in(&two).is_empty());
}
