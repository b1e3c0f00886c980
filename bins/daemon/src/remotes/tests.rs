use super::*;
use crate::config;

fn check(text: &str) -> Result<Vec<RemoteRule>, String> {
    let remotes: Vec<RemoteConfig> = config::parse(text).map_err(|it| it.to_string())?;
    let rules = rules((&remotes, &[]), "east").map_err(|it| it.to_string())?;
    Ok(rules.remotes)
}

#[test]
fn a_source_has_a_name_that_no_remote_has_and_is_a_cluster_or_a_registry() {
    let remote = "{name: west, tags: [a], fetches: true}";
    let remotes: Vec<RemoteConfig> = config::parse(&format!("- {remote}")).unwrap();
    let check = |text: &str| {
        let sources: Vec<SourceConfig> = config::parse(text).map_err(|it| it.to_string())?;
        let rules = rules((&remotes, &sources), "east").map_err(|it| it.to_string())?;
        Ok::<_, String>(rules.sources)
    };
    let one =
        "- {name: from-west, build_indexes: ['https://a:1'], hours: ['22:00-06:00'], limit: 20MB}";
    let SourceKind::Cluster(build_indexes) = &check(one).unwrap()[0].kind else {
        panic!("it is a cluster");
    };
    assert_eq!(build_indexes, &["https://a:1"]);
    for (from, to, what) in [
        ("from-west", "west", "west is there twice"),
        ("from-west", "east", "called so itself"),
        ("'https://a:1'", "", "name all of its build_indexes"),
        ("https", "ftp", "build_indexes"),
        ("22:00", "22", "hours"),
        (
            "hours: ['22:00-06:00'], limit",
            "limit_outside",
            "outside of which hours",
        ),
        (
            "limit: 20MB",
            "tags: [a]",
            "sources[0].tags: repositories, tags, platforms, every: these are for registries",
        ),
        (
            "hours: ['22:00-06:00'], limit",
            "hours: ['00:00-12:00', '12:00-24:00'], limit_outside",
            "sources[0].limit_outside: this means nothing",
        ),
        (
            "'https://a:1'",
            "'https://a:1', 'https://a:1/'",
            "build_indexes[1]: https://a:1 is there twice",
        ),
        ("limit", "limits", "limits"),
    ] {
        let error = check(&one.replace(from, to)).unwrap_err();
        assert!(error.contains(what), "{to}: {error}");
    }
    let one = "- {name: hub, registry: {url: 'https://r.test', repository: '{namespace}'}, \
               repositories: [library/redis], tags: [':7$'], every: 5m}";
    let SourceKind::Registry(mirror) = &check(one).unwrap()[0].kind else {
        panic!("it is a registry");
    };
    assert_eq!(mirror.every, Duration::from_secs(300));
    for (from, to, what) in [
        ("library/redis", "Library", "repositories"),
        (", every: 5m", ", every: 10ms", "at most"),
        ("tags: [':7$'], ", "", "say which ones come"),
        (":7$", "(", "tags"),
        ("https", "ftp", "https://"),
    ] {
        let error = check(&one.replace(from, to)).unwrap_err();
        assert!(error.contains(what), "{to}: {error}");
    }
}

#[test]
fn a_registry_is_told_as_a_backend_is() {
    let text = "- {name: harbor, tags: [a], registry: {url: 'https://harbor.test', repository: 'mirror/{namespace}', \
                credentials: {password: {username: a, password: {env: P}}}}}";
    let rules = check(text).unwrap();
    assert!(matches!(rules[0].kind, RemoteKind::Registry(_)));
}

#[test]
fn a_remote_has_a_name_of_its_own_and_somewhere_to_go() {
    let one = "{name: west, build_indexes: ['https://a:1'], tags: ['^team/'], limit: 20MB}";
    let rules = check(&format!("- {one}")).unwrap();
    assert_eq!(
        rules[0].plan.limit.map(std::num::NonZeroU64::get),
        Some(20_000_000)
    );
    for (text, what) in [
        (format!("[{one}, {one}]"), "west is there twice"),
        (
            format!("- {}", one.replace("west", "east")),
            "called so itself",
        ),
        (
            format!("- {}", one.replace("west", "a b")),
            "a name has letters",
        ),
        (
            format!("- {}", one.replace("'https://a:1'", "")),
            "build_indexes",
        ),
        (
            format!("- {}", one.replace("https", "ftp")),
            "build_indexes",
        ),
        (format!("- {}", one.replace("^team/", "(")), "tags"),
        (format!("- {}", one.replace("tags", "tag")), "tags"),
        (
            format!(
                "- {}",
                one.replace("limit: 20MB", "registry: {url: 'https://r'}")
            ),
            "or else its registry",
        ),
        (
            "- {name: r, tags: [a], registry: {url: 'ftp://r'}}".into(),
            "https://",
        ),
        (
            "- {name: r, tags: [a], registry: {url: 'http://r', repository: all}}".into(),
            "{namespace}",
        ),
        ("- {name: r, tags: [a]}".into(), "or else its registry"),
        (
            format!("- {}", one.replace("limit: 20MB", "fetches: true")),
            "one of the three",
        ),
        (
            "- {name: r, tags: [a], fetches: true, limit: 1MB}".into(),
            "limits it itself",
        ),
        (
            format!("- {}", one.replace("limit: 20MB", "hours: [night]")),
            "remotes[0].hours[0]: \"night\" is no window such as",
        ),
        (
            format!("- {}", one.replace("limit: 20MB", "platforms: [amd64]")),
            "remotes[0].platforms[0]: \"amd64\" is no platform such as",
        ),
        (
            format!("- {}", one.replace("limit", "limit_outside")),
            "outside of which hours",
        ),
    ] {
        let error = check(&text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    }
}
