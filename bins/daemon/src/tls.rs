//! The key `tls`: who a process is to the others of its cluster.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kraken_core::Zone;
use kraken_core::net::roles::{NamePattern, RoleNames};
use kraken_core::net::{Identity, IdentityError, IdentityFiles, Role};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio_util::sync::CancellationToken;

use crate::metrics::Family;
use crate::problems::Problems;
use crate::process::StartError;

/// The certificate, the key and the cluster's authority: paths of PEM files, which are read again when
/// they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// This process's certificate, with the chain behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the cluster's authority.
    pub ca: PathBuf,
    /// What opens the key, if it is encrypted.
    #[serde(default)]
    pub key_password: Option<KeyPassword>,
    /// The lists of certificates that are not to be trusted any more; none when absent.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// How the roles of certificates are found; as `kraken ca` writes them when absent.
    #[serde(default)]
    pub roles: RolesConfig,
}

/// Where the passphrase of a key is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyPassword {
    /// A file with it as its first line.
    pub file: PathBuf,
}

/// Nothing, `unchecked`, or patterns of names with their roles, of which the first that fits counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolesConfig(RoleNames);

impl JsonSchema for RolesConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Roles".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let roles = Role::ALL.map(Role::as_str);
        json_schema!({"anyOf": [
            {"const": "unchecked"},
            {"type": "object", "additionalProperties": {"enum": roles}},
        ]})
    }
}

impl<'de> Deserialize<'de> for RolesConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Roles).map(Self)
    }
}

struct Roles;

