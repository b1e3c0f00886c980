//! Trackers over real HTTP on the loopback.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use kraken_proto::tracker::report::{HostReport, ReportReply};
use kraken_proto::{
    AnnounceBlob, AnnounceReply, AnnounceRequest, AnnounceState, Digest, Handout, MetaInfo,
    Namespace, PeerId, PeerInfo, PeerRole,
};
use tokio_util::sync::CancellationToken;

use super::{TrackerApi, TrackerClient, router};
use crate::discovery::{Discovery, DiscoveryError};
use crate::http::{ApiError, HttpClient, HttpServer, admit, serve};
use crate::roles::Role;
use crate::testing::Issuer;
use crate::{CertAuthority, Identity};

/// Hands out the announcer itself, and knows the blobs of a few numbers.
#[derive(Default)]
struct Fake {
    announced: Mutex<Vec<AnnounceBlob>>,
    overheard: Mutex<Vec<AnnounceBlob>>,
    /// Names of the hosts that reported, where reports are wanted.
    reported: Option<Mutex<Vec<String>>>,
    down: bool,
}

fn blob(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

impl TrackerApi for Fake {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, ApiError> {
        if self.down {
            return Err(ApiError::Unavailable("down for a test".into()));
        }
        let handouts = request.blobs.iter().map(|blob| Handout {
            digest: blob.digest,
            peers: vec![request.peer.clone()],
        });
        let reply = AnnounceReply {
            interval_ms: 3000,
            handouts: handouts.collect(),
        };
        self.announced.lock().unwrap().extend(request.blobs);
        Ok(reply)
    }

    async fn overhear(&self, request: AnnounceRequest) -> Result<(), ApiError> {
        self.overheard.lock().unwrap().extend(request.blobs);
        Ok(())
    }

    async fn report(&self, report: HostReport) -> Result<ReportReply, ApiError> {
        if self.down {
            return Err(ApiError::Unavailable("down for a test".into()));
        }
        let reported = self.reported.as_ref().ok_or(ApiError::NotFound)?;
        reported.lock().unwrap().push(report.name);
        Ok(ReportReply { next_ms: 2000 })
    }

    async fn metainfo(&self, namespace: Namespace, digest: Digest) -> Result<MetaInfo, ApiError> {
        if namespace.as_str() != "library/busybox" {
            return Err(ApiError::BadRequest(format!("not {namespace}")));
        }
        (0..40)
            .map(|number| MetaInfo::of(&blob(number)))
            .find(|meta| meta.digest() == digest)
            .ok_or(ApiError::NotFound)
    }
}

struct Tracker {
    fake: Arc<Fake>,
    url: String,
    stop: CancellationToken,
    server: HttpServer,
}

fn tracker(fake: Fake) -> Tracker {
    let (fake, stop) = (Arc::new(fake), CancellationToken::new());
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, router(fake.clone()), None, stop.clone()).unwrap();
    Tracker {
        fake,
        url: format!("http://{}", server.local_addr()),
        stop,
        server,
    }
}

fn client(urls: &[&str]) -> TrackerClient {
    TrackerClient::new(urls, HttpClient::new(None).unwrap()).unwrap()
}

fn announce(numbers: std::ops::Range<u32>) -> AnnounceRequest {
    let blobs = numbers.map(|number| AnnounceBlob {
        namespace: Namespace::default(),
        digest: Digest::of(&blob(number)),
        state: AnnounceState::Leeching,
        links: 0,
        progress: None,
        needy: false,
    });
    AnnounceRequest {
        peer: PeerInfo {
            id: PeerId::from_bytes([7; 32]),
            addr: "10.0.0.1:7600".parse().unwrap(),
            role: PeerRole::Agent,
            zone: None,
        },
        blobs: blobs.collect(),
    }
}

fn digests(reply: &AnnounceReply) -> BTreeSet<Digest> {
    reply
        .handouts
        .iter()
        .map(|handout| handout.digest)
        .collect()
}

