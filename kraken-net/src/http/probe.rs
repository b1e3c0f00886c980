//! A look at a service, one step after the other: its name, its port, its certificate.
//!
//! A client says only that a request failed; this says where it stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::BaseUrl;
use crate::certificate::CertInfo;
use crate::identity::Identity;
use crate::roles::Callers;

/// How long each step may take.
pub const STEP: Duration = Duration::from_secs(3);
/// Addresses of a name that are tried.
const MOST: usize = 4;

/// What a look at a service found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceProbe {
    /// Where it answers.
    pub addr: SocketAddr,
    /// What it took to connect, without the look-up of the name.
    pub connected: Duration,
    /// What it shows, over TLS.
    pub certificate: Option<CertInfo>,
}

/// At which step a look at a service ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Its name is no name of any address.
    #[error("the name {host} cannot be looked up: {reason}")]
    Name {
        /// The name.
        host: String,
        /// Why.
        reason: String,
    },
    /// Nobody takes the connection.
    #[error("{addr} takes no connection: {reason}")]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The certificates do not fit each other.
    #[error("{addr} and this host do not agree on TLS: {reason}")]
    Tls {
        /// Where.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Looks at the service at `url`, over TLS with the identity when that is `https://`. Done within
/// some [`STEP`]s.
///
/// # Errors
/// [`ProbeError`] says which step failed.
pub async fn probe(url: &BaseUrl, identity: &Identity) -> Result<ServiceProbe, ProbeError> {
    let url = reqwest::Url::parse(url.as_str()).expect("it was parsed before");
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = url.port_or_known_default().unwrap_or(0);
    let (stream, addr, connected) = connect(bare, port).await?;
    if url.scheme() != "https" {
        return Ok(ServiceProbe {
            addr,
            connected,
            certificate: None,
        });
    }
    let wrong = |reason: String| ProbeError::Tls { addr, reason };
    let config = identity.named_client_config(b"http/1.1", Callers::Anyone);
    let config = config.map_err(|error| wrong(error.to_string()))?;
    let name = ServerName::try_from(bare.to_string()).map_err(|error| wrong(error.to_string()))?;
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let shaken = timeout(STEP, shaking).await;
    let shaken = shaken.map_err(|_| wrong(late()))?;
    let stream = shaken.map_err(|error| wrong(error.to_string()))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(ServiceProbe {
        addr,
        connected,
        certificate: chain.first().and_then(|leaf| CertInfo::from_der(leaf).ok()),
    })
}

/// The first address of the name that takes a connection.
async fn connect(host: &str, port: u16) -> Result<(TcpStream, SocketAddr, Duration), ProbeError> {
    let unknown = |reason: String| ProbeError::Name {
        host: host.to_string(),
        reason,
    };
    let found = timeout(STEP, lookup_host((host, port))).await;
    let found = found.map_err(|_| unknown(late()))?;
    let addrs = found.map_err(|error| unknown(error.to_string()))?;
    let mut last = unknown("it has no address".into());
    for addr in addrs.take(MOST) {
        let begun = Instant::now();
        let reason = match timeout(STEP, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => return Ok((stream, addr, begun.elapsed())),
            Ok(Err(error)) => error.to_string(),
            Err(_) => late(),
        };
        last = ProbeError::Connect { addr, reason };
    }
    Err(last)
}

fn late() -> String {
    format!("no answer within {} s", STEP.as_secs())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::CertAuthority;
    use crate::http::serve;

    fn identity(authority: &CertAuthority, name: &str) -> Identity {
        let (cert, key) = authority.issue("test", &[name.into()]).unwrap();
        Identity::from_pem(&cert, &key, &authority.to_pem().0).unwrap()
    }

    #[tokio::test]
    async fn a_look_says_which_step_failed() {
        let (ours, theirs) = [(); 2].map(|()| CertAuthority::create().unwrap()).into();
        let me = identity(&ours, "127.0.0.1");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let stop = CancellationToken::new();
        let start =
            |identity: &Identity| serve(any, Router::new(), Some(identity), stop.clone()).unwrap();
        let look = async |url: String| probe(&url.parse().unwrap(), &me).await;

        let right = start(&identity(&ours, "127.0.0.1"));
        let found = look(format!("https://{}", right.local_addr())).await;
        let certificate = found.unwrap().certificate.unwrap();
        assert_eq!(certificate.hosts, ["127.0.0.1"]);

        let other_name = start(&identity(&ours, "tracker.test"));
        let foreign = start(&identity(&theirs, "127.0.0.1"));
        for server in [other_name, foreign] {
            let found = look(format!("https://{}", server.local_addr())).await;
            assert!(matches!(found, Err(ProbeError::Tls { .. })), "{found:?}");
        }
        let nobody = std::net::TcpListener::bind(any).unwrap().local_addr();
        let found = look(format!("https://{}", nobody.unwrap())).await;
        assert!(
            matches!(found, Err(ProbeError::Connect { .. })),
            "{found:?}"
        );
        let found = look("https://nowhere.invalid:1".into()).await;
        assert!(matches!(found, Err(ProbeError::Name { .. })), "{found:?}");
        stop.cancel();
    }
}