impl<'de> Visitor<'de> for Roles {
    type Value = RoleNames;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unchecked, or patterns of names with their roles, such as {'spiffe://east/ns/kraken/sa/origin': origin}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RoleNames, E> {
        match text {
            "unchecked" => Ok(RoleNames::Unchecked),
            other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RoleNames, A::Error> {
        let mut patterns = Vec::new();
        while let Some((pattern, role)) = map.next_entry::<String, String>()? {
            let pattern: NamePattern = pattern.parse().map_err(A::Error::custom)?;
            let role: Role = role.parse().map_err(A::Error::custom)?;
            patterns.push((pattern, role));
        }
        if patterns.is_empty() {
            return Err(A::Error::custom("tls.roles names no pattern: leave it out"));
        }
        Ok(RoleNames::Patterns(patterns))
    }
}

impl Tls {
    /// These three files, and nothing else.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>, ca: impl Into<PathBuf>) -> Self {
        Self {
            cert: cert.into(),
            key: key.into(),
            ca: ca.into(),
            key_password: None,
            crl: None,
            roles: RolesConfig::default(),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing or holds something else.
    pub fn identity(&self) -> Result<Identity, StartError> {
        Ok(Identity::read(&self.files(), self.roles.0.clone())?)
    }

    /// The identity of a process of this role, which follows its files until the token says otherwise.
    ///
    /// # Errors
    /// As of [`Tls::identity`], or the certificate is for another role.
    pub(crate) fn identity_of(
        &self,
        role: Role,
        until: &CancellationToken,
    ) -> Result<Identity, StartError> {
        let identity = self.identity()?;
        identity.check_own_role(role)?;
        if matches!(role, Role::Agent | Role::Origin) {
            identity.keep_key();
        }
        let (following, files) = (identity.clone(), self.files());
        let following = async move { following.follow(files).await };
        tokio::spawn(until.clone().run_until_cancelled_owned(following));
        Ok(identity)
    }

    fn files(&self) -> IdentityFiles {
        let mut files = IdentityFiles::new(&self.cert, &self.key, &self.ca);
        files.crl = self.crl.clone();
        files.key_password = self.key_password.as_ref().map(|it| it.file.clone());
        files
    }
}

impl Problems {
    /// Who a process of this role is, in this zone.
    pub(crate) fn of_tls(&mut self, tls: &Tls, role: Role, zone: Option<&Zone>) {
        let mut files = vec![
            ("cert", tls.cert.as_path()),
            ("key", &tls.key),
            ("ca", &tls.ca),
        ];
        files.extend(tls.crl.as_deref().map(|it| ("crl", it)));
        let password = tls.key_password.as_ref();
        files.extend(password.map(|it| ("key_password.file", it.file.as_path())));
        let read = || Identity::read(&tls.files(), tls.roles.0.clone());
        let read = certificates(&files, read).map_err(|wrong| wrong.under("tls"));
        if let Some(identity) = self.of(read) {
            self.at("tls.cert", identity.check_own_role(role));
            self.at("zone", identity.zone(zone.cloned()));
        }
    }
}

/// What `read` makes of these files, once each of them can be read.
///
/// # Errors
/// With the keys of the files.
pub(crate) fn certificates<T>(
    files: &[(&'static str, &Path)],
    read: impl FnOnce() -> Result<T, IdentityError>,
) -> Result<T, Problems> {
    let mut found = Problems::default();
    for (key, file) in files {
        found.of_file(key, file, |_| Ok(()));
    }
    found.done(())?;
    read().map_err(|error| {
        let key = match &error {
            IdentityError::Pem { what, .. } if what.contains("key") => "key",
            IdentityError::Pem { what, .. } if what.contains("revoked") => "crl",
            IdentityError::Pem { what, .. } if what.contains("authority") => {
                let is_authority = |(key, _): &&(&str, &Path)| key.ends_with("ca");
                files
                    .iter()
                    .find(is_authority)
                    .map_or("cert", |(key, _)| key)
            }
            IdentityError::Tls(_) => "key",
            _ => "cert",
        };
        Problems::one(key, error)
    })
}

/// When the files of an identity end, how often they changed, and who was refused, as metrics.
pub(crate) fn metrics(identity: &Identity) -> String {
    let status = identity.status();
    let seconds = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let ends = Family::gauge(
        "kraken_certificate_expiry_timestamp_seconds",
        "When the certificate, or the first of its authorities, ends.",
    )
    .sample(&[("file", "cert")], seconds(status.certificate_expiry))
    .sample(&[("file", "ca")], seconds(status.authority_expiry));
    let reloads = Family::counter(
        "kraken_certificate_reloads",
        "Changed files of certificates, by whether they were taken.",
    )
    .sample(&[("result", "taken")], status.reloads)
    .sample(&[("result", "refused")], status.failed_reloads);
    let refusals = Family::counter(
        "kraken_certificate_refusals",
        "Requests and connections of members that were refused.",
    )
    .sample(&[("reason", "role")], status.wrong_roles)
    .sample(&[("reason", "revoked")], status.revoked);
    [ends, reloads, refusals].map(Family::text).concat()
}

#[cfg(test)]
mod tests {
    use kraken_core::net::CertAuthority;

    use super::*;
    use crate::config::parse;

    const FILES: &str = "cert: a.crt\nkey: a.key\nca: ca.crt\n";

    fn read(more: &str) -> Result<Tls, String> {
        parse(&format!("{FILES}{more}"))
    }

    #[test]
    fn three_files_are_enough() {
        assert_eq!(read("").unwrap(), Tls::new("a.crt", "a.key", "ca.crt"));
        let tls = read("key_password: {file: secret}\ncrl: ca.crl\n").unwrap();
        let files = tls.files();
        assert_eq!(files.crl, Some("ca.crl".into()));
        assert_eq!(files.key_password, Some("secret".into()));
        assert!(read("key_password: secret").is_err());
    }

    #[test]
    fn roles_are_unchecked_or_found_by_patterns() {
        assert_eq!(
            read("roles: unchecked").unwrap().roles.0,
            RoleNames::Unchecked
        );
        let tls =
            read("roles:\n  'spiffe://east/*/origin': origin\n  'ops.example.com': operator\n");
        let RoleNames::Patterns(patterns) = tls.unwrap().roles.0 else {
            panic!("no patterns");
        };
        let roles: Vec<_> = patterns.iter().map(|(_, role)| *role).collect();
        assert_eq!(roles, [Role::Origin, Role::Operator]);
        for (wrong, says) in [
            ("roles: checked", "unchecked"),
            ("roles: {}", "leave it out"),
            ("roles: {'*': origin}", "not * alone"),
            ("roles: {a: admin}", "build-index or operator"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn a_process_starts_with_a_certificate_of_its_role_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let ca = CertAuthority::create().unwrap();
        let (cert, key) = ca.issue("proxy", &[]).unwrap();
        for (name, text) in [("crt", &cert), ("key", &key), ("ca", &ca.to_pem().0)] {
            std::fs::write(path(name), text).unwrap();
        }
        let mut tls = Tls::new(path("crt"), path("key"), path("ca"));
        let until = CancellationToken::new();
        let identity = tls.identity_of(Role::Proxy, &until).unwrap();
        let error = tls
            .identity_of(Role::Origin, &until)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("role proxy") && error.contains("role origin"),
            "{error}"
        );
        tls.roles = RolesConfig(RoleNames::Unchecked);
        tls.identity_of(Role::Origin, &until).unwrap();
        until.cancel();

        let text = metrics(&identity);
        let ends = identity.status().certificate_expiry;
        let ends = ends.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let line =
            format!("\nkraken_certificate_expiry_timestamp_seconds{{file=\"cert\"}} {ends}\n");
        assert!(text.contains(&line), "{text}");
    }
}
