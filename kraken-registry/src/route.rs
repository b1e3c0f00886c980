//! Which endpoint a path below `/v2/` names.
//!
//! A repository holds slashes and may be called like an endpoint (`a/blobs/uploads` is a fine
//! name), so paths are read from their end, where the endpoint stands.

use kraken_proto::Digest;

use crate::error::{Code, RegistryError};
use crate::name::{Host, NameError, Reference, RepoName};
use crate::web::decode;

/// An endpoint of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// `/v2/`: does this host speak the protocol?
    Ping,
    /// `/v2/_catalog`: all repositories.
    Catalog,
    /// `/v2/<name>/manifests/<tag or digest>`
    Manifest(RepoName, Reference),
    /// `/v2/<name>/blobs/<digest>`
    Blob(RepoName, Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(RepoName),
    /// `/v2/<name>/blobs/uploads/<id>`; the id as it stands in the path, unescaped.
    Upload(RepoName, String),
    /// `/v2/<name>/tags/list`
    Tags(RepoName),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(RepoName, Digest),
}

impl Route {
    /// Reads a path, escaped as it came: `/v2/…`.
    ///
    /// # Errors
    /// [`RouteError::Unknown`] when no endpoint looks like this, otherwise which part of the path
    /// breaks its grammar.
    pub fn parse(path: &str) -> Result<Self, RouteError> {
        let rest = path.strip_prefix("/v2").ok_or(RouteError::Unknown)?;
        let rest = match rest.strip_prefix('/') {
            Some(rest) => rest,
            None if rest.is_empty() => return Ok(Self::Ping),
            None => return Err(RouteError::Unknown),
        };
        let parts: Vec<String> = rest
            .split('/')
            .map(decode)
            .collect::<Option<_>>()
            .ok_or(RouteError::Unknown)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Self::from_parts(&parts)
    }

    /// The repository, if it is about one.
    pub(crate) const fn repo(&self) -> Option<&RepoName> {
        match self {
            Self::Ping | Self::Catalog => None,
            Self::Manifest(repo, _)
            | Self::Blob(repo, _)
            | Self::Uploads(repo)
            | Self::Upload(repo, _)
            | Self::Tags(repo)
            | Self::Referrers(repo, _) => Some(repo),
        }
    }

    /// The same of another registry's repository, which is kept behind the host's name.
    pub(crate) fn behind(self, host: &Host) -> Result<Self, RouteError> {
        // Whoever says the host in the path too means the same.
        self.of(|repo| match host.keeps(&repo) {
            true => Ok(repo),
            false => format!("{}/{repo}", host.prefix()).parse(),
        })
    }

    /// The same of a repository that is named without the host.
    pub(crate) fn without(self, host: &Host) -> Result<Self, RouteError> {
        let prefix = format!("{}/", host.prefix());
        self.of(|repo| match repo.as_str().strip_prefix(&prefix) {
            Some(rest) => rest.parse(),
            None => Ok(repo),
        })
    }

    fn of(
        self,
        name: impl FnOnce(RepoName) -> Result<RepoName, NameError>,
    ) -> Result<Self, RouteError> {
        Ok(match self {
            Self::Manifest(repo, reference) => Self::Manifest(name(repo)?, reference),
            Self::Blob(repo, digest) => Self::Blob(name(repo)?, digest),
            Self::Tags(repo) => Self::Tags(name(repo)?),
            Self::Referrers(repo, digest) => Self::Referrers(name(repo)?, digest),
            other => other,
        })
    }

    fn from_parts(parts: &[&str]) -> Result<Self, RouteError> {
        match parts {
            [""] => Ok(Self::Ping),
            ["_catalog"] => Ok(Self::Catalog),
            [repo @ .., "tags", "list"] => Ok(Self::Tags(name(repo)?)),
            [repo @ .., "blobs", "uploads"] | [repo @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads(name(repo)?))
            }
            [repo @ .., "manifests", reference] => {
                Ok(Self::Manifest(name(repo)?, reference.parse()?))
            }
            [repo @ .., "referrers", digest] => Ok(Self::Referrers(name(repo)?, parse(digest)?)),
            [repo @ .., "blobs", "uploads", id] => Ok(Self::Upload(name(repo)?, id.to_string())),
            [repo @ .., "blobs", digest] => Ok(Self::Blob(name(repo)?, parse(digest)?)),
            _ => Err(RouteError::Unknown),
        }
    }
}

