//! Who may do what with which repository.
//!
//! Rules grant; what none grants is refused. A user proves who it is by name and password (basic
//! authentication), against a file as `htpasswd -B` writes it. Without any rules, whoever is on the same
//! host may do everything, and nobody else anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::ConnectInfo;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method};
use kraken_proto::Digest;
use moka::future::Cache;
use regex::Regex;
use tokio::time::Instant;

use crate::error::{Code, RegistryError};
use crate::name::RepoName;
use crate::route::Route;
use crate::web::header;

/// How often it is looked whether the file of users has changed.
const LOOK: Duration = Duration::from_secs(2);
/// How long a password that was right is not hashed again, and how many of these are remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
const MOST_REMEMBERED: u64 = 10_000;
const REMEMBERED_WRONG: Duration = Duration::from_secs(10);
/// Passwords that are hashed at once: each takes a processor from some milliseconds on, as the hash has
/// it.
const HASHING: usize = 2;
/// How long a login waits for its turn.
const TURN: Duration = Duration::from_secs(3);

/// What can be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum May {
    /// Read it, its tags and referrers.
    Pull,
    /// Push blobs and manifests, and set tags.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
}

/// One rule: it grants.
#[derive(Debug, Clone)]
pub struct AccessRule {
    /// What the repository looks like; it may match anywhere in it.
    pub repositories: Regex,
    /// To whom; to everybody, also without a name, when absent.
    pub users: Option<BTreeSet<String>>,
    /// What.
    pub may: BTreeSet<May>,
}

/// Who may do what.
#[derive(Debug)]
pub struct Access {
    /// Only this host when absent.
    rules: Option<Vec<AccessRule>>,
    users: Option<Users>,
}

impl Default for Access {
    fn default() -> Self {
        Self::this_host()
    }
}

impl Access {
    /// Everything for whoever is on the same host, nothing for anybody else.
    pub const fn this_host() -> Self {
        Self {
            rules: None,
            users: None,
        }
    }

    /// Everything for everybody.
    pub fn everybody() -> Self {
        let rule = AccessRule {
            repositories: Regex::new("").expect("it is one"),
            users: None,
            may: [May::Pull, May::Push, May::Delete].into(),
        };
        Self {
            rules: Some(vec![rule]),
            users: None,
        }
    }

    /// What these rules grant; users prove who they are against a file with lines of `name:hash`, whose
    /// hashes are of bcrypt, which is read again when it changes.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it makes no sense.
    pub fn new(rules: Vec<AccessRule>, users: Option<PathBuf>) -> Result<Self, AccessError> {
        Ok(Self {
            rules: Some(rules),
            users: users.map(Users::open).transpose()?,
        })
    }

    /// Lets a client read from a repository, or says why not.
    ///
    /// # Errors
    /// 401 or 403.
    pub async fn check_pull(&self, parts: &Parts, repo: &RepoName) -> Result<(), RegistryError> {
        let mut reading = parts.clone();
        reading.method = Method::GET;
        self.check(&reading, &Route::Tags(repo.clone())).await
    }

    /// The same for all repositories at once.
    ///
    /// # Errors
    /// 401 or 403.
    pub async fn check_pull_all(&self, parts: &Parts) -> Result<(), RegistryError> {
        self.check(parts, &Route::Catalog).await
    }

    /// Lets only clients on this host through, whatever the rules are.
    ///
    /// # Errors
    /// 403.
    pub fn check_this_host(parts: &Parts) -> Result<(), RegistryError> {
        from_this_host(parts)
    }

    /// Lets a request through, or says why not.
    pub(crate) async fn check(&self, parts: &Parts, route: &Route) -> Result<(), RegistryError> {
        let Some(rules) = &self.rules else {
            return from_this_host(parts);
        };
        let user = match (header(&parts.headers, AUTHORIZATION), &self.users) {
            (Some(login), Some(users)) => Some(users.user(login).await?),
            // Some clients send what they have, also where nobody asks for it.
            _ => None,
        };
        let is_granted = |repository: &str, what: May| {
            rules.iter().any(|rule| {
                let users = rule.users.as_ref();
                let to =
                    users.is_none_or(|users| user.as_ref().is_some_and(|it| users.contains(it)));
                to && rule.may.contains(&what) && rule.repositories.is_match(repository)
            })
        };
        let granted = match needed(&parts.method, route) {
            // Clients find out here whether they have to say who they are.
            None => user.is_some() || rules.iter().any(|rule| rule.users.is_none()),
            Some((repository, what)) => is_granted(repository, what),
        };
        match (granted, user) {
            (true, _) => Ok(()),
            (false, Some(user)) => {
                let what = format!("{user} may not do this: ask for a rule that grants it");
                Err(RegistryError::new(Code::Denied, what))
            }
            (false, None) if self.users.is_some() => Err(unknown("say who you are: docker login")),
            (false, None) => {
                let what = "nobody may do this here: no rule of `access` grants it";
                Err(RegistryError::new(Code::Denied, what))
            }
        }
    }
}

