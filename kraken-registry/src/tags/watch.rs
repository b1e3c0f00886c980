//! Who is to have which registers: what changes is noted for them, in the transaction of the change.
//!
//! Rules come into force within a transaction too, which also forgets that what was noted was noted by other
//! rules: all that was written before it went by the old ones, and all after it goes by the new. So what a remote
//! wants is noted anew whenever something may be missing, however often the rules change and whatever dies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redb::{ReadableTable, WriteTransaction};
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::pending;
use super::standing::{STANDING, put_standing};
use super::store::{TagStore, TagStoreError};
use crate::link::{Link, RegisterName};
use crate::platform::Platform;

/// The rules by which all was noted.
const RULES_KEY: &str = "remote-rules";

/// Which registers another cluster is to have, or the backend.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The other cluster's name, or that of the backend.
    pub remote: String,
    /// Where it is. Two lists of which one place is the same are of the same remote.
    pub at: Vec<String>,
    /// Which ones it is to have.
    pub what: What,
    /// For which platforms; all when there are none.
    pub platforms: Vec<Platform>,
}

/// Which registers somebody is to have.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Tags of which one matches somewhere in `repository:tag`, and what belongs to them.
    Tags(Vec<Regex>),
    /// All of them.
    All,
    /// None: images come from there. Uploads by which its blobs come are remembered.
    Nothing,
}

/// A rule by which all was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    what: Vec<String>,
    at: Vec<String>,
}

impl Rule {
    fn is_at(&self, other: &Self) -> bool {
        self.at == other.at || self.at.iter().any(|it| other.at.contains(it))
    }
}

/// The rules by which all was noted, by remote.
type Noted = BTreeMap<String, Rule>;

impl Wanted {
    pub(crate) fn wants(&self, name: &RegisterName) -> bool {
        let tags = match &self.what {
            What::Tags(tags) => tags,
            What::All => return true,
            What::Nothing => return false,
        };
        match name {
            RegisterName::Tag(name) => {
                let name = name.to_string();
                tags.iter().any(|it| it.is_match(&name))
            }
            // Whether it is about an image that the other cluster has is asked there.
            RegisterName::Link(_, Link::Referrer { .. }) => true,
            // Whether it was ever there is asked there; it goes with its tag first.
            RegisterName::Link(_, Link::Manifest(_)) => true,
            RegisterName::Link(_, Link::Blob(_) | Link::Sparse(_)) => false,
        }
    }

    fn rule(&self) -> Rule {
        let mut what = Vec::new();
        if let What::Tags(tags) = &self.what {
            what.extend(tags.iter().map(|it| format!("tags {}", it.as_str())));
            what.extend(self.platforms.iter().map(|it| format!("platform {it}")));
        }
        let at = self.at.clone();
        Rule { what, at }
    }
}

/// Notes what other clusters lack.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<OnceLock<Watched>>);

struct Watched {
    rules: Mutex<Rules>,
    changed: Arc<Notify>,
    /// When something was noted last.
    told: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Rules {
    /// Those in force.
    now: Vec<Wanted>,
    /// Those that come into force with the next transaction.
    next: Option<Vec<Wanted>>,
    /// Grows with every change.
    turn: u64,
}

impl Watch {
    /// A register is another one than before.
    pub(super) fn note(
        &self,
        write: &WriteTransaction,
        name: &RegisterName,
    ) -> Result<(), redb::Error> {
        let Some(watched) = self.0.get() else {
            return Ok(());
        };
        let mut rules = watched.rules();
        rules.settle(write)?;
        for wanted in rules.now.iter().filter(|it| it.wants(name)) {
            pending::add(write, &wanted.remote, name)?;
            watched.tell();
        }
        Ok(())
    }

    /// Whether something is still to go to a remote.
    pub(super) fn has(&self, write: &WriteTransaction, remote: &str) -> Result<bool, redb::Error> {
        let Some(watched) = self.0.get() else {
            return Ok(false);
        };
        let mut rules = watched.rules();
        rules.settle(write)?;
        Ok(rules.now.iter().any(|it| it.remote == remote))
    }

    /// Whether the rules are still those of this number.
    pub(super) fn is_at(&self, turn: u64) -> bool {
        let watched = self.0.get();
        watched.is_none_or(|it| it.rules().turn == turn)
    }

    /// Something was noted, or is about to be: whoever reads the list after this sees it, or is told again.
    pub(super) fn tell(&self) {
        if let Some(watched) = self.0.get() {
            watched.tell();
        }
    }

