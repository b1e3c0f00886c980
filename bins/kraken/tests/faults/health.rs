//! What probes of supervisors are told.

use std::net::TcpListener;

use axum::Router;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken_core::net::http::{serve_on, with_health};
use tokio_util::sync::CancellationToken;

use crate::common::{kraken, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_is_told_whether_a_process_is_ready_and_why_not() {
    within(60, "probes", async {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions {
            agents: 1,
            origins: 1,
            dir: dir.path().to_path_buf(),
            base_port: None,
        };
        let cluster = Cluster::start(&options).await.unwrap();
        let agent = format!("http://{}", cluster.agents[0].registry);
        let ran = kraken(&["health", &agent]).await;
        assert!(
            ran.status.success() && ran.stdout == "it is ready\n",
            "{ran:?}"
        );

        let origin = format!("https://{}", cluster.origins[0].addr);
        let file = |name: &str| dir.path().join("tls").join(name).display().to_string();
        let (cert, key, ca) = (file("origin-1.crt"), file("origin-1.key"), file("ca.crt"));
        let tls = ["--cert", &cert, "--key", &key, "--ca", &ca];
        let ran = kraken(&[&["health", origin.as_str(), "--live"][..], &tls].concat()).await;
        assert!(
            ran.status.success() && ran.stdout == "it answers\n",
            "{ran:?}"
        );
        cluster.stop().await;
        let ran = kraken(&[&["health", origin.as_str()][..], &tls].concat()).await;
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");

        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let process = format!("http://{}", socket.local_addr().unwrap());
        let router = with_health(Router::new(), || async { Err("the storage sleeps".into()) });
        let server = serve_on(socket, router, None, CancellationToken::new()).unwrap();
        let ran = kraken(&["health", &process]).await;
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert!(ran.stderr.contains("the storage sleeps"), "{ran:?}");
        let ran = kraken(&["health", &process, "--live"]).await;
        assert!(ran.status.success(), "{ran:?}");
        drop(server);
    })
    .await;
}