fn from_this_host(parts: &Parts) -> Result<(), RegistryError> {
    let client = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    // Without an address it comes from within the process.
    let is_here = client.is_none_or(|ConnectInfo(addr)| addr.ip().to_canonical().is_loopback());
    // Somebody on this host asks for somebody else.
    let is_passed_on = FORWARDED
        .iter()
        .any(|name| parts.headers.contains_key(*name));
    if is_here && !is_passed_on {
        return Ok(());
    }
    let what = "only clients on this host may ask here: configure `access` for others";
    Err(RegistryError::new(Code::Denied, what))
}

/// What servers that pass requests on say in their headers.
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// 401: another login may help.
fn unknown(message: &str) -> RegistryError {
    let challenge = HeaderValue::from_static("Basic realm=\"kraken\", charset=\"UTF-8\"");
    RegistryError::new(Code::Unauthorized, message).with_header(WWW_AUTHENTICATE, challenge)
}

/// What a request needs; nothing in particular to ask whether this is a registry.
fn needed<'a>(method: &Method, route: &'a Route) -> Option<(&'a str, May)> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    Some(match route {
        Route::Ping => return None,
        // A rule for all repositories matches no name in particular.
        Route::Catalog => ("", May::Pull),
        Route::Uploads(repo) | Route::Upload(repo, _) => (repo.as_str(), May::Push),
        Route::Manifest(repo, _) | Route::Blob(repo, _) if *method == Method::DELETE => {
            (repo.as_str(), May::Delete)
        }
        Route::Manifest(repo, _)
        | Route::Blob(repo, _)
        | Route::Tags(repo)
        | Route::Referrers(repo, _) => {
            let what = if reads { May::Pull } else { May::Push };
            (repo.as_str(), what)
        }
    })
}

/// Users and the hashes of their passwords.
struct Users {
    file: PathBuf,
    known: Mutex<Known>,
    /// Passwords that were right, by what they are with the hash that they were right for.
    right: Cache<Digest, ()>,
    /// Those that were wrong a moment ago.
    wrong: Cache<Digest, ()>,
    hashing: tokio::sync::Semaphore,
}

struct Known {
    hashes: Arc<BTreeMap<String, String>>,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Users {
    fn open(file: PathBuf) -> Result<Self, AccessError> {
        // Before it is read: a change in between is seen the next time.
        let changed = changed(&file);
        let hashes = Arc::new(read(&file)?);
        Ok(Self {
            known: Mutex::new(Known {
                hashes,
                changed,
                looked: Instant::now(),
            }),
            file,
            right: Cache::builder()
                .max_capacity(MOST_REMEMBERED)
                .time_to_live(REMEMBERED)
                .build(),
            wrong: Cache::builder()
                .max_capacity(MOST_REMEMBERED)
                .time_to_live(REMEMBERED_WRONG)
                .build(),
            hashing: tokio::sync::Semaphore::new(HASHING),
        })
    }

    /// The hashes as the file has them. One that makes no sense changes nothing.
    fn hashes(&self) -> Arc<BTreeMap<String, String>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() > LOOK {
            known.looked = Instant::now();
            let changed = changed(&self.file);
            if changed != known.changed {
                match read(&self.file) {
                    Ok(hashes) => {
                        known.hashes = Arc::new(hashes);
                        known.changed = changed;
                        tracing::info!(file = %self.file.display(), "the users are others now");
                    }
                    Err(error) => tracing::error!(%error, "the users stay as they were"),
                }
            }
        }
        known.hashes.clone()
    }

