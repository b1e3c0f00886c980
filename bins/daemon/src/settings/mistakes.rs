//! What is told of configurations that are wrong: where, and in which words.

use std::path::PathBuf;

use kraken_core::net::CertAuthority;

use super::*;
use crate::agent::AgentConfig;
use crate::build_index::BuildIndexConfig;
use crate::check::{ProcessConfig, check};
use crate::origin::OriginConfig;
use crate::proxy::ProxyConfig;
use crate::tracker::TrackerConfig;

/// A directory with certificates, a configuration of each process that nothing is wrong with, and what lies on
/// top of it.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        let authority = CertAuthority::create().unwrap();
        site.write("ca.crt", &authority.to_pem().0);
        for role in ["agent", "origin", "tracker", "proxy", "build-index"] {
            let (cert, key) = authority.issue(role, &["127.0.0.1".into()]).unwrap();
            site.write(&format!("{role}.crt"), &cert);
            site.write(&format!("{role}.key"), &key);
            site.write(&format!("{role}.yaml"), &site.base(role));
        }
        site.write("other", "hunter2");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn base(&self, role: &str) -> String {
        const ORIGINS: &str =
            "origins: [{name: a, url: 'https://a:1'}, {name: b, url: 'https://b:1'}]\n";
        const INDEXES: &str = "build_indexes: ['https://index:1']\n";
        let dir = self.0.path().display();
        let own = match role {
            "agent" => format!(
                "store: {dir}/agent\npeer_listen: 10.0.0.1:1\nregistry_listen: 127.0.0.1:2\n\
                 trackers: ['https://tracker:1']\n{INDEXES}"
            ),
            "origin" => format!(
                "name: a\nstore: {dir}/origin\nbackend: {{local_disk: {dir}/backend}}\n\
                 peer_listen: 10.0.0.1:1\nlisten: 10.0.0.1:2\n{ORIGINS}"
            ),
            "build-index" => format!("listen: 10.0.0.1:1\nstore: {dir}/index\n{ORIGINS}"),
            "proxy" => format!("listen: 10.0.0.1:1\n{ORIGINS}{INDEXES}"),
            _ => format!("listen: 10.0.0.1:1\n{ORIGINS}"),
        };
        format!("{own}tls: {{cert: {dir}/{role}.crt, key: {dir}/{role}.key, ca: {dir}/ca.crt}}\n")
    }

    /// All that is told when `text` lies on top, without the directory.
    fn told(&self, role: &str, text: &str) -> Vec<String> {
        let dir = format!("{}/", self.0.path().display());
        self.write("site.yaml", &text.replace("DIR/", &dir));
        let files = vec![self.path(&format!("{role}.yaml")), self.path("site.yaml")];
        let sources = Sources::files(files);
        let found = match role {
            "agent" => all::<AgentConfig>(&sources),
            "origin" => all::<OriginConfig>(&sources),
            "tracker" => all::<TrackerConfig>(&sources),
            "proxy" => all::<ProxyConfig>(&sources),
            _ => all::<BuildIndexConfig>(&sources),
        };
        let found = found.err().unwrap_or_default();
        let told = found.all().iter().map(ToString::to_string);
        told.map(|it| it.replace(&dir, "")).collect()
    }
}

fn all<C: ProcessConfig>(sources: &Sources) -> Result<(), Problems> {
    let layers = sources.layers(&Schema::of::<C>())?;
    check(&layers.typed_or_all::<C>()?, &layers)
}

#[test]
fn nothing_is_told_of_what_is_right() {
    let site = Site::new();
    for (role, text) in [
        ("agent", ""),
        ("origin", ""),
        ("tracker", "console: {listen: '127.0.0.1:2'}"),
        ("proxy", "replicas: 3"),
        ("build-index", "tag_replicas: 3\ngarbage: {}"),
        (
            "agent",
            "store_limit: 50%\neviction: {high: 80%, time_to_live: 2d, time_to_idle: 1d}",
        ),
        // A store of an agent goes on as a volume, and a volume is emptied with weight 0.
        ("agent", "volumes: [{path: DIR/agent}]"),
        ("agent", "docker_listen: 127.0.0.1:3"),
        ("origin", "volumes: [{path: DIR/origin/blobs}]"),
    ] {
        assert_eq!(site.told(role, text), [""; 0], "{role}: {text}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_in_plain_words() {
    let site = Site::new();
    let cases = include_str!("mistakes.txt").split("\n\n");
    let cases: Vec<_> = cases.filter_map(Case::read).collect();
    assert!(cases.len() > 90, "{}", cases.len());
    let differs = cases.iter().filter_map(|case| case.differs(&site));
    let differs: Vec<_> = differs.collect();
    assert!(differs.is_empty(), "{}", differs.join("\n"));
}

/// A part of `mistakes.txt`: the process, four blanks in front of what lies on top of its configuration, and how each
/// line begins that is told.
struct Case<'t> {
    role: &'t str,
    text: String,
    expected: Vec<&'t str>,
}

impl<'t> Case<'t> {
    fn read(case: &'t str) -> Option<Self> {
        let mut lines = case.lines().filter(|line| !line.starts_with('#'));
        let role = lines.find(|line| !line.is_empty())?;
        let text = case.lines().filter_map(|line| line.strip_prefix("    "));
        let expected = case.lines().filter_map(|line| line.strip_prefix("> "));
        Some(Self {
            role,
            text: text.flat_map(|line| [line, "\n"]).collect(),
            expected: expected.collect(),
        })
    }
    /// What is told instead, if it is something else.
    fn differs(&self, site: &Site) -> Option<String> {
        let told = site.told(self.role, &self.text);
        assert!(!told.concat().contains("hunter"), "{told:#?}");
        let begins = |(told, expected): (&String, &&str)| {
            let place = told.strip_prefix("site.yaml:");
            place.is_some_and(|told| told.starts_with(expected))
        };
        let is_same = told.len() == self.expected.len();
        let is_same = is_same && told.iter().zip(&self.expected).all(begins);
        (!is_same).then(|| format!("{}:\n{}{told:#?}", self.role, self.text))
    }
}

#[test]
fn a_list_in_a_file_of_its_own_is_told_with_its_own_lines() {
    let site = Site::new();
    site.write(
        "origins.yaml",
        "- {name: a, url: 'https://a:1'}\n- {name: a, url: 'b:1'}\n",
    );
    let told = site.told("origin", "origins: []\norigins_file: DIR/origins.yaml");
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(
        told[0].starts_with("origins.yaml:2:18: [1].url: \"b:1\" is not the URL"),
        "{told:#?}"
    );
    assert!(
        told[1].starts_with("origins.yaml:2:10: [1].name: a is there twice"),
        "{told:#?}"
    );
}
