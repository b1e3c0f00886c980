//! Which certificate has which role, and who may call what.

use std::time::UNIX_EPOCH;

use kraken_proto::PeerId;

use super::*;

fn cert(common: Option<&str>, uris: &[&str], hosts: &[&str]) -> CertInfo {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    CertInfo {
        common_name: common.map(str::to_owned),
        organization: None,
        issuer: None,
        serial: "01".into(),
        hosts: owned(hosts),
        uris: owned(uris),
        not_before: UNIX_EPOCH,
        not_after: UNIX_EPOCH,
        is_authority: false,
        peer_id: PeerId::from_bytes([1; 32]),
    }
}

#[test]
fn a_role_is_read_from_a_uri() {
    let role = |uris: &[&str]| {
        RoleNames::Written
            .bearer(&cert(Some("origin"), uris, &[]))
            .role
    };
    assert_eq!(role(&["urn:kraken:role:origin"]), Some(Role::Origin));
    assert_eq!(
        role(&["spiffe://east/build-index/index-1"]),
        Some(Role::BuildIndex)
    );
    for none in [
        "urn:kraken:role:Origin",
        "urn:kraken:role:",
        "spiffe://east/origin",
        "spiffe://east/origin/",
        "spiffe://east/ns/origin/x",
        "spiffe://east/x/origin/a",
        "https://east/origin/a",
        "origin",
    ] {
        assert_eq!(role(&[none]), None, "{none}");
    }
    assert_eq!(role(&[]), None);
    // Two that agree are one, two that do not are none.
    assert_eq!(
        role(&["urn:kraken:role:origin", "spiffe://e/origin/a"]),
        Some(Role::Origin)
    );
    assert_eq!(
        role(&["urn:kraken:role:origin", "urn:kraken:role:operator"]),
        None
    );
}

#[test]
fn name_and_zone_are_read_too() {
    let uris = ["spiffe://east/agent/host-1", "urn:kraken:zone:rack-17"];
    let bearer = RoleNames::Written.bearer(&cert(Some("other"), &uris, &[]));
    assert_eq!(bearer.name.as_deref(), Some("host-1"));
    assert_eq!(bearer.zone.unwrap().as_str(), "rack-17");
    let plain = RoleNames::Written.bearer(&cert(Some("host-2"), &["urn:kraken:role:agent"], &[]));
    assert_eq!((plain.name.as_deref(), plain.zone), (Some("host-2"), None));
}

#[test]
fn patterns_fit_whole_names_and_are_all_that_counts() {
    let names = |pattern: &str| RoleNames::Patterns(vec![(pattern.parse().unwrap(), Role::Proxy)]);
    let fits = |pattern: &str, cert: &CertInfo| names(pattern).bearer(cert).role.is_some();
    let uri = cert(None, &["spiffe://prod/ns/kraken/sa/proxy"], &[]);
    assert!(fits("spiffe://prod/ns/kraken/sa/proxy", &uri));
    assert!(fits("spiffe://prod/ns/*/sa/proxy", &uri));
    assert!(fits("spiffe://*/ns/kr*en/sa/*y", &uri));
    for no in [
        "spiffe://prod/*/proxy",
        "spiffe://prod",
        "*proxy",
        "spiffe://prod/ns/kraken/sa/pro",
        "prod*",
    ] {
        assert!(!fits(no, &uri), "{no}");
    }
    assert!(fits(
        "proxy-*.example.com",
        &cert(None, &[], &["proxy-1.example.com"])
    ));
    assert!(fits("proxy", &cert(Some("proxy"), &[], &[])));
    // "aa" begins and ends with "a", "a" does so by the same letter.
    assert!(!fits("a*a", &cert(Some("a"), &[], &[])));
    assert!(!fits("other", &cert(None, &["urn:kraken:role:proxy"], &[])));
    assert!("*".parse::<NamePattern>().is_err() && "".parse::<NamePattern>().is_err());
}

