//! Users and the hashes of their passwords, as `htpasswd -B` writes them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kraken_proto::Digest;
use moka::future::Cache;

use super::AccessError;
use super::watched::{self, Watched};
use crate::error::{Code, RegistryError};

/// How long a password that was right is not hashed again, and how many of these are remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
const MOST_REMEMBERED: u64 = 10_000;
const REMEMBERED_WRONG: Duration = Duration::from_secs(10);
/// Passwords that are hashed at once: each takes a processor from some milliseconds on, as the hash has
/// it.
const HASHING: usize = 2;
/// How long a login waits for its turn.
const TURN: Duration = Duration::from_secs(3);

type Hashes = BTreeMap<String, String>;

/// Users and the hashes of their passwords.
pub(super) struct Users {
    known: Watched<Hashes>,
    /// Passwords that were right, by what they are with the hash that they were right for.
    right: Cache<Digest, ()>,
    /// Those that were wrong a moment ago.
    wrong: Cache<Digest, ()>,
    hashing: tokio::sync::Semaphore,
}

/// Why a login is not taken.
pub(super) enum LoginError {
    /// The name or the password is wrong.
    Wrong,
    /// It cannot be checked now.
    Busy(RegistryError),
}

impl Users {
    pub(super) fn open(file: PathBuf) -> Result<Self, AccessError> {
        let remember = |time| {
            let cache = Cache::builder().max_capacity(MOST_REMEMBERED);
            cache.time_to_live(time).build()
        };
        Ok(Self {
            known: Watched::open(vec![file], read)?,
            right: remember(REMEMBERED),
            wrong: remember(REMEMBERED_WRONG),
            hashing: tokio::sync::Semaphore::new(HASHING),
        })
    }

    /// The hash of a user's password.
    pub(super) fn hash(&self, name: &str) -> Option<String> {
        self.known.now().get(name).cloned()
    }

    /// Whether this is the user's password.
    pub(super) async fn check(&self, name: &str, password: String) -> Result<(), LoginError> {
        let hashes = self.known.now();
        let hash = hashes.get(name).cloned();
        let hash = hash.unwrap_or_else(|| nobody(&hashes));
        let key = Digest::of(format!("{hash}\0{password}").as_bytes());
        if self.right.contains_key(&key) {
            return Ok(());
        }
        if self.wrong.contains_key(&key) {
            return Err(LoginError::Wrong);
        }
        let busy = |code, what: &str| LoginError::Busy(RegistryError::new(code, what));
        // Whoever sends wrong ones must not keep others waiting for ever.
        let turn = tokio::time::timeout(TURN, self.hashing.acquire()).await;
        let turn = turn
            .map_err(|_| busy(Code::TooManyRequests, "too many passwords are checked"))?
            .map_err(|_| LoginError::Wrong)?;
        let is_right = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash)).await;
        drop(turn);
        match is_right {
            Ok(Ok(true)) => {
                self.right.insert(key, ()).await;
                Ok(())
            }
            Ok(_) => {
                self.wrong.insert(key, ()).await;
                Err(LoginError::Wrong)
            }
            Err(_) => Err(busy(Code::Unavailable, "passwords cannot be checked now")),
        }
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// A hash of no password, which costs as much as the dearest of these: so that nobody finds out by
/// the time which names there are.
fn nobody(hashes: &Hashes) -> String {
    let costs = hashes.values().filter_map(|hash| hash.get(4..6));
    let cost = costs.max().unwrap_or("05");
    format!("$2y${cost}${}", &NOBODY[7..])
}

/// Of no password that anybody knows.
const NOBODY: &str = "$2y$05$......................7iDMHuGr/cXqvVkHFXnzGYTjdX7xVVK";

fn read(files: &[PathBuf]) -> Result<Hashes, AccessError> {
    let mut users = BTreeMap::new();
    for file in files {
        for (number, line) in watched::text(file)?.lines().enumerate() {
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
    }
    Ok(users)
}

/// Name and password of `Basic <base64>`.
pub(super) fn basic(login: &str) -> Option<(String, String)> {
    let (scheme, encoded) = login.split_once(' ')?;
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (name, password) = text.split_once(':')?;
    scheme
        .eq_ignore_ascii_case("basic")
        .then(|| (name.to_owned(), password.to_owned()))
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
        let users = |costs: &[&str]| -> Hashes {
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
        let file = vec![dir.path().join("users")];
        let hash = "$2y$05$3sTDZ4TOE/gfRf4x2nusB.Rj1Ow2e0/H7SM2DsLJ3.Qv0.HtBuwKG";
        std::fs::write(&file[0], format!("# ours\n\na:{hash}\nb:{hash}\n")).unwrap();
        assert_eq!(read(&file).unwrap().len(), 2);
        for wrong in ["a", "a:", "a:{SHA}xyz", ":$2y$05$", "a:$apr1$x"] {
            std::fs::write(&file[0], format!("a:{hash}\n{wrong}\n")).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
        assert!(read(&[dir.path().join("none")]).is_err());
    }
}
