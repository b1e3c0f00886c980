//! Roles: for which kind of process a certificate is, and which may call what.
//!
//! All of it is here: how a role is found in a certificate ([`RoleNames`]), and who may call which
//! path at whom ([`callers`]).

use std::fmt;
use std::str::FromStr;

use kraken_proto::Zone;

use crate::certificate::CertInfo;

/// A kind of process, or a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A host that takes blobs and gives them to others.
    Agent,
    /// A seed of blobs, and what takes them in.
    Origin,
    /// Who says which peers have a blob.
    Tracker,
    /// What images are pushed to.
    Proxy,
    /// Who keeps the tags.
    BuildIndex,
    /// A person, or a tool of one.
    Operator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] = [
        Self::Agent,
        Self::Origin,
        Self::Tracker,
        Self::Proxy,
        Self::BuildIndex,
        Self::Operator,
    ];

    /// Its name, as it stands in certificates and configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Origin => "origin",
            Self::Tracker => "tracker",
            Self::Proxy => "proxy",
            Self::BuildIndex => "build-index",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| RoleError(text.to_owned()))
    }
}

/// A text is the name of no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: agent, origin, tracker, proxy, build-index or operator")]
pub struct RoleError(String);

/// Whom a certificate is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bearer {
    /// Its role; none when the certificate names none, or several.
    pub role: Option<Role>,
    /// Its name.
    pub name: Option<String>,
    /// Where it stands.
    pub zone: Option<Zone>,
}

impl Bearer {
    /// What it is, for a sentence: `a proxy`, or that no role is said.
    pub fn told(&self) -> String {
        let role = self.role.map(|role| format!("of role {role}"));
        role.unwrap_or_else(|| "that names no role".to_owned())
    }
}

/// What stands in front of the role in the URI name that [`crate::CertAuthority`] writes.
pub(crate) const ROLE_PREFIX: &str = "urn:kraken:role:";
/// What stands in front of the zone there.
pub(crate) const ZONE_PREFIX: &str = "urn:kraken:zone:";
const SPIFFE: &str = "spiffe://";

/// Where the role of a certificate is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RoleNames {
    /// In its URIs: `urn:kraken:role:ROLE` as [`crate::CertAuthority`] writes it, or
    /// `spiffe://CLUSTER/ROLE/NAME`. A certificate without any is refused.
    #[default]
    Written,
    /// By the patterns, of which the first that fits a URI, a host or the common name counts.
    /// Nothing else does.
    Patterns(Vec<(NamePattern, Role)>),
    /// Nowhere: whoever has a certificate of the authority may do all.
    Unchecked,
}

impl RoleNames {
    /// Whether roles count.
    pub fn are_checked(&self) -> bool {
        *self != Self::Unchecked
    }

    pub(crate) fn bearer(&self, cert: &CertInfo) -> Bearer {
        let found: Vec<(Role, Option<String>)> = match self {
            Self::Unchecked | Self::Written => cert.uris.iter().filter_map(|uri| of(uri)).collect(),
            Self::Patterns(patterns) => {
                let names = cert.uris.iter().chain(&cert.hosts).chain(&cert.common_name);
                let names: Vec<_> = names.collect();
                let fits = |it: &NamePattern| names.iter().any(|name| it.fits(name));
                let found = patterns.iter().find(|(pattern, _)| fits(pattern));
                found.map(|(_, role)| (*role, None)).into_iter().collect()
            }
        };
        let first = found.first().map(|(role, _)| *role);
        let is_one = found.iter().all(|(role, _)| Some(*role) == first);
        let zones = cert.uris.iter();
        let mut zones = zones.filter_map(|uri| uri.strip_prefix(ZONE_PREFIX)?.parse().ok());
        Bearer {
            role: first.filter(|_| is_one),
            name: found
                .into_iter()
                .find_map(|(_, name)| name)
                .or_else(|| cert.common_name.clone()),
            zone: zones.next(),
        }
    }
}

/// The role, and maybe the name, that a URI says.
fn of(uri: &str) -> Option<(Role, Option<String>)> {
    if let Some(role) = uri.strip_prefix(ROLE_PREFIX) {
        return Some((role.parse().ok()?, None));
    }
    let mut parts = uri.strip_prefix(SPIFFE)?.split('/');
    let (_cluster, role, name) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = parts.next().is_none() && !name.is_empty();
    let role = role.parse().ok().filter(|_| fits)?;
    Some((role, Some(name.to_owned())))
}

