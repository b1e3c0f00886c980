//! Certificates: wrong ones get nowhere, on any hop, and new ones take the place of old ones while
//! everybody works.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kraken_core::net::{
    CertAuthority, CertInfo, CertRequest, Identity, NetError, Quic, Tcp, Transport,
};
use kraken_core::proto::PeerRole;
use kraken_core::{Digest, PeerInfo};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::common::{Lab, pull, push, random, until, within};

/// A certificate with its key, and what is trusted.
struct Shown {
    cert: String,
    key: String,
    roots: String,
}

impl Shown {
    fn of(ca: &CertAuthority, role: &str, validity: Duration) -> Self {
        let hosts = ["127.0.0.1".to_owned()];
        let (cert, key) = ca
            .issue_as(&CertRequest {
                role,
                name: "it",
                hosts: &hosts,
                zone: None,
                validity,
            })
            .unwrap();
        Self {
            cert,
            key,
            roots: ca.to_pem().0,
        }
    }

    /// The status of an answer, and its words; an error when TLS lets nothing pass.
    async fn ask(&self, method: &str, url: &str) -> reqwest::Result<(StatusCode, String)> {
        // The client wants one that the whole process has.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pem = format!("{}{}", self.cert, self.key);
        let roots = reqwest::Certificate::from_pem_bundle(self.roots.as_bytes())?;
        let client = reqwest::Client::builder()
            .identity(reqwest::Identity::from_pem(pem.as_bytes())?)
            .tls_certs_only(roots)
            .no_proxy()
            .build()?;
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = client.request(method, url).send().await?;
        let status = answer.status();
        Ok((status, answer.text().await?))
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(&self.cert, &self.key, &self.roots).unwrap()
    }
}

/// Who calls whom, how, and who may not.
type Hop = (
    &'static str,
    &'static str,
    &'static str,
    String,
    &'static str,
);