    /// Who sends this login.
    async fn user(&self, login: &str) -> Result<String, RegistryError> {
        let wrong = || unknown("the name or the password is wrong");
        let (name, password) = basic(login).ok_or_else(wrong)?;
        let hashes = self.hashes();
        let hash = hashes.get(&name).cloned();
        let hash = hash.unwrap_or_else(|| nobody(&hashes));
        let key = Digest::of(format!("{hash}\0{password}").as_bytes());
        if self.right.contains_key(&key) {
            return Ok(name);
        }
        if self.wrong.contains_key(&key) {
            return Err(wrong());
        }
        let busy = |_| RegistryError::new(Code::Unavailable, "passwords cannot be checked now");
        // Whoever sends wrong ones must not keep others waiting for ever.
        let turn = tokio::time::timeout(TURN, self.hashing.acquire()).await;
        let many = |_| RegistryError::new(Code::TooManyRequests, "too many passwords are checked");
        let _turn = turn.map_err(many)?.map_err(|_| wrong())?;
        let is_right = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash));
        match is_right.await.map_err(busy)? {
            Ok(true) => {
                self.right.insert(key, ()).await;
                Ok(name)
            }
            _ => {
                self.wrong.insert(key, ()).await;
                Err(wrong())
            }
        }
    }
}

/// A hash of no password, which costs as much as the dearest of these: so that nobody finds out by
/// the time which names there are.
fn nobody(hashes: &BTreeMap<String, String>) -> String {
    let costs = hashes.values().filter_map(|hash| hash.get(4..6));
    let cost = costs.max().unwrap_or("05");
    format!("$2y${cost}${}", &NOBODY[7..])
}

/// Of no password that anybody knows.
const NOBODY: &str = "$2y$05$......................7iDMHuGr/cXqvVkHFXnzGYTjdX7xVVK";

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn changed(file: &PathBuf) -> Option<SystemTime> {
    std::fs::metadata(file).ok()?.modified().ok()
}

fn read(file: &PathBuf) -> Result<BTreeMap<String, String>, AccessError> {
    let text = std::fs::read_to_string(file).map_err(|source| AccessError::Read {
        file: file.clone(),
        source,
    })?;
    let mut users = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || AccessError::Line {
            file: file.clone(),
            line: number + 1,
        };
        let (name, hash) = line.split_once(':').ok_or_else(wrong)?;
        let is_bcrypt = ["$2a$", "$2b$", "$2y$"]
            .iter()
            .any(|it| hash.starts_with(it));
        if name.is_empty() || !is_bcrypt || hash.len() != 60 {
            return Err(wrong());
        }
        users.insert(name.to_owned(), hash.to_owned());
    }
    Ok(users)
}

/// Name and password of `Basic <base64>`.
fn basic(login: &str) -> Option<(String, String)> {
    let (scheme, encoded) = login.split_once(' ')?;
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (name, password) = text.split_once(':')?;
    scheme
        .eq_ignore_ascii_case("basic")
        .then(|| (name.to_owned(), password.to_owned()))
}

/// Why access cannot be decided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The file of users.
    #[error("cannot read the users in {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of it.
    #[error(
        "{}, line {line}: write name:hash, with the hash of bcrypt, as htpasswd -B does",
        file.display()
    )]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1 on.
        line: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_as_they_are_written() {
        assert_eq!(basic("Basic YTpiYw=="), Some(("a".into(), "bc".into())));
        assert_eq!(basic("basic YTpiOmM="), Some(("a".into(), "b:c".into())));
        for wrong in [
            "",
            "Basic",
            "Bearer YTpiYw==",
            "Basic %",
            "Basic YQ==",
            "Basic /w==",
        ] {
            assert_eq!(basic(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_name_that_nobody_has_costs_as_much_as_one_that_somebody_has() {
        let hash = |cost: &str| format!("$2y${cost}${}", &NOBODY[7..]);
        let users = |costs: &[&str]| -> BTreeMap<String, String> {
            let each = costs.iter().map(|cost| (format!("u{cost}"), hash(cost)));
            each.collect()
        };
        assert_eq!(nobody(&users(&["05", "12", "10"])), hash("12"));
        assert_eq!(nobody(&users(&[])), NOBODY);
        assert_eq!(bcrypt::verify("", NOBODY).ok(), Some(false));
    }

    #[test]
    fn files_of_users_are_checked_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users");
        let hash = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
        std::fs::write(&file, format!("# ours\n\na:{hash}\nb:{hash}\n")).unwrap();
        assert_eq!(read(&file).unwrap().len(), 2);
        for wrong in ["a", "a:", "a:{SHA}xyz", ":$2y$05$", "a:$apr1$x"] {
            std::fs::write(&file, format!("a:{hash}\n{wrong}\n")).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
        assert!(read(&dir.path().join("none")).is_err());
    }
}