/// Why a path names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No endpoint looks like this.
    #[error("no such endpoint: see the OCI distribution specification for those that exist")]
    Unknown,
    /// A part of the path breaks its grammar.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl From<RouteError> for RegistryError {
    fn from(error: RouteError) -> Self {
        let message = error.to_string();
        match error {
            RouteError::Unknown => {
                Self::new(Code::Unsupported, message).with_status(http::StatusCode::NOT_FOUND)
            }
            RouteError::Name(error) => error.into(),
        }
    }
}

impl From<NameError> for RegistryError {
    fn from(error: NameError) -> Self {
        let code = match error {
            NameError::Repository(_) | NameError::Host(_) => Code::NameInvalid,
            NameError::Digest(_) => Code::DigestInvalid,
            // The specification has no code of its own for tags.
            NameError::Tag(_) | NameError::NoTag(_) | NameError::Link(_) => Code::ManifestInvalid,
        };
        Self::new(code, error.to_string())
    }
}

fn name(parts: &[&str]) -> Result<RepoName, NameError> {
    parts.join("/").parse()
}

fn parse(digest: &str) -> Result<Digest, NameError> {
    Ok(digest.parse()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repo(name: &str) -> RepoName {
        name.parse().unwrap()
    }

    #[test]
    fn every_endpoint_is_found_behind_names_with_slashes() {
        let digest = Digest::of(b"x");
        for name in [
            "a",
            "a/b/c",
            "blobs",
            "x/blobs/uploads",
            "tags/list",
            "manifests",
        ] {
            let at = |rest: &str| Route::parse(&format!("/v2/{name}/{rest}"));
            let tag = Reference::Tag("v1".parse().unwrap());
            assert_eq!(at("manifests/v1"), Ok(Route::Manifest(repo(name), tag)));
            assert_eq!(
                at(&format!("manifests/{digest}")),
                Ok(Route::Manifest(repo(name), Reference::Digest(digest)))
            );
            assert_eq!(
                at(&format!("blobs/{digest}")),
                Ok(Route::Blob(repo(name), digest))
            );
            assert_eq!(at("blobs/uploads/"), Ok(Route::Uploads(repo(name))));
            assert_eq!(at("blobs/uploads"), Ok(Route::Uploads(repo(name))));
            assert_eq!(
                at("blobs/uploads/o1%3A80%2Fid"),
                Ok(Route::Upload(repo(name), "o1:80/id".to_string()))
            );
            assert_eq!(at("tags/list"), Ok(Route::Tags(repo(name))));
            assert_eq!(
                at(&format!("referrers/{digest}")),
                Ok(Route::Referrers(repo(name), digest))
            );
        }
        assert_eq!(Route::parse("/v2/"), Ok(Route::Ping));
        assert_eq!(Route::parse("/v2"), Ok(Route::Ping));
        assert_eq!(Route::parse("/v2/_catalog"), Ok(Route::Catalog));
    }

    #[test]
    fn digests_may_come_escaped() {
        let digest = Digest::of(b"x");
        let path = format!("/v2/a/blobs/{}", digest.to_string().replace(':', "%3A"));
        assert_eq!(Route::parse(&path), Ok(Route::Blob(repo("a"), digest)));
    }

    #[test]
    fn wrong_paths_say_what_is_wrong() {
        for path in [
            "",
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/a/b",
            "/v2/a/%zz",
            "/v2/a/tags",
        ] {
            assert_eq!(Route::parse(path), Err(RouteError::Unknown), "{path}");
        }
        let bad_name = |path: &str| {
            matches!(
                Route::parse(path),
                Err(RouteError::Name(NameError::Repository(_)))
            )
        };
        assert!(bad_name("/v2/A/manifests/v1"));
        assert!(bad_name("/v2/manifests/v1"));
        assert!(bad_name("/v2/a%2Fb%00/tags/list"));
        assert!(bad_name("/v2/../tags/list"));
    }

    proptest! {
        #[test]
        fn no_path_panics(path in ".*") {
            let _ = Route::parse(&path);
            let _ = Route::parse(&format!("/v2/{path}"));
        }

        #[test]
        fn no_mixture_of_endpoint_words_panics_or_lets_a_bad_name_through(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "", "a", "A", "..", "%2e%2e", "%2F", "blobs", "uploads", "manifests", "tags",
                    "list", "referrers", "_catalog", "sha256:00", "%", "%00",
                ]),
                0..8,
            )
        ) {
            let route = Route::parse(&format!("/v2/{}", parts.join("/")));
            if let Ok(Route::Manifest(repo, _) | Route::Uploads(repo) | Route::Tags(repo)) = route {
                prop_assert!(repo.as_str().parse::<RepoName>().is_ok());
            }
        }
    }
}