#[tokio::test]
async fn blobs_are_spread_over_the_trackers_and_replies_merged() {
    let (one, other) = (tracker(Fake::default()), tracker(Fake::default()));
    let client = client(&[&one.url, &other.url]);
    let reply = client.announce(announce(0..40)).await.unwrap();
    assert_eq!(digests(&reply).len(), 40);
    assert_eq!(reply.interval_ms, 3000);
    let counts = [&one, &other].map(|it| it.fake.announced.lock().unwrap().len());
    assert_eq!(counts[0] + counts[1], 40);
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    // Each hears what is announced to the other.
    for (it, count) in [(&one, counts[1]), (&other, counts[0])] {
        for _ in 0..500 {
            if it.fake.overheard.lock().unwrap().len() == count {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let mut heard: Vec<_> = it.fake.overheard.lock().unwrap().clone();
        assert_eq!(heard.len(), count);
        let announced = it.fake.announced.lock().unwrap();
        heard.retain(|blob| announced.contains(blob));
        assert_eq!(heard, [], "of one blob one of the two");
    }
    let nothing = client.announce(announce(0..0)).await.unwrap();
    assert_eq!((nothing.interval_ms, nothing.handouts.len()), (3000, 0));
}

#[tokio::test]
async fn a_dead_and_a_failing_tracker_are_passed_over() {
    let (alive, dead) = (tracker(Fake::default()), tracker(Fake::default()));
    let failing = tracker(Fake {
        down: true,
        ..Fake::default()
    });
    dead.stop.cancel();
    dead.server.stopped().await.unwrap();
    let client = client(&[&dead.url, &alive.url, &failing.url]);
    for _ in 0..2 {
        let reply = client.announce(announce(0..40)).await.unwrap();
        assert_eq!(digests(&reply).len(), 40);
    }
    let namespace: Namespace = "library/busybox".parse().unwrap();
    for number in 0..10 {
        let digest = Digest::of(&blob(number));
        let meta = client.metainfo(&namespace, digest).await;
        assert!(matches!(meta, Ok(meta) if meta.digest() == digest));
    }
}

#[tokio::test]
async fn without_any_tracker_it_is_unavailable() {
    let failing = tracker(Fake {
        down: true,
        ..Fake::default()
    });
    for client in [client(&[&failing.url]), client(&[])] {
        let error = client.announce(announce(0..3)).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn a_missing_blob_and_a_refusal_are_told_apart() {
    let tracker = tracker(Fake::default());
    let client = client(&[&tracker.url]);
    let namespace: Namespace = "library/busybox".parse().unwrap();
    let missing = Digest::of(b"missing");
    let error = client.metainfo(&namespace, missing).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::NotFound(it) if it == missing));
    let other = Namespace::default();
    let error = client.metainfo(&other, missing).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Refused(_)), "{error}");
    let error = client.announce(announce(0..257)).await.unwrap_err();
    assert!(error.to_string().contains("at most 256"), "{error}");
}

