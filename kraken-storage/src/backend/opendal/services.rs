//! Object stores, and what they want to be told.
//!
//! Credentials that are not given come from the cloud's own chain: the environment, the files of
//! its command line, the identity of the machine or the pod.

use std::sync::OnceLock;
use std::time::Duration;

use ::opendal::Operator;
use serde::Deserialize;

use super::transport::{Transport, with_transport};
use super::{OpendalBackend, Place, guarded};
use crate::backend::BackendError;
#[cfg(any(feature = "s3", feature = "azure"))]
use crate::backend::Secret;

/// A bucket of S3, or of a server that speaks its protocol.
#[cfg(feature = "s3")]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// Its region; `us-east-1` is what most other servers call theirs. Asked of the environment when
    /// absent.
    #[serde(default)]
    pub region: Option<String>,
    /// The server, such as `https://s3.example.com`; Amazon's when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// What names begin with.
    #[serde(default)]
    pub root: Option<String>,
    /// The profile of the AWS command line's files to take credentials from.
    #[serde(default)]
    pub profile: Option<String>,
    /// The access key's id, with `secret_access_key`. The default chain when absent.
    #[serde(default)]
    pub access_key_id: Option<Secret>,
    /// The access key.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// The token of a temporary access key.
    #[serde(default)]
    pub session_token: Option<Secret>,
    /// A role to take on.
    #[serde(default)]
    pub role_arn: Option<String>,
    /// `AES256` or `aws:kms`.
    #[serde(default)]
    pub server_side_encryption: Option<String>,
    /// Whether the bucket is part of the host's name.
    #[serde(default)]
    pub virtual_host_style: bool,
}

#[cfg(feature = "s3")]
impl S3Options {
    /// A bucket; the environment says the rest, such as credentials.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            region: None,
            endpoint: None,
            root: None,
            profile: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            role_arn: None,
            server_side_encryption: None,
            virtual_host_style: false,
        }
    }
}

/// A bucket of Google Cloud Storage.
#[cfg(feature = "gcs")]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct GcsOptions {
    /// The bucket.
    pub bucket: String,
    /// What names begin with.
    #[serde(default)]
    pub root: Option<String>,
    /// The server; Google's when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The file with a service account's key. The default chain when absent.
    #[serde(default)]
    pub credential_file: Option<String>,
    /// Whether requests are not signed: for public buckets and emulators.
    #[serde(default)]
    pub anonymous: bool,
}

#[cfg(feature = "gcs")]
impl GcsOptions {
    /// A bucket; the environment says the rest, such as credentials.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            root: None,
            endpoint: None,
            credential_file: None,
            anonymous: false,
        }
    }
}

/// A container of Azure Blob Storage.
#[cfg(feature = "azure")]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AzureOptions {
    /// The container.
    pub container: String,
    /// The service, such as `https://ACCOUNT.blob.core.windows.net`.
    pub endpoint: String,
    /// What names begin with.
    #[serde(default)]
    pub root: Option<String>,
    /// The account.
    #[serde(default)]
    pub account_name: Option<String>,
    /// The account's key. The default chain when absent.
    #[serde(default)]
    pub account_key: Option<Secret>,
    /// A token instead of the key.
    #[serde(default)]
    pub sas_token: Option<Secret>,
}

#[cfg(feature = "azure")]
impl AzureOptions {
    /// A container, and the service that has it, such as `https://ACCOUNT.blob.core.windows.net`; the environment says the
    /// rest, such as credentials.
    pub fn new(container: impl Into<String>, endpoint: impl Into<String>) -> Self {
        Self {
            container: container.into(),
            endpoint: endpoint.into(),
            root: None,
            account_name: None,
            account_key: None,
            sas_token: None,
        }
    }
}

/// Applies what is given, and leaves alone what is not.
macro_rules! given {
    ($builder:ident, $($set:ident: $value:expr),* $(,)?) => {
        $(if let Some(value) = $value { $builder = $builder.$set(&value); })*
    };
}

impl OpendalBackend {
    /// Keeps blobs in a bucket of S3. One request, and one part of a body, may take `timeout`.
    ///
    /// # Errors
    /// The options make no sense, or a secret is not where they say.
    #[cfg(feature = "s3")]
    pub fn s3(options: &S3Options, timeout: Duration) -> Result<Self, BackendError> {
        let mut service = ::opendal::services::S3::default().bucket(&options.bucket);
        if options.access_key_id.is_some() != options.secret_access_key.is_some() {
            let what = "s3: access_key_id and secret_access_key go together";
            return Err(BackendError::Denied(what.into()));
        }
        let options = options.clone();
        given!(service,
            region: options.region,
            endpoint: options.endpoint,
            root: options.root,
            profile: options.profile,
            access_key_id: revealed(options.access_key_id)?,
            secret_access_key: revealed(options.secret_access_key)?,
            session_token: revealed(options.session_token)?,
            role_arn: options.role_arn,
            server_side_encryption: options.server_side_encryption,
        );
        if options.virtual_host_style {
            service = service.enable_virtual_host_style();
        }
        Self::remote(Operator::new(service), timeout)
    }

    /// Keeps blobs in a bucket of Google Cloud Storage. One request, and one part of a body, may
    /// take `timeout`.
    ///
    /// # Errors
    /// The options make no sense.
    #[cfg(feature = "gcs")]
    pub fn gcs(options: &GcsOptions, timeout: Duration) -> Result<Self, BackendError> {
        let mut service = ::opendal::services::Gcs::default().bucket(&options.bucket);
        let options = options.clone();
        given!(service,
            endpoint: options.endpoint,
            root: options.root,
            credential_path: options.credential_file,
        );
        if options.anonymous {
            service = service.skip_signature();
        }
        Self::remote(Operator::new(service), timeout)
    }

    /// Keeps blobs in a container of Azure Blob Storage. One request, and one part of a body, may
    /// take `timeout`.
    ///
    /// # Errors
    /// The options make no sense, or a secret is not where they say.
    #[cfg(feature = "azure")]
    pub fn azure(options: &AzureOptions, timeout: Duration) -> Result<Self, BackendError> {
        let service = ::opendal::services::Azblob::default();
        let mut service = service
            .container(&options.container)
            .endpoint(&options.endpoint);
        let options = options.clone();
        given!(service,
            root: options.root,
            account_name: options.account_name,
            account_key: revealed(options.account_key)?,
            sas_token: revealed(options.sas_token)?,
        );
        Self::remote(Operator::new(service), timeout)
    }

    fn remote(
        operator: ::opendal::Result<Operator>,
        timeout: Duration,
    ) -> Result<Self, BackendError> {
        let operator = operator.map_err(|error| BackendError::Denied(error.to_string()))?;
        let operator = with_transport(operator, Transport::new(timeout)?);
        let operator = OnceLock::from(guarded(operator, timeout));
        Ok(Self::at(Place::Remote, operator))
    }
}

#[cfg(any(feature = "s3", feature = "azure"))]
fn revealed(secret: Option<Secret>) -> Result<Option<String>, BackendError> {
    secret.map(|secret| secret.reveal()).transpose()
}