    /// Those for which not all was noted yet by the rules that are in force from now on, and the number of
    /// these.
    fn to_note(&self, write: &WriteTransaction) -> Result<(u64, Vec<Wanted>), redb::Error> {
        let Some(watched) = self.0.get() else {
            return Ok((0, Vec::new()));
        };
        let mut rules = watched.rules();
        rules.settle(write)?;
        let noted = noted(write)?;
        let new = rules.now.iter();
        let new = new.filter(|it| !noted.contains_key(&it.remote));
        Ok((rules.turn, new.cloned().collect()))
    }

    /// All was noted that a remote wants, if the rules have not changed since `turn`.
    fn has_noted(
        &self,
        write: &WriteTransaction,
        (turn, wanted): (u64, &Wanted),
    ) -> Result<(), redb::Error> {
        if !self.is_at(turn) {
            return Ok(());
        }
        let mut noted = noted(write)?;
        noted.insert(wanted.remote.clone(), wanted.rule());
        put_noted(write, &noted)
    }
}

impl Watched {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.changed.notify_waiters();
    }
}

impl Rules {
    /// Lets new rules come into force, and forgets what was noted by others.
    fn settle(&mut self, write: &WriteTransaction) -> Result<(), redb::Error> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        let before = noted(write)?;
        let mut after = Noted::new();
        for wanted in &next {
            let Some(was) = before.get(&wanted.remote) else {
                continue;
            };
            let rule = wanted.rule();
            if !was.is_at(&rule) {
                pending::forget_uploads(write, &wanted.remote)?;
            } else if was.what == rule.what {
                after.insert(wanted.remote.clone(), rule);
            }
        }
        if after != before {
            put_noted(write, &after)?;
        }
        pending::forget_but(write, |remote| next.iter().any(|it| it.remote == remote))?;
        self.now = next;
        self.turn += 1;
        Ok(())
    }
}

/// What cannot be read is noted anew.
fn noted(write: &WriteTransaction) -> Result<Noted, redb::Error> {
    let table = write.open_table(STANDING)?;
    let found = table.get(RULES_KEY)?;
    let noted = found.and_then(|text| serde_json::from_str(text.value()).ok());
    Ok(noted.unwrap_or_default())
}

fn put_noted(write: &WriteTransaction, noted: &Noted) -> Result<(), redb::Error> {
    let text = serde_json::to_string(noted).unwrap_or_default();
    put_standing(write, RULES_KEY, &text)
}

impl TagStore {
    /// From the next transaction on, what these want is noted; [`TagStore::note_new_rules`] notes what is there
    /// already.
    pub(crate) fn watch(&self, wanted: Vec<Wanted>) -> Arc<Notify> {
        let watched = self.watch.0.get_or_init(|| Watched {
            rules: Mutex::default(),
            changed: Arc::new(Notify::new()),
            told: Mutex::default(),
        });
        watched.rules().next = Some(wanted);
        watched.changed.clone()
    }