#[tokio::test]
async fn bad_requests_are_answered_in_json() {
    let tracker = tracker(Fake::default());
    let post = async |body: String| {
        let http = HttpClient::new(None).unwrap();
        let request = http::Request::post(format!("{}/announce", tracker.url))
            .body(crate::http::HttpBody::Bytes(body.into()))
            .unwrap();
        http.ask(request).await.unwrap_err().to_string()
    };
    let mut json = serde_json::to_value(announce(0..1)).unwrap();
    json["extra"] = 1.into();
    assert!(post(json.to_string()).await.contains("extra"));
    assert!(post("{".into()).await.contains("no announce"));
    assert!(post(" ".repeat(300 << 10)).await.contains("length limit"));
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_cluster_is_refused() {
    let ca = CertAuthority::create().unwrap();
    let identity = |ca: &CertAuthority, roots: &str| {
        let (cert, key) = ca.issue("agent", &["127.0.0.1".into()]).unwrap();
        let roots = format!("{}{roots}", ca.to_pem().0);
        Identity::from_pem(&cert, &key, &roots).unwrap()
    };
    let server = identity(&ca, "");
    let stop = CancellationToken::new();
    let api = router(Arc::new(Fake::default()));
    let any = "127.0.0.1:0".parse().unwrap();
    let server = serve(any, api, Some(&server), stop).unwrap();
    let url = format!("https://{}", server.local_addr());
    let ask = async |identity: Option<&Identity>| {
        let http = HttpClient::new(identity).unwrap();
        let client = TrackerClient::new([&url], http).unwrap();
        client.announce(announce(0..1)).await
    };
    ask(Some(&identity(&ca, ""))).await.unwrap();
    let foreign = CertAuthority::create().unwrap();
    // It trusts the server, and is not trusted.
    let spy = identity(&foreign, &ca.to_pem().0);
    assert!(ask(Some(&spy)).await.unwrap_err().is_retryable());
    assert!(ask(None).await.unwrap_err().is_retryable());
    // Nor does a member talk to a server that has another name.
    let elsewhere = url.replace("127.0.0.1", "localhost");
    let http = HttpClient::new(Some(&identity(&ca, ""))).unwrap();
    let client = TrackerClient::new([elsewhere], http).unwrap();
    let error = client.announce(announce(0..1)).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

fn report() -> HostReport {
    let peer = serde_json::to_value(announce(0..0).peer).unwrap();
    serde_json::from_value(serde_json::json!({"peer": peer, "name": "host-7"})).unwrap()
}

#[tokio::test]
async fn reports_go_to_all_trackers_that_want_them() {
    let wants = || Fake {
        reported: Some(Mutex::default()),
        ..Fake::default()
    };
    let down = Fake {
        down: true,
        ..Fake::default()
    };
    let (one, other, without) = (tracker(wants()), tracker(wants()), tracker(Fake::default()));
    let down = tracker(down);
    let all = client(&[&one.url, &other.url, &without.url, &down.url]);
    for _ in 0..2 {
        let next = all.report(report()).await.unwrap();
        assert_eq!(next, Some(std::time::Duration::from_secs(2)));
    }
    for it in [&one, &other] {
        let reported = it.fake.reported.as_ref().unwrap().lock().unwrap();
        assert_eq!(*reported, ["host-7", "host-7"]);
    }
    assert_eq!(
        client(&[&without.url]).report(report()).await.unwrap(),
        None
    );
    let alone = client(&[&down.url]);
    let told = alone.report(report()).await;
    assert!(
        matches!(told, Err(DiscoveryError::Unavailable(_))),
        "{told:?}"
    );
    assert_eq!(
        alone.report(report()).await.unwrap(),
        None,
        "it is left alone for now"
    );
}

#[tokio::test]
async fn a_report_is_bounded_before_it_is_read() {
    let wants = tracker(Fake {
        reported: Some(Mutex::default()),
        ..Fake::default()
    });
    let post = async |body: Vec<u8>| {
        let url = format!("{}/report", wants.url);
        let sent = HttpClient::new(None).unwrap().raw().post(url).body(body);
        sent.send().await.unwrap().status().as_u16()
    };
    let whole = serde_json::to_vec(&report()).unwrap();
    assert_eq!(post(whole).await, 200);
    assert_eq!(post(b"{}".to_vec()).await, 400);
    assert_eq!(post(vec![b' '; 200 << 10]).await, 400);
}

#[tokio::test]
async fn a_host_announces_itself_and_its_own_zone_only() {
    let issuer = Issuer::new();
    let stop = CancellationToken::new();
    let api = admit(router(Arc::new(Fake::default())), Role::Tracker);
    let any = "127.0.0.1:0".parse().unwrap();
    let tracker = issuer.identity("tracker");
    let server = serve(any, api, Some(&tracker), stop).unwrap();
    let url = format!("https://{}", server.local_addr());
    let agent = issuer.identity("agent");
    let http = HttpClient::new(Some(&agent)).unwrap();
    let client = TrackerClient::new([&url], http).unwrap();

    let mut request = announce(0..1);
    request.peer.id = agent.peer_id();
    request.peer.zone = Some("rack-1".parse().unwrap());
    client.announce(request.clone()).await.unwrap();
    let refused = async |change: &dyn Fn(&mut AnnounceRequest)| {
        let mut wrong = request.clone();
        change(&mut wrong);
        client.announce(wrong).await.unwrap_err().to_string()
    };
    let other = issuer.identity("agent").peer_id();
    let told = refused(&|it| it.peer.id = other).await;
    assert!(told.contains("announces itself only"), "{told}");
    let told = refused(&|it| it.peer.zone = Some("rack-2".parse().unwrap())).await;
    assert!(
        told.contains("zone rack-2") && told.contains("zone rack-1"),
        "{told}"
    );
    let told = refused(&|it| it.peer.role = PeerRole::Origin).await;
    assert!(told.contains("announces an origin"), "{told}");
    let told = refused(&|it| it.peer.zone = None).await;
    assert!(told.contains("no zone"), "{told}");
    assert_eq!(tracker.status().wrong_roles, 4);
}

#[tokio::test]
async fn a_host_that_floods_its_tracker_is_turned_away_and_others_are_not() {
    let issuer = Issuer::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let api = admit(router(Arc::new(Fake::default())), Role::Tracker);
    let tracker = issuer.identity("tracker");
    let server = serve(any, api, Some(&tracker), CancellationToken::new()).unwrap();
    let url = format!("https://{}", server.local_addr());
    let host = || {
        let agent = issuer.identity("agent");
        let client = TrackerClient::new([&url], HttpClient::new(Some(&agent)).unwrap()).unwrap();
        let mut request = announce(0..1);
        request.peer.id = agent.peer_id();
        request.peer.zone = Some("rack-1".parse().unwrap());
        (client, request)
    };
    let (flooder, request) = host();
    let mut turned_away = None;
    // A burst of 2,000, and 50 a second while they are sent.
    for _ in 0..20_000 {
        if let Err(error) = flooder.announce(request.clone()).await {
            turned_away = Some(error.to_string());
            break;
        }
    }
    let told = turned_away.expect("it is turned away");
    assert!(told.contains("too often"), "{told}");
    // That says nothing about the tracker.
    assert!(!flooder.has_failed(&url));
    let (other, request) = host();
    other.announce(request).await.unwrap();
}
