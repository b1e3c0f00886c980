//! Input that is wrong: requests, datagrams, certificates, configurations, arguments.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use kraken::cluster::{Cluster, ClusterOptions};
use kraken_core::net::http::{HttpBody, HttpClient};
use kraken_core::net::{CertAuthority, Identity};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;

use crate::common::{Lab, ask, authority_in, free_addr, kraken, pull, push, random, within};

async fn cluster(dir: &Path) -> Cluster {
    let options = ClusterOptions {
        agents: 1,
        origins: 1,
        dir: dir.to_path_buf(),
        base_port: None,
    };
    Cluster::start(&options).await.unwrap()
}

/// The status of an answer and the code in its error document.
async fn refusal(method: Method, url: String, body: HttpBody) -> (StatusCode, String) {
    let answer = ask(method, &url, body).await;
    let status = answer.status();
    let document: Value = answer.json(64 << 10).await.unwrap();
    let error = &document["errors"][0];
    assert!(!error["message"].as_str().unwrap().is_empty(), "{document}");
    (status, error["code"].as_str().unwrap().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_in_the_registry_s_words() {
    within(60, "wrong requests", async {
        let dir = tempfile::tempdir().unwrap();
        let cluster = cluster(dir.path()).await;
        let (proxy, agent) = (cluster.proxy.addr, cluster.agents[0].registry);
        for registry in [proxy, agent] {
            for digest in ["sha256:12", "sha256:..%2F..%2Fx", "md5:00"] {
                let url = format!("http://{registry}/v2/faults/blobs/{digest}");
                let told = refusal(Method::GET, url, HttpBody::Empty).await;
                assert_eq!(told, (StatusCode::BAD_REQUEST, "DIGEST_INVALID".into()));
            }
            let base = format!("http://{registry}/v2/no/such/repository");
            let url = format!("{base}/manifests/latest");
            let (status, code) = refusal(Method::GET, url, HttpBody::Empty).await;
            assert_eq!(status, StatusCode::NOT_FOUND);
            assert!(["MANIFEST_UNKNOWN", "NAME_UNKNOWN"].contains(&code.as_str()));
            let url = format!("{base}/tags/list");
            let told = refusal(Method::GET, url, HttpBody::Empty).await;
            assert_eq!(told, (StatusCode::NOT_FOUND, "NAME_UNKNOWN".into()));
        }
        let url = format!("http://{proxy}/v2/faults/manifests/latest");
        let body = HttpBody::Bytes(Bytes::from(vec![b' '; 5 << 20]));
        let (status, _) = refusal(Method::PUT, url, body).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        cluster.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_at_the_quic_ports_disturbs_no_pull() {
    within(60, "garbage", async {
        let dir = tempfile::tempdir().unwrap();
        let cluster = cluster(dir.path()).await;
        let bytes = random(32 << 20, 21);
        let digest = push(&cluster.proxy.addr.to_string(), &bytes).await;
        let targets = vec![
            cluster.agents[0].agent.local().addr,
            cluster.origins[0].origin.local().addr,
        ];
        let (over, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let flood = tokio::task::spawn_blocking({
            let (over, sent) = (over.clone(), sent.clone());
            move || flood(&targets, &over, &sent)
        });
        // Some of it comes before the pull, the rest during it.
        while sent.load(Ordering::SeqCst) < 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let length = pull(&cluster.agents[0].registry.to_string(), digest).await;
        over.store(true, Ordering::SeqCst);
        flood.await.unwrap();
        assert_eq!(length, bytes.len() as u64);
        assert_eq!(cluster.agents[0].agent.metrics().peers_banned(), 0);
        println!("{} datagrams", sent.load(Ordering::SeqCst));
        cluster.stop().await;
    })
    .await;
}

/// Noise, and noise behind the first bytes of QUIC packets: long headers of version 1, of an
/// unknown version, and a short header.
fn flood(targets: &[SocketAddr], over: &AtomicBool, sent: &AtomicU64) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let heads: [&[u8]; 5] = [
        &[],
        &[0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        &[0xe0, 0, 0, 0, 1, 20],
        &[0xff, 0xfa, 0xce, 0xb0, 0x0c, 8],
        &[0x40],
    ];
    for round in 0_u64.. {
        if over.load(Ordering::SeqCst) {
            return;
        }
        for (head, target) in heads
            .iter()
            .zip(targets.iter().cycle().skip((round % 2) as usize))
        {
            let length = [1, 20, 300, 1200, 1452][(round % 5) as usize];
            let mut datagram = head.to_vec();
            datagram.extend_from_slice(&random(length, round));
            // A full buffer on the way is no failure.
            let _ = socket.send_to(&datagram, target);
            sent.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_speaks_only_to_holders_of_a_certificate_of_the_cluster() {
    within(60, "certificates", async {
        let dir = tempfile::tempdir().unwrap();
        let cluster = cluster(dir.path()).await;
        let origin = cluster.origins[0].addr;
        let ours = authority_in(dir.path());
        let names = ["127.0.0.1".to_string()];
        let ca = ours.to_pem().0;
        let known = ours.issue("agent", &names).unwrap();
        let greeted = {
            let ca = ca.clone();
            tokio::task::spawn_blocking(move || health(origin, &ca, Some(known)))
        };
        let greeted = greeted.await.unwrap().unwrap();
        assert!(greeted.starts_with("HTTP/1.1 200"), "{greeted}");
        let nameless = {
            let ca = ca.clone();
            tokio::task::spawn_blocking(move || health(origin, &ca, None))
        };
        let refused = nameless.await.unwrap().unwrap_err().to_string();
        assert!(refused.to_lowercase().contains("certificate"), "{refused}");

        // A certificate of somebody else's authority, with trust in ours.
        let theirs = CertAuthority::create().unwrap();
        let (cert, key) = theirs.issue("agent", &names).unwrap();
        let both = format!("{ca}{}", theirs.to_pem().0);
        let stranger = Identity::from_pem(&cert, &key, &both).unwrap();
        let client = HttpClient::new(Some(&stranger)).unwrap();
        let request = Request::get(format!("https://{origin}/health"));
        let answer = client.send(request.body(HttpBody::Empty).unwrap()).await;
        assert!(answer.is_err(), "{answer:?}");
        cluster.stop().await;
    })
    .await;
}

/// `GET /health` by hand, with trust in the cluster's authority and the certificate `shown`.
fn health(
    origin: SocketAddr,
    ca: &str,
    shown: Option<(String, String)>,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    let name = ServerName::from(origin.ip());
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(origin)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(connection, socket);
    let request = "GET /health HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes())?;
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer)?;
    answer.truncate(read);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_configurations_are_named() {
    within(60, "configurations", async {
        let lab = Lab::start(1, 1).await;
        let good: Value =
            serde_json::from_str(&fs::read_to_string(lab.config("agent-1")).unwrap()).unwrap();
        let path = lab.path("wrong.yaml");
        let refused = async |config: &Value| {
            fs::write(&path, config.to_string()).unwrap();
            let ran = kraken(&["run", "agent", "--config", path.to_str().unwrap()]).await;
            assert!(!ran.status.success(), "{ran:?}");
            assert_eq!(ran.stdout, "");
            ran.stderr
        };

        let mut config = good.clone();
        config["peer_lisen"] = "127.0.0.1:1".into();
        let told = refused(&config).await;
        assert!(
            told.contains("peer_lisen") && told.contains("wrong.yaml"),
            "{told}"
        );

        let mut config = good.clone();
        config["tls"]["cert"] = "/nowhere/agent.crt".into();
        let told = refused(&config).await;
        assert!(told.contains("/nowhere/agent.crt"), "{told}");

        // All its own but the store, which the agent that runs has open.
        let mut config = good;
        for port in ["peer_listen", "registry_listen"] {
            config[port] = free_addr().to_string().into();
        }
        let told = refused(&config).await;
        let store = lab.path("agent-1");
        assert!(
            told.contains(store.to_str().unwrap()) && told.contains("open already"),
            "{told}"
        );

        let missing = lab.path("missing.yaml");
        let ran = kraken(&["run", "agent", "--config", missing.to_str().unwrap()]).await;
        assert!(
            !ran.status.success() && ran.stderr.contains("missing.yaml"),
            "{ran:?}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_are_named() {
    within(60, "arguments", async {
        for (arguments, words) in [
            (["demo", "--size", "nonsense"], ["--size", "nonsense"]),
            (["demo", "--agents", "0"], ["--agents", "between 1 and 100"]),
            (
                ["demo", "--origins", "101"],
                ["--origins", "between 1 and 100"],
            ),
        ] {
            let ran = kraken(&arguments).await;
            assert!(!ran.status.success(), "{ran:?}");
            assert_eq!(ran.stdout, "");
            for word in words {
                assert!(ran.stderr.contains(word), "{ran:?}");
            }
            assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        }
    })
    .await;
}