    /// When something was noted last, since the start.
    pub(crate) fn noted_at(&self) -> Option<Instant> {
        let watched = self.watch.0.get()?;
        *watched.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes all that those want for whom it was not noted by the rules as they are now, and forgets what was
    /// noted for those that are not there any more.
    /// The number of these rules.
    pub(crate) async fn note_new_rules(&self) -> Result<u64, TagStoreError> {
        let watch = self.watch.clone();
        // What was written by other rules is there once this is.
        let new = self.writer.run(move |write| watch.to_note(write));
        let (turn, new) = new.await?;
        for wanted in new {
            self.note_all(&wanted).await?;
            let watch = self.watch.clone();
            let noted = move |write: &WriteTransaction| watch.has_noted(write, (turn, &wanted));
            self.writer.run(noted).await?;
        }
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use kraken_proto::Digest;
    use kraken_proto::tags::record::{Change, Condition, Version};
    use tempfile::TempDir;

    use super::*;
    use crate::replicate::Known;

    fn wanted(pattern: &str, at: &[&str]) -> Wanted {
        Wanted {
            remote: "west".into(),
            at: at.iter().map(|it| (*it).to_owned()).collect(),
            what: What::Tags(vec![pattern.parse().unwrap()]),
            platforms: Vec::new(),
        }
    }

    fn team() -> Vec<Wanted> {
        vec![wanted("^team/", &["https://a"])]
    }

    fn open(dir: &TempDir) -> TagStore {
        // What the thread that writes still does of an earlier life.
        loop {
            match TagStore::open(dir.path().join("tags.redb")) {
                Ok(store) => return store,
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    async fn set(store: &TagStore, name: &str) {
        let change = Change::Set {
            digest: Some(Digest::of(name.as_bytes())),
            condition: Condition::Any,
            is_immutable: false,
            attempted: Vec::new(),
            millis: 1,
            cluster: "east".into(),
        };
        let set = store.change_alone(&name.parse().unwrap(), change).await;
        set.unwrap().unwrap();
    }

    async fn names(store: &TagStore) -> Vec<String> {
        let pending = store.pending("west", 100, None).await.unwrap();
        pending.into_iter().map(|it| it.name).collect()
    }

    /// The list as if all of it had been sent.
    async fn strike_all(store: &TagStore) {
        let turn = store.note_new_rules().await.unwrap();
        for name in names(store).await {
            let known = Known {
                version: Version::new(u64::MAX),
                state: None,
            };
            assert!(store.sent(("west", turn), &name, known).await.unwrap());
        }
    }

    #[tokio::test]
    async fn rules_that_change_and_change_back_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        store.watch(team());
        store.note_new_rules().await.unwrap();
        for (number, other) in [vec![], vec![wanted("^other/", &["https://a"])]]
            .into_iter()
            .enumerate()
        {
            strike_all(&store).await;
            store.watch(other);
            let name = format!("team/app:v{number}");
            set(&store, &name).await;
            store.watch(team());
            store.note_new_rules().await.unwrap();
            assert!(names(&store).await.contains(&name));
        }
        // The same once more changes nothing.
        strike_all(&store).await;
        store.watch(team());
        store.note_new_rules().await.unwrap();
        assert_eq!(names(&store).await, [""; 0]);
    }

    #[tokio::test]
    async fn a_remote_that_was_dropped_and_comes_back_after_a_crash_gets_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        store.watch(team());
        store.note_new_rules().await.unwrap();
        set(&store, "team/app:v1").await;
        store.watch(vec![]);
        // The next change makes it so, and then the process dies.
        set(&store, "team/app:v2").await;
        assert_eq!(names(&store).await, [""; 0]);
        drop(store);
        let store = open(&dir);
        store.watch(team());
        set(&store, "team/app:v3").await;
        store.note_new_rules().await.unwrap();
        let all = ["team/app:v1", "team/app:v2", "team/app:v3"];
        assert_eq!(names(&store).await, all);
    }

    #[tokio::test]
    async fn what_was_noted_by_rules_that_have_changed_since_is_not_taken_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        store.watch(team());
        let watch = store.watch.clone();
        let first = store.writer.run(move |write| watch.to_note(write));
        let (turn, new) = first.await.unwrap();
        // They change, and change back, while it is noted by the first.
        store.watch(vec![]);
        set(&store, "team/app:v1").await;
        store.watch(team());
        set(&store, "other/app:v1").await;
        let watch = store.watch.clone();
        let late = store
            .writer
            .run(move |write| watch.has_noted(write, (turn, &new[0])));
        late.await.unwrap();
        store.note_new_rules().await.unwrap();
        assert_eq!(names(&store).await, ["team/app:v1"]);
    }

    #[tokio::test]
    async fn another_destination_under_an_old_name_gets_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        store.watch(team());
        store.note_new_rules().await.unwrap();
        set(&store, "team/app:v1").await;
        let upload = Some("origin-1 id".to_owned());
        store
            .set_upload("west", "blob", upload.clone())
            .await
            .unwrap();
        // A cluster whose build-indexes move one after the other stays what it is.
        for at in [&["https://a", "https://b"][..], &["https://b"]] {
            strike_all(&store).await;
            store.watch(vec![wanted("^team/", at)]);
            store.note_new_rules().await.unwrap();
            assert_eq!(names(&store).await, [""; 0], "{at:?}");
            assert_eq!(store.upload("west", "blob").await.unwrap(), upload);
        }
        store.watch(team());
        store.note_new_rules().await.unwrap();
        assert_eq!(names(&store).await, ["team/app:v1"]);
        assert_eq!(store.upload("west", "blob").await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_was_sent_by_earlier_rules_is_not_struck_out_of_the_new_list() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        store.watch(team());
        let turn = store.note_new_rules().await.unwrap();
        set(&store, "team/app:v1").await;
        store.watch(vec![wanted("^team/", &["https://other"])]);
        store.note_new_rules().await.unwrap();
        let known = Known {
            version: Version::new(u64::MAX),
            state: None,
        };
        let name = "team/app:v1";
        let struck = store.sent(("west", turn), name, known).await.unwrap();
        assert_eq!(
            (struck, names(&store).await),
            (false, vec![name.to_owned()])
        );
    }

    #[tokio::test]
    async fn nothing_is_noted_for_who_is_not_there_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir);
        store.watch(team());
        store.note_new_rules().await.unwrap();
        store.watch(vec![]);
        store.note_new_rules().await.unwrap();
        let name = vec!["team/app:v1".to_owned()];
        store.note_pending("west", name).await.unwrap();
        let upload = Some("origin-1 id".to_owned());
        store.set_upload("west", "blob", upload).await.unwrap();
        assert_eq!(names(&store).await, [""; 0]);
        assert_eq!(store.upload("west", "blob").await.unwrap(), None);
    }
}