#[test]
fn who_may_call_what() {
    use Role::{Agent, BuildIndex, Operator, Origin, Proxy, Tracker};
    let table: &[(Role, &str, &str, &[Role])] = &[
        (Tracker, "POST", "/announce", &[Agent, Origin]),
        (Tracker, "POST", "/report", &[Agent, Origin]),
        (
            Tracker,
            "GET",
            "/namespace/a%2Fb/blobs/d/metainfo",
            &[Agent, Origin, Operator],
        ),
        (Tracker, "GET", "/x/origins", &[Agent, Origin, Operator]),
        (Tracker, "POST", "/x/anything", &[Operator]),
        (Origin, "GET", "/namespace/a/blobs/d", EVERY),
        (Origin, "HEAD", "/blobs/d/locations", EVERY),
        (Origin, "POST", "/namespace/a/uploads", WRITERS),
        (Origin, "PATCH", "/namespace/a/uploads/1", WRITERS),
        (Origin, "PUT", "/namespace/a/blobs/d/uploads/1", WRITERS),
        (Origin, "POST", "/namespace/a/blobs/d/prefetch", SERVICES),
        (Origin, "GET", "/internal/peercontext", SERVICES),
        (
            Origin,
            "GET",
            "/internal/namespace/a/blobs/d/metainfo",
            SERVICES,
        ),
        (
            Origin,
            "PUT",
            "/internal/namespace/a/blobs/d/write-back",
            &[Origin],
        ),
        (Origin, "POST", "/internal/blobs/d/uploads", &[Origin]),
        (Origin, "POST", "/internal/ring/holds", &[Origin]),
        (
            Origin,
            "DELETE",
            "/internal/blobs/d",
            &[Origin, BuildIndex, Operator],
        ),
        (Origin, "POST", "/internal/garbage/page", &[BuildIndex]),
        (Origin, "GET", "/x/explain/d", &[Agent, Operator]),
        (Origin, "GET", "/x/queue", &[Operator]),
        (Origin, "POST", "/forcecleanup/v2", &[Operator]),
        (Origin, "PATCH", "/x/config/scheduler", &[Operator]),
        (BuildIndex, "GET", "/tags/a:v1", EVERY),
        (BuildIndex, "GET", "/list/a", EVERY),
        (
            BuildIndex,
            "PUT",
            "/tags/a:v1/digest/d",
            &[Proxy, BuildIndex, Operator],
        ),
        (
            BuildIndex,
            "DELETE",
            "/tags/a:v1",
            &[Proxy, BuildIndex, Operator],
        ),
        (
            BuildIndex,
            "PUT",
            "/repositories/a/links/l",
            &[Proxy, BuildIndex, Operator],
        ),
        (BuildIndex, "POST", "/internal/tags/accept", &[BuildIndex]),
        (
            BuildIndex,
            "GET",
            "/internal/tags/standing",
            &[BuildIndex, Operator],
        ),
        (
            BuildIndex,
            "POST",
            "/internal/replicate/blob",
            &[BuildIndex],
        ),
        (BuildIndex, "POST", "/replicate/registers", &[BuildIndex]),
        (BuildIndex, "POST", "/replicate/west/waiting", &[BuildIndex]),
        (BuildIndex, "POST", "/replicate/west/image", &[BuildIndex]),
        (BuildIndex, "POST", "/replicate/west/fetched", &[BuildIndex]),
        (BuildIndex, "POST", "/replicate/east/pause", &[Operator]),
        (BuildIndex, "POST", "/x/garbage", &[Operator]),
        (BuildIndex, "DELETE", "/no/such/path", &[Operator]),
    ];
    for (at, method, path, wanted) in table {
        for role in Role::ALL {
            let may = callers(*at, method, path).include(Some(role));
            assert_eq!(
                may,
                wanted.contains(&role),
                "{role}: {method} {path} at {at}"
            );
        }
        assert!(!callers(*at, method, path).include(None), "{method} {path}");
    }
}

#[test]
fn whether_it_is_well_anyone_with_a_certificate_may_ask() {
    for at in Role::ALL {
        for path in ["/health", "/readiness", "/metrics"] {
            assert_eq!(callers(at, "GET", path), Callers::Anyone);
        }
        assert!(!callers(at, "GET", "/health/x").include(None));
        assert!(!callers(at, "GET", "").include(None));
    }
}

#[test]
fn roles_have_names() {
    for role in Role::ALL {
        assert_eq!(role.to_string().parse(), Ok(role));
    }
    let error = "admin".parse::<Role>().unwrap_err().to_string();
    assert!(error.contains("build-index"), "{error}");
}
