//! Backends behind HTTP that OpenDAL does not speak to as we need it: any server by a template of
//! URLs, other registries, HDFS.

mod hdfs;
mod http;
mod registry;
mod requests;
mod resume;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

pub use self::hdfs::{WebHdfsBackend, WebHdfsOptions};
pub use self::http::{HttpBackend, HttpOptions};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use self::registry::fuzz_challenges;
pub use self::registry::{
    Credentials, PushError, Pushed, RegistryBackend, RegistryLogin, RegistryOptions,
    RegistryWriter, Right, Started, Upload,
};
use super::BackendError;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A client that trusts whom this host trusts, or only the authorities in `ca`, a PEM file. It
/// follows redirects and takes a credential along to no other host.
pub(super) fn client(ca: Option<&Path>) -> Result<reqwest::Client, BackendError> {
    client_with(ca, Policy::default())
}

fn client_with(ca: Option<&Path>, redirects: Policy) -> Result<reqwest::Client, BackendError> {
    let wrong = |error: &dyn std::fmt::Display| BackendError::Denied(format!("TLS: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?;
    let tls = match ca {
        Some(ca) => tls.with_root_certificates(authorities(ca)?),
        None => tls
            .with_platform_verifier()
            .map_err(|error| wrong(&error))?,
    };
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.with_no_client_auth())
        // Large bodies travel on connections of their own.
        .http1_only()
        .redirect(redirects)
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(15))
        .user_agent(concat!("kraken/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| wrong(&error))
}

fn authorities(ca: &Path) -> Result<RootCertStore, BackendError> {
    let wrong = |error: &dyn std::fmt::Display| {
        BackendError::Denied(format!("the authorities in {}: {error}", ca.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"there is no certificate"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
