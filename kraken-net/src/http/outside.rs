//! TLS for clients from outside the cluster, such as container runtimes: they know this server by a
//! certificate of any authority, and may prove who they are by one of an authority that is configured.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::middleware::AddExtension;
use axum::{Extension, Router};
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use rustls::crypto::ring::default_provider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::Layer as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::server::{HttpServer, ServeError, acceptor, serve_by};
use crate::identity::{IdentityError, certificates, passphrase, read};
use crate::key;

/// How often it is looked whether a file has changed: certificates are renewed while the server runs.
const LOOK: Duration = Duration::from_secs(5);
/// Bytes of a client's name.
const LONGEST: usize = 255;

/// How a server proves who it is to clients from outside the cluster: paths of PEM files, which are read
/// again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutsideTls {
    /// Its certificate, with the chain behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// A file whose first line opens the key, if that is encrypted.
    pub key_password: Option<PathBuf>,
    /// The authority, or several, by whose certificates clients may prove who they are.
    pub clients_ca: Option<PathBuf>,
}

/// What is known about the client of a connection with TLS: an extension of its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsClient {
    name: Option<Arc<str>>,
}

impl TlsClient {
    /// A client of this name.
    pub fn named(name: &str) -> Self {
        Self {
            name: Some(name.into()),
        }
    }

    /// The name that its certificate proves: its common name, or the first of its other names when it has
    /// none.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl OutsideTls {
    /// A certificate and its key, which is not encrypted; clients prove nothing.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            cert: cert.into(),
            key: key.into(),
            key_password: None,
            clients_ca: None,
        }
    }

    /// Whether the files can be used.
    ///
    /// # Errors
    /// One cannot be read, or holds something else.
    pub fn check(&self) -> Result<(), IdentityError> {
        self.config().map(drop)
    }

    fn config(&self) -> Result<ServerConfig, IdentityError> {
        let provider = Arc::new(default_provider());
        let (chain, key) = proof(&self.cert, &self.key, self.key_password.as_deref())?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::tls)?;
        let builder = match &self.clients_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(roots("clients' authority", file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| IdentityError::Tls(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(IdentityError::tls)?;
        // Every connection proves anew who it is.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = [b"h2".to_vec(), b"http/1.1".to_vec()].into();
        Ok(config)
    }

    fn changed(&self) -> Vec<Option<(SystemTime, u64)>> {
        let files = [
            Some(&self.cert),
            Some(&self.key),
            self.key_password.as_ref(),
            self.clients_ca.as_ref(),
        ];
        let about = |file: &PathBuf| {
            let about = std::fs::metadata(file).ok()?;
            Some((about.modified().ok()?, about.len()))
        };
        files.into_iter().flatten().map(about).collect()
    }

    /// Reads the files again whenever they change. What cannot be used changes nothing.
    async fn follow(self, used: RustlsConfig, mut seen: Vec<Option<(SystemTime, u64)>>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let changed = self.changed();
            if changed == seen {
                continue;
            }
            match self.config() {
                Ok(config) => {
                    used.reload_from_config(Arc::new(config));
                    seen = changed;
                    tracing::info!(cert = %self.cert.display(), "the certificate was read again");
                }
                Err(error) => tracing::error!(%error, "the certificate stays as it was"),
            }
        }
    }
}

/// The authorities in a file.
pub(super) fn roots(what: &'static str, file: &Path) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(what, &read(file)?)? {
        let added = roots.add(root);
        added.map_err(|error| IdentityError::pem(what, error))?;
    }
    Ok(roots)
}

/// A certificate with its chain, and its key, which the first line of another file opens if it is encrypted.
pub(super) fn proof(
    cert: &Path,
    key: &Path,
    password: Option<&Path>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
    let chain = certificates("certificate", &read(cert)?)?;
    let password = password.map(passphrase).transpose()?;
    let key = key::read(&read(key)?, password.as_deref())?;
    Ok((chain, key))
}

