//! Build-indexes that lose all their disks and read what they had from the backend.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kraken_proto::Digest;
use kraken_proto::tags::record::{Condition, TagState};
use kraken_registry::name::TagName;
use kraken_registry::{Link, LinkKind, Linked, RepoName, TagService as _};

use super::ring::{Cluster, put};

async fn state(cluster: &Cluster, at: usize, tag: &str) -> Option<TagState> {
    let name: TagName = tag.parse().unwrap();
    cluster.ring(at).state(&name).await.unwrap()
}

/// The text that `tag` is kept as, and that of its link.
fn kept(dir: &Path, tag: &str) -> (Option<String>, Option<String>) {
    let (repo, tag) = tag.split_once(':').unwrap();
    let root = dir.join("east");
    let link = format!("docker/registry/v2/repositories/{repo}/_manifests/tags/{tag}/current/link");
    let kept = root.join(format!("registers/{repo}/_tags/{tag}"));
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    (read(kept), read(root.join(link)))
}

/// Until the backend has a tag as it is.
async fn until_kept(cluster: &Cluster, dir: &Path, tag: &str) {
    let state = state(cluster, 0, tag).await.unwrap();
    let version = format!("\"version\":{}", state.now.version.get());
    let digest = state.now.digest.map(|it| it.to_string());
    loop {
        let (register, link) = kept(dir, tag);
        if register.is_some_and(|it| it.contains(&version)) {
            assert_eq!(link, digest);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn link_path(dir: &Path, repo: &RepoName, link: Link) -> PathBuf {
    dir.join(format!("east/registers/{repo}/_links/{link}"))
}

async fn until_link(dir: &Path, repo: &RepoName, link: Link, is_held: bool) {
    loop {
        let text = std::fs::read_to_string(link_path(dir, repo, link)).unwrap_or_default();
        let is_removed = text.contains("\"now\":{") && text.contains("\"digest\":null");
        if !text.is_empty() && is_removed != is_held {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn restart_without_disks(cluster: &mut Cluster) {
    for at in 0..3 {
        cluster.wipe(at);
    }
    for at in 0..3 {
        cluster.start(at).await;
    }
    for at in 0..3 {
        cluster.ready(at).await;
    }
}

async fn with_backend(dir: &Path) -> Cluster {
    let mut cluster = Cluster::new(3).await;
    cluster.backend = Some(dir.to_owned());
    for at in 0..3 {
        cluster.start(at).await;
    }
    for at in 0..3 {
        cluster.ready(at).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn all_disks_are_lost_and_tags_come_back_with_their_versions_and_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = with_backend(dir.path()).await;
    for text in ["1", "2", "3"] {
        put(cluster.ring(0), "team/app:v1", text).await.unwrap();
    }
    put(cluster.ring(1), "team/app:gone", "1").await.unwrap();
    let repo: RepoName = "team/app".parse().unwrap();
    let gone = "gone".parse().unwrap();
    assert!(cluster.ring(2).delete(&repo, &gone).await.unwrap());
    for number in 0..40 {
        let tag = format!("many/{number}:v1");
        put(cluster.ring(number % 3), &tag, "x").await.unwrap();
    }
    let (subject, manifest) = (Digest::of(b"3"), Digest::of(b"about 3"));
    let referrer = Link::Referrer { subject, manifest };
    let removed = Link::Manifest(Digest::of(b"2"));
    let held = Link::Manifest(subject);
    let any = |is_held| (is_held, Condition::Any);
    for link in [referrer, held, removed] {
        let set = cluster.ring(0).set_link(&repo, link, any(true)).await;
        set.unwrap();
    }
    let unset = cluster.ring(1).set_link(&repo, removed, any(false)).await;
    unset.unwrap();

    let mut tags = vec!["team/app:v1".to_owned(), "team/app:gone".to_owned()];
    tags.extend((0..40).map(|number| format!("many/{number}:v1")));
    let mut before = Vec::new();
    for tag in &tags {
        until_kept(&cluster, dir.path(), tag).await;
        before.push(state(&cluster, 0, tag).await);
    }
    until_link(dir.path(), &repo, referrer, true).await;
    until_link(dir.path(), &repo, held, true).await;
    until_link(dir.path(), &repo, removed, false).await;

    let links = [(held, Linked::Held), (removed, Linked::Removed)].map(async |(link, kind)| {
        let before = cluster.ring(0).link(&repo, link).await.unwrap();
        assert_eq!(before.0, kind);
        (link, before)
    });
    let links = futures::future::join_all(links).await;

    restart_without_disks(&mut cluster).await;
    for at in 0..3 {
        for (tag, before) in tags.iter().zip(&before) {
            assert_eq!(state(&cluster, at, tag).await, *before, "{tag} at {at}");
        }
        let ring = cluster.ring(at);
        assert_eq!(ring.list(&repo, 9, None).await.unwrap(), ["v1"]);
        assert_eq!(ring.repositories(99, None).await.unwrap().len(), 41);
        let referrers = ring.links(&repo, LinkKind::ReferrersOf(subject), 9, None);
        assert_eq!(referrers.await.unwrap(), [manifest]);
        for (link, before) in &links {
            assert_eq!(ring.link(&repo, *link).await.unwrap(), *before);
        }
        assert_eq!(ring.unreadable().await, Ok(Some(0)));
    }
    // They can be changed at once, each time later than before, and one disk alone is filled by the others.
    let old = before[0].clone().unwrap().now.version;
    let name: TagName = "team/app:v1".parse().unwrap();
    let digest = Some(Digest::of(b"4"));
    let set = cluster.ring(2).set(&name, digest, Condition::Version(old));
    let now = set.await.unwrap().unwrap();
    assert!(now.now.version > old && now.before.len() == 3);
    until_kept(&cluster, dir.path(), "team/app:v1").await;
    cluster.wipe(1);
    cluster.start(1).await;
    cluster.ready(1).await;
    assert_eq!(state(&cluster, 1, "team/app:v1").await, Some(now));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_away_for_a_while_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (there, away) = (dir.path().join("backend"), dir.path().join("away"));
    let mut cluster = with_backend(&there).await;
    put(cluster.ring(0), "a:v1", "1").await.unwrap();
    until_kept(&cluster, &there, "a:v1").await;
    std::fs::rename(&there, &away).unwrap();
    // A file in the place of the directory.
    std::fs::write(&there, "").unwrap();
    put(cluster.ring(0), "a:v1", "2").await.unwrap();
    put(cluster.ring(1), "b:v1", "1").await.unwrap();
    // What waits for it outlives a restart, and the loss of the disk of one that knows of it.
    cluster.wipe(0);
    cluster.kill(1);
    for at in 0..2 {
        cluster.start(at).await;
    }
    cluster.ready(0).await;
    cluster.ready(1).await;
    std::fs::remove_file(&there).unwrap();
    std::fs::rename(&away, &there).unwrap();
    until_kept(&cluster, &there, "a:v1").await;
    until_kept(&cluster, &there, "b:v1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_counted_and_a_backend_that_cannot_be_listed_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("backend");
    let mut cluster = with_backend(&there).await;
    for tag in ["a:v1", "b:v1", "c:v1"] {
        put(cluster.ring(0), tag, "1").await.unwrap();
        until_kept(&cluster, &there, tag).await;
    }
    for at in 0..3 {
        cluster.wipe(at);
    }
    let registers = there.join("east/registers");
    std::fs::write(registers.join("b/_tags/v1"), "{").unwrap();
    std::fs::rename(registers.join("c/_tags/v1"), registers.join("c/_tags/v2")).unwrap();
    std::fs::write(registers.join("stray"), "").unwrap();
    // A file in the place of the directory.
    let away = dir.path().join("away");
    std::fs::rename(&there, &away).unwrap();
    std::fs::write(&there, "").unwrap();
    for at in 0..3 {
        cluster.start(at).await;
    }
    for at in 0..3 {
        loop {
            let why = cluster.ring(at).why_not_ready().unwrap();
            if why.contains("cannot be read") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    std::fs::remove_file(&there).unwrap();
    std::fs::rename(&away, &there).unwrap();
    for at in 0..3 {
        cluster.ready(at).await;
    }
    for at in 0..3 {
        assert!(state(&cluster, at, "a:v1").await.is_some());
        assert_eq!(state(&cluster, at, "b:v1").await, None);
        assert_eq!(cluster.ring(at).unreadable().await, Ok(Some(3)));
    }
    // What is set anew is kept in the place of what could not be read.
    put(cluster.ring(0), "b:v1", "2").await.unwrap();
    until_kept(&cluster, &there, "b:v1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_were_there_before_the_backend_are_written_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::started(3).await;
    put(cluster.ring(0), "a:v1", "1").await.unwrap();
    put(cluster.ring(0), "a:v1", "2").await.unwrap();
    cluster.backend = Some(dir.path().to_owned());
    for at in 0..3 {
        cluster.kill(at);
        cluster.start(at).await;
    }
    until_kept(&cluster, dir.path(), "a:v1").await;
    let before = state(&cluster, 0, "a:v1").await;
    restart_without_disks(&mut cluster).await;
    assert_eq!(state(&cluster, 2, "a:v1").await, before);
}
