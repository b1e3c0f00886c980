//! Why a process is nobody.

use std::fmt;
use std::path::PathBuf;

use kraken_proto::Zone;

use crate::roles::Role;

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A text is not the PEM that it should be.
    #[error("the {what} is not valid PEM: {reason}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The certificate does not lead to the authority, or is not valid now.
    #[error("the certificate is not one of this cluster's authority, or not valid now: {0}")]
    Untrusted(String),
    /// Key and certificate do not fit, or cannot be used for TLS 1.3.
    #[error("certificate and key cannot be used: {0}")]
    Tls(String),
    /// The certificate is for another role than the process has.
    #[error("the certificate is one {found}, and this process needs one of role {wanted}")]
    WrongRole {
        /// What it is for.
        found: String,
        /// What it should be for.
        wanted: Role,
    },
    /// A certificate that was put in the place of another has another key.
    #[error(
        "the certificate has another key, and peers know this process by the key: renew it with the \
         key it has, or restart the process"
    )]
    OtherKey,
    /// The certificate is for another zone than this process is in: trackers would refuse its announces.
    #[error(
        "the certificate is for zone {certified}, and this process is in {}: issue it for the same zone, or \
         correct the key `zone`",
        .configured.as_ref().map_or_else(|| "no zone".to_owned(), |zone| format!("zone {zone}"))
    )]
    OtherZone {
        /// The zone in the certificate.
        certified: Zone,
        /// The zone that is configured, or that was in the certificate before.
        configured: Option<Zone>,
    },
    /// A certificate cannot be made.
    #[error("cannot make the certificate: {0}")]
    Issue(String),
    /// What a certificate was to say cannot stand in one: another name is to be asked for.
    #[error("{0}")]
    Name(String),
    /// A certificate that was to be renewed or revoked is another authority's.
    #[error(
        "the certificate of {subject} was not issued by this authority, {authority}, but by {issuer}"
    )]
    NotIssued {
        /// Whose it is: its common name.
        subject: String,
        /// The common name of the authority that issued it.
        issuer: String,
        /// The common name of the authority that was asked.
        authority: String,
    },
    /// What was given is not what this can be done with, such as the authority's own certificate.
    #[error("{0}")]
    Unfit(String),
}

impl IdentityError {
    pub(crate) fn pem(what: &'static str, reason: impl fmt::Display) -> Self {
        Self::Pem {
            what,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn tls_untrusted(error: &rustls::Error) -> Self {
        Self::Untrusted(error.to_string())
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
    pub(crate) fn tls(error: rustls::Error) -> Self {
        Self::Tls(error.to_string())
    }
}
