//! What commands take that speak to registries, whose certificates may be of any authority.

use std::path::{Path, PathBuf};

use clap::Args;
use kraken::Failure;
use kraken::caller::Caller;
use kraken::operator::Operator;
use kraken_core::net::http::OutsideTrust;
use kraken_daemon::Tls;
use kraken_daemon::tls::KeyPassword;

/// TLS at addresses that begin with `https://`.
#[derive(Debug, Args)]
pub(crate) struct RegistryTls {
    /// The authorities to trust at an https:// address, instead of those that this host trusts.
    #[arg(long, env = "KRAKEN_REGISTRY_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// A certificate to show there, with its chain.
    #[arg(
        long,
        env = "KRAKEN_REGISTRY_CERT",
        value_name = "FILE",
        requires = "key"
    )]
    cert: Option<PathBuf>,
    /// Its private key.
    #[arg(
        long,
        env = "KRAKEN_REGISTRY_KEY",
        value_name = "FILE",
        requires = "cert"
    )]
    key: Option<PathBuf>,
}

impl RegistryTls {
    /// Who asks.
    pub(crate) fn caller(self) -> Result<Caller, Failure> {
        Caller::from_env(OutsideTrust {
            ca: self.ca,
            certificate: self.cert.zip(self.key),
        })
    }
}

/// What is shown to a process of the cluster, or to an agent's registry. Without any of them, what
/// `kraken dev` made in this directory, if it is there.
#[derive(Debug, Args)]
pub(crate) struct ProcessTls {
    /// A certificate of the cluster, with its chain; an agent's registry wants none.
    #[arg(long, env = "KRAKEN_CERT", global = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, env = "KRAKEN_KEY", global = true, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The authorities to trust at an https:// address: the cluster's, or that of an agent's client_tls.
    #[arg(long, env = "KRAKEN_CA", global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file whose first line opens the key, if that is encrypted.
    #[arg(
        long,
        env = "KRAKEN_KEY_PASSWORD_FILE",
        global = true,
        value_name = "FILE"
    )]
    key_password_file: Option<PathBuf>,
}

impl ProcessTls {
    /// A client of the process at a base URL.
    pub(crate) fn operator(self, url: &str) -> Result<Operator, Failure> {
        let Self {
            cert,
            key,
            mut ca,
            key_password_file,
        } = self;
        let mut certificate = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            _ => return Err(Failure::Argument("give both --cert and --key".into())),
        };
        let made = Path::new("kraken-dev/tls");
        if certificate.is_none() && ca.is_none() && made.is_dir() {
            ca = Some(made.join("ca.crt"));
            certificate = Some((made.join("operator.crt"), made.join("operator.key")));
        }
        let tls = certificate.clone().zip(ca.clone());
        let tls = tls.map(|((cert, key), ca)| {
            let mut tls = Tls::new(cert, key, ca);
            tls.key_password = key_password_file.map(|file| KeyPassword { file });
            tls
        });
        Operator::any(url, tls.as_ref(), OutsideTrust { ca, certificate })
    }
}