/// A pattern of a whole name, in which `*` stands for any characters but `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// The longest, in bytes.
    const MOST: usize = 255;

    fn fits(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            let at = if is_last {
                rest.strip_suffix(part).map(str::len)
            } else {
                rest.find(part)
            };
            match at {
                Some(at) if !rest[..at].contains('/') => rest = &rest[at + part.len()..],
                _ => return false,
            }
        }
        true
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let is_any = text.chars().all(|c| c == '*');
        if is_any || text.len() > Self::MOST {
            return Err(PatternError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A text is no pattern of names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pattern of names: it has 1 to 255 characters, and not * alone")]
pub struct PatternError(String);

/// Who may call something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Who has a certificate of the authority, even of no role.
    Anyone,
    /// These roles.
    Roles(&'static [Role]),
}

impl Callers {
    /// Whether `role` is one of them.
    pub fn include(self, role: Option<Role>) -> bool {
        match self {
            Self::Anyone => true,
            Self::Roles(roles) => role.is_some_and(|role| roles.contains(&role)),
        }
    }
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Roles(roles) => {
                let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// Who sends and takes pieces.
pub const PEERS: &[Role] = &[Role::Agent, Role::Origin];

const EVERY: &[Role] = &Role::ALL;
const OPERATOR: &[Role] = &[Role::Operator];
/// Those that put blobs and tags where they belong.
const WRITERS: &[Role] = &[Role::Origin, Role::Proxy, Role::BuildIndex, Role::Operator];
/// Those that ask origins for more than blobs.
const SERVICES: &[Role] = &[
    Role::Origin,
    Role::Tracker,
    Role::Proxy,
    Role::BuildIndex,
    Role::Operator,
];

/// Who may call `path` with `method` at a process of role `at`. What is in no line here, an
/// operator may.
pub fn callers(at: Role, method: &str, path: &str) -> Callers {
    let segments: Vec<_> = path.split('/').skip(1).collect();
    let is_read = matches!(method, "GET" | "HEAD");
    Callers::Roles(match (&segments[..], at) {
        (["health" | "readiness" | "metrics"], _) => return Callers::Anyone,
        // An agent's doctor looks whether it reaches them.
        (["x", "origins"], Role::Tracker) if is_read => {
            &[Role::Agent, Role::Origin, Role::Operator]
        }
        // An agent explains what came to it with what its origins know.
        (["x", "explain", _], Role::Origin) if is_read => &[Role::Agent, Role::Operator],
        (["x" | "forcecleanup", ..], _) => OPERATOR,
        (path, Role::Tracker) => at_tracker(path, is_read),
        (path, Role::Origin) => at_origin(path, method, is_read),
        (path, Role::BuildIndex) => at_build_index(path, is_read),
        _ => OPERATOR,
    })
}

fn at_tracker(path: &[&str], is_read: bool) -> &'static [Role] {
    match path {
        ["announce" | "report"] => PEERS,
        ["namespace", _, "blobs", _, "metainfo"] if is_read => {
            &[Role::Agent, Role::Origin, Role::Operator]
        }
        _ => OPERATOR,
    }
}

fn at_origin(path: &[&str], method: &str, is_read: bool) -> &'static [Role] {
    match path {
        ["blobs", _, "locations"] | ["namespace", _, "blobs", _] if is_read => EVERY,
        // A tracker wakes the owners of a blob that hosts want.
        ["namespace", _, "blobs", _, "prefetch"] => SERVICES,
        ["namespace", _, "uploads", ..] | ["namespace", _, "blobs", _, "uploads", ..] => WRITERS,
        ["internal", "peercontext"] if is_read => SERVICES,
        ["internal", "namespace", _, "blobs", _, "write-back"] => &[Role::Origin],
        ["internal", "namespace", ..] if is_read => SERVICES,
        ["internal", "blobs", _, "uploads", ..] | ["internal", "ring", ..] => &[Role::Origin],
        ["internal", "blobs", _] if method == "DELETE" => {
            &[Role::Origin, Role::BuildIndex, Role::Operator]
        }
        ["internal", "garbage", ..] => &[Role::BuildIndex],
        _ => OPERATOR,
    }
}

fn at_build_index(path: &[&str], is_read: bool) -> &'static [Role] {
    match path {
        ["internal", "tags", "standing"] if is_read => &[Role::BuildIndex, Role::Operator],
        ["internal", ..]
        | ["replicate", "look" | "registers"]
        | ["replicate", _, "waiting" | "image" | "fetched"] => &[Role::BuildIndex],
        ["replicate", "status"] if is_read => SERVICES,
        ["tags" | "repositories" | "list" | "origin", ..] if is_read => EVERY,
        ["remotes", ..] if is_read => SERVICES,
        ["tags" | "repositories" | "remotes", ..] => {
            &[Role::Proxy, Role::BuildIndex, Role::Operator]
        }
        _ => OPERATOR,
    }
}

#[cfg(test)]
mod tests;