/// Serves `router` with TLS 1.2 and 1.3 for anybody, as [`serve_on`](super::serve_on) does for members of
/// the cluster. Requests carry a [`TlsClient`].
///
/// # Errors
/// The socket or one of the files cannot be used.
pub fn serve_outside(
    listener: TcpListener,
    router: Router,
    tls: &OutsideTls,
    shutdown: CancellationToken,
) -> Result<HttpServer, ServeError> {
    // Before they are read: a change in between is seen the next time.
    let seen = tls.changed();
    let config = RustlsConfig::from_config(Arc::new(tls.config()?));
    let following = tls.clone().follow(config.clone(), seen);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(following));
    serve_by(listener, router, Naming(acceptor(config)), shutdown)
}

/// Tells the router who has connected.
#[derive(Clone)]
struct Naming(RustlsAcceptor);

type Stream = <RustlsAcceptor as Accept<TcpStream, ()>>::Stream;
type Service<S> = AddExtension<<RustlsAcceptor as Accept<TcpStream, S>>::Service, TlsClient>;
type Accepted<S> = std::io::Result<(Stream, Service<S>)>;

impl<S: Send + 'static> Accept<TcpStream, S> for Naming {
    type Stream = Stream;
    type Service = Service<S>;
    type Future = Pin<Box<dyn Future<Output = Accepted<S>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let (_, session) = stream.get_ref();
            let cert = session.peer_certificates().and_then(<[_]>::first);
            let name = cert.and_then(|cert| name_of(cert)).map(Arc::from);
            Ok((stream, Extension(TlsClient { name }).layer(service)))
        })
    }
}