fn hops() -> Vec<Hop> {
    let digest = Digest::of(b"x");
    let hop = |from, to, method, path: &str, wrong| (from, to, method, path.to_owned(), wrong);
    vec![
        hop("agent", "tracker", "POST", "/announce", "proxy"),
        hop(
            "agent",
            "tracker",
            "GET",
            &format!("/namespace/a/blobs/{digest}/metainfo"),
            "proxy",
        ),
        hop("agent", "build-index", "GET", "/tags/a%3Av1", "stranger"),
        hop(
            "tracker",
            "origin-1",
            "GET",
            "/internal/peercontext",
            "agent",
        ),
        hop(
            "tracker",
            "origin-1",
            "POST",
            &format!("/namespace/a/blobs/{digest}/prefetch"),
            "agent",
        ),
        hop(
            "origin",
            "origin-1",
            "POST",
            "/internal/ring/holds",
            "proxy",
        ),
        hop(
            "origin",
            "origin-1",
            "POST",
            &format!("/internal/blobs/{digest}/uploads"),
            "proxy",
        ),
        hop("proxy", "origin-1", "POST", "/namespace/a/uploads", "agent"),
        hop(
            "proxy",
            "build-index",
            "PUT",
            &format!("/tags/a%3Av1/digest/{digest}"),
            "agent",
        ),
        hop(
            "build-index",
            "origin-1",
            "POST",
            "/internal/garbage/page",
            "agent",
        ),
        hop(
            "build-index",
            "build-index",
            "POST",
            "/internal/tags/look",
            "origin",
        ),
        hop(
            "build-index",
            "build-index",
            "POST",
            "/replicate/look",
            "operator",
        ),
        hop("operator", "origin-1", "GET", "/x/queue", "origin"),
        hop("operator", "build-index", "POST", "/x/garbage", "proxy"),
    ]
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn wrong_certificates_get_nowhere_on_any_hop() {
    within(120, "wrong certificates", async {
        let lab = Lab::start(1, 1).await;
        let (ours, theirs) = (lab.authority(), CertAuthority::create().unwrap());
        let expired = |role| Shown::of(ours, role, Duration::ZERO);
        let mut list = fs::read_to_string(lab.path("ca.crl")).unwrap();
        let hops = hops();
        // Made ahead, so that they have expired and the lists are read when it counts.
        let made: Vec<_> = hops
            .iter()
            .map(|(role, ..)| {
                let mut foreign = Shown::of(&theirs, role, HOUR);
                foreign.roots = ours.to_pem().0;
                let revoked = Shown::of(ours, role, HOUR);
                list = ours.revoke(&revoked.cert, Some(&list)).unwrap();
                [
                    ("foreign", foreign),
                    ("revoked", revoked),
                    ("expired", expired(role)),
                ]
            })
            .collect();
        lab.replace("ca.crl", &list);
        lab.taken(1).await;
        let ends = CertInfo::from_pem(&made[made.len() - 1][2].1.cert).unwrap()[0].not_after;
        until("they have expired", async || {
            (SystemTime::now() > ends + Duration::from_secs(1)).then_some(())
        })
        .await;
        for ((role, to, method, path, wrong), bad) in hops.iter().zip(&made) {
            let url = format!("https://{}{path}", lab.host(to));
            let what = format!("{role} to {to}, {method} {path}");
            let (status, said) = Shown::of(ours, role, HOUR).ask(method, &url).await.unwrap();
            assert_ne!(status, StatusCode::FORBIDDEN, "{what}: {said}");
            let (status, said) = Shown::of(ours, wrong, HOUR)
                .ask(method, &url)
                .await
                .unwrap();
            assert_eq!(status, StatusCode::FORBIDDEN, "{what}: {said}");
            assert!(said.contains("is needed"), "{what}: {said}");
            for (why, shown) in bad {
                let answer = shown.ask(method, &url).await;
                assert!(answer.is_err(), "{what}, {why}: {answer:?}");
            }
        }
        let revoked = &made[0][1].1;
        peers(&lab, &revoked.identity(), &theirs).await;
    })
    .await;
}

/// Nor do they between peers.
async fn peers(lab: &Lab, revoked: &Identity, theirs: &CertAuthority) {
    let mut foreign = Shown::of(theirs, "agent", HOUR);
    foreign.roots += &lab.authority().to_pem().0;
    let wrong = Shown::of(lab.authority(), "proxy", HOUR).identity();
    let good = Shown::of(lab.authority(), "agent", HOUR).identity();
    for member in ["agent-1", "origin-1"] {
        let config: Value =
            serde_json::from_str(&fs::read_to_string(lab.config(member)).unwrap()).unwrap();
        let addr: SocketAddr = config["peer_listen"].as_str().unwrap().parse().unwrap();
        let cert = fs::read_to_string(lab.path(&format!("{member}.crt"))).unwrap();
        let peer = PeerInfo {
            id: CertInfo::from_pem(&cert).unwrap()[0].peer_id,
            addr,
            role: PeerRole::Agent,
            zone: None,
        };
        let any = "127.0.0.1:0".parse().unwrap();
        for (what, identity, says) in [
            ("good", &good, None),
            ("foreign", &foreign.identity(), Some("")),
            ("revoked", revoked, Some("")),
            (
                "of another role",
                &wrong,
                Some("of role agent, origin is needed"),
            ),
        ] {
            let quic = Quic::bind(any, identity).unwrap();
            let tcp = Tcp::bind(any, identity).unwrap();
            let dialed = [quic.dial(&peer).await.err(), tcp.dial(&peer).await.err()];
            for error in dialed {
                let told = error.as_ref().map(NetError::to_string);
                assert_eq!(
                    told.is_some(),
                    says.is_some(),
                    "{what} at {member}: {told:?}"
                );
                let told = told.unwrap_or_default();
                assert!(
                    told.contains(says.unwrap_or_default()),
                    "{what} at {member}: {told}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_change_under_load_and_no_request_fails() {
    within(180, "rotation", async {
        let mut lab = Lab::start(2, 2).await;
        let (over, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let load = {
            let hosts = [lab.host("proxy"), lab.host("agent-1"), lab.host("agent-2")];
            let (over, done) = (over.clone(), done.clone());
            tokio::spawn(async move {
                let [proxy, agents @ ..] = hosts;
                // Each of them panics when anything is refused.
                for round in 0.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let bytes = random(3 << 20, round);
                    let digest = push(&proxy, &bytes).await;
                    for agent in &agents {
                        assert_eq!(pull(agent, digest).await, bytes.len() as u64);
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let worked = async |lab: &Lab, step: u64| {
            lab.taken(step).await;
            let before = done.load(Ordering::SeqCst);
            until("the load goes on", async || {
                assert!(!load.is_finished(), "a request failed in step {step}");
                (done.load(Ordering::SeqCst) >= before + 2).then_some(())
            })
            .await;
        };
        let names = lab.names();
        let next = CertAuthority::create().unwrap();
        let (old_ca, new_ca) = (lab.authority().to_pem().0, next.to_pem().0);
        let both = format!("{old_ca}{new_ca}");

        for name in &names {
            let file = format!("{name}.crt");
            let cert = fs::read_to_string(lab.path(&file)).unwrap();
            lab.replace(&file, &lab.authority().renew(&cert, HOUR).unwrap());
        }
        worked(&lab, 1).await;
        lab.replace("ca.crt", &both);
        worked(&lab, 2).await;
        for name in &names {
            let file = format!("{name}.crt");
            let cert = fs::read_to_string(lab.path(&file)).unwrap();
            lab.replace(&file, &next.adopt(&cert, &old_ca, HOUR).unwrap());
        }
        lab.ask_as(&identity_of(&next, &both));
        worked(&lab, 3).await;
        lab.replace("ca.crt", &new_ca);
        worked(&lab, 4).await;
        // The old authority is nobody any more.
        let operator = Shown {
            roots: both,
            ..Shown::of(lab.authority(), "operator", HOUR)
        };
        let url = format!("https://{}/x/queue", lab.host("origin-1"));
        assert!(operator.ask("GET", &url).await.is_err());
        over.store(true, Ordering::SeqCst);
        load.await.unwrap();
        println!(
            "{} blobs pushed, and pulled twice",
            done.load(Ordering::SeqCst)
        );
    })
    .await;
}

fn identity_of(ca: &CertAuthority, roots: &str) -> Identity {
    let shown = Shown {
        roots: roots.to_owned(),
        ..Shown::of(ca, "operator", HOUR)
    };
    shown.identity()
}