/// The name that stands in a certificate.
fn name_of(cert: &[u8]) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let common = cert.subject().iter_common_name().next();
    let common = common.and_then(|name| name.as_str().ok());
    let others = cert.subject_alternative_name().ok().flatten();
    let others = others.map(|it| it.value.general_names.as_slice());
    let mut others = others.unwrap_or_default().iter().filter_map(|name| {
        Some(match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                *name
            }
            _ => return None,
        })
    });
    let name = common.or_else(|| others.next())?;
    let fits = !name.is_empty() && name.len() <= LONGEST && !name.contains(char::is_control);
    fits.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use axum::routing::get;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use reqwest::{Certificate, Client};
    use tempfile::TempDir;

    use super::*;

    /// An authority and what it issues.
    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn create() -> Self {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            let issuer = Issuer::new(params, key);
            Self { pem, issuer }
        }

        /// Certificate and key.
        fn issue(&self, common: Option<&str>, others: &[&str]) -> (String, String) {
            let others: Vec<_> = others.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(others).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            if let Some(common) = common {
                params.distinguished_name.push(DnType::CommonName, common);
            }
            let key = KeyPair::generate().unwrap();
            let cert = params.signed_by(&key, &self.issuer).unwrap();
            (cert.pem(), key.serialize_pem())
        }
    }

    struct Lab {
        dir: TempDir,
        tls: OutsideTls,
        clients: Authority,
        server: Authority,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (server, clients) = (Authority::create(), Authority::create());
            let path = |name: &str| dir.path().join(name);
            let mut tls = OutsideTls::new(path("cert"), path("key"));
            tls.clients_ca = Some(path("ca"));
            fs::write(path("ca"), &clients.pem).unwrap();
            let lab = Self {
                dir,
                tls,
                clients,
                server,
            };
            lab.renew();
            lab
        }

        fn renew(&self) {
            let (cert, key) = self.server.issue(None, &["127.0.0.1"]);
            fs::write(self.dir.path().join("cert"), cert).unwrap();
            fs::write(self.dir.path().join("key"), key).unwrap();
        }

        fn client(&self, identity: Option<(String, String)>) -> Client {
            let _ = default_provider().install_default();
            let root = Certificate::from_pem(self.server.pem.as_bytes()).unwrap();
            let mut builder = Client::builder().no_proxy().tls_certs_only([root]);
            if let Some((cert, key)) = identity {
                let pem = format!("{cert}{key}");
                builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
            }
            builder.build().unwrap()
        }
    }

    fn serve(lab: &Lab) -> (HttpServer, CancellationToken) {
        let who = async |Extension(client): Extension<TlsClient>| {
            client.name().unwrap_or("nobody").to_owned()
        };
        let router = Router::new().route("/", get(who));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shutdown = CancellationToken::new();
        let server = serve_outside(listener, router, &lab.tls, shutdown.clone()).unwrap();
        (server, shutdown)
    }

    #[tokio::test]
    async fn a_client_is_who_its_certificate_says() {
        let lab = Lab::new();
        let (server, shutdown) = serve(&lab);
        let url = format!("https://{}/", server.local_addr());
        let long = "x".repeat(LONGEST + 1);
        for (common, others, wanted) in [
            (Some("ann"), &["other.example.com"][..], "ann"),
            (None, &["ci.example.com", "b.example.com"], "ci.example.com"),
            (None, &["10.0.0.1"], "nobody"),
            (Some("a\nb"), &[], "nobody"),
            (Some(&long), &[], "nobody"),
        ] {
            let client = lab.client(Some(lab.clients.issue(common, others)));
            let said = client.get(&url).send().await.unwrap().text().await.unwrap();
            assert_eq!(said, wanted, "{common:?}");
        }
        let nobody = lab.client(None).get(&url).send().await.unwrap();
        assert_eq!(nobody.text().await.unwrap(), "nobody");
        // Of another authority: the handshake fails.
        let stranger = Authority::create().issue(Some("ann"), &[]);
        assert!(lab.client(Some(stranger)).get(&url).send().await.is_err());
        shutdown.cancel();
        server.stopped().await.unwrap();
    }

    #[tokio::test]
    async fn a_certificate_that_changes_is_shown_to_the_next_and_a_broken_one_to_nobody() {
        let lab = Lab::new();
        let config = RustlsConfig::from_config(Arc::new(lab.tls.config().unwrap()));
        let first = config.get_inner();
        let following = lab.tls.clone().follow(config.clone(), lab.tls.changed());
        tokio::time::pause();
        let task = tokio::spawn(following);
        fs::write(&lab.tls.cert, "nonsense").unwrap();
        tokio::time::sleep(2 * LOOK).await;
        assert!(Arc::ptr_eq(&first, &config.get_inner()));
        lab.renew();
        tokio::time::sleep(2 * LOOK).await;
        assert!(!Arc::ptr_eq(&first, &config.get_inner()));
        task.abort();
    }

    #[test]
    fn an_encrypted_key_opens_with_its_password_only() {
        let mut lab = Lab::new();
        let path = |name: &str| lab.dir.path().join(name);
        let (key, password) = (path("key"), path("password"));
        let sealed = key::encrypt(&fs::read_to_string(&key).unwrap(), "hunter2").unwrap();
        fs::write(&key, sealed).unwrap();
        let told = lab.tls.check().unwrap_err().to_string();
        assert!(told.contains("no passphrase"), "{told}");
        lab.tls.key_password = Some(password.clone());
        fs::write(&password, "hunter3\n").unwrap();
        assert!(lab.tls.check().is_err());
        fs::write(&password, "hunter2\nanything\n").unwrap();
        lab.tls.check().unwrap();
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_at_the_start() {
        let lab = Lab::new();
        let none = Some(lab.dir.path().join("none"));
        for wrong in [
            OutsideTls {
                key: lab.tls.cert.clone(),
                ..lab.tls.clone()
            },
            OutsideTls {
                clients_ca: none,
                ..lab.tls.clone()
            },
            OutsideTls {
                clients_ca: Some(lab.tls.key.clone()),
                ..lab.tls.clone()
            },
        ] {
            assert!(wrong.config().is_err(), "{wrong:?}");
        }
    }
}
