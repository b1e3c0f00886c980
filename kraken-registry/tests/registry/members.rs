//! Build-indexes that are added and taken away while clients put and get tags.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kraken_proto::Digest;
use kraken_registry::tags::members::RingError;
use kraken_registry::{RepoName, TagService as _};

use super::ring::{Clients, Cluster, put};

impl Cluster {
    /// Four, of which the first three are listed and vote.
    async fn of_four_three_listed() -> Self {
        let mut cluster = Self::new(4).await;
        cluster.listed = vec![0, 1, 2];
        for at in 0..3 {
            cluster.start(at).await;
        }
        for at in 0..3 {
            cluster.ready(at).await;
        }
        cluster
    }

    /// One build-index after the other is started anew with another list.
    async fn roll(&mut self, running: &[usize], listed: &[usize]) {
        self.listed = listed.to_vec();
        for at in running {
            self.kill(*at);
            self.start(*at).await;
            self.ready_or_left(*at).await;
        }
    }

    async fn ready_or_left(&self, at: usize) {
        let has_left = |it: &str| it.contains("can be stopped");
        while !self.ring(at).why_not_ready().is_none_or(has_left) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until all of these say that the list stands.
    async fn settled(&self, listed: &[usize]) {
        for at in listed {
            loop {
                let lists = self.told(*at).await.lists.unwrap();
                let names = listed.iter().map(|it| format!("index-{it}"));
                if lists.next.is_none() && lists.settled.members.into_keys().eq(names) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn fill(cluster: &Cluster, at: usize, count: usize) {
    let puts = (0..count).map(|number| {
        let ring = cluster.ring(at).clone();
        async move { put(&ring, &format!("r{}:v{number}", number % 17), "x").await }
    });
    let puts = futures::stream::iter(puts).buffer_unordered(32);
    puts.for_each(async |done| assert!(done.is_ok(), "{done:?}"))
        .await;
}

async fn all_there(cluster: &Cluster, at: usize, count: usize) {
    let mut listed = 0;
    for repo in 0..17 {
        let repo: RepoName = format!("r{repo}").parse().unwrap();
        listed += cluster
            .ring(at)
            .list(&repo, 5000, None)
            .await
            .unwrap()
            .len();
    }
    assert_eq!(listed, count);
    for number in (0..count).step_by(41) {
        let repo: RepoName = format!("r{}", number % 17).parse().unwrap();
        let tag = format!("v{number}").parse().unwrap();
        let found = cluster.ring(at).get(&repo, &tag).await;
        assert_eq!(found, Ok(Some(Digest::of(b"x"))), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_replaced_by_another_that_comes_while_clients_go_on() {
    let mut cluster = Cluster::of_four_three_listed().await;
    fill(&cluster, 0, 1300).await;
    let clients = Clients::start(
        &cluster,
        &[0, 1, 3],
        Instant::now() + Duration::from_secs(12),
    );
    // The new one waits until the others know of it.
    cluster.listed = vec![0, 1, 3];
    cluster.start(3).await;
    assert!(!cluster.ring(3).is_ready());
    cluster.roll(&[0, 1, 2], &[0, 1, 3]).await;
    cluster.ready(3).await;
    cluster.settled(&[0, 1, 3]).await;
    while cluster.ring(2).is_ready() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nothing depends on the one that left, nor on any one of the others.
    cluster.wipe(2);
    cluster.kill(0);
    all_there(&cluster, 3, 1300).await;
    cluster.start(0).await;
    cluster.ready(0).await;
    let answers = clients.check().await;
    assert!(answers > 100, "{answers}");
    all_there(&cluster, 0, 1300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_dead_is_taken_off_and_one_alone_becomes_several() {
    let mut cluster = Cluster::new(4).await;
    cluster.listed = vec![0];
    cluster.start(0).await;
    cluster.ready(0).await;
    fill(&cluster, 0, 60).await;
    // From one to three, to four, and the first dies for ever.
    for (new, listed) in [(vec![1, 2], vec![0, 1, 2]), (vec![3], vec![0, 1, 2, 3])] {
        cluster.listed.clone_from(&listed);
        for at in &new {
            cluster.start(*at).await;
        }
        let old: Vec<_> = listed
            .iter()
            .copied()
            .filter(|it| !new.contains(it))
            .collect();
        cluster.roll(&old, &listed).await;
        cluster.settled(&listed).await;
    }
    cluster.wipe(0);
    fill(&cluster, 1, 90).await;
    cluster.roll(&[1, 2, 3], &[1, 2, 3]).await;
    cluster.settled(&[1, 2, 3]).await;
    for at in 1..4 {
        cluster.kill(at % 3 + 1);
        all_there(&cluster, at, 90).await;
        cluster.start(at % 3 + 1).await;
        cluster.ready(at % 3 + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_lost_while_another_one_comes() {
    let mut cluster = Cluster::of_four_three_listed().await;
    // Only the first two know of these, and one of them loses its disk while a fourth comes.
    cluster.kill(2);
    fill(&cluster, 0, 500).await;
    cluster.wipe(0);
    cluster.listed = vec![0, 1, 2, 3];
    cluster.start(3).await;
    cluster.start(0).await;
    cluster.kill(1);
    cluster.start(1).await;
    cluster.start(2).await;
    for at in 0..4 {
        cluster.ready(at).await;
    }
    cluster.kill(1);
    all_there(&cluster, 3, 500).await;
    cluster.start(1).await;
    cluster.settled(&[0, 1, 2, 3]).await;
    cluster.kill(1);
    all_there(&cluster, 0, 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_by_a_list_that_was_closed_is_refused() {
    let mut cluster = Cluster::of_four_three_listed().await;
    put(cluster.ring(0), "a:v1", "old").await.unwrap();
    // Nobody tells the third that it is not on the list any more.
    cluster.listed = vec![0, 1, 3];
    cluster.start(3).await;
    cluster.roll(&[0, 1], &[0, 1, 3]).await;
    cluster.settled(&[0, 1, 3]).await;
    put(cluster.ring(3), "a:v1", "new").await.unwrap();
    let (repo, tag) = ("a".parse().unwrap(), "v1".parse().unwrap());
    let stale = cluster.ring(2).get(&repo, &tag).await.unwrap_err();
    assert!(
        stale.to_string().contains("list of build-indexes"),
        "{stale}"
    );
    assert!(cluster.ring(2).list(&repo, 9, None).await.is_err());
    assert!(put(cluster.ring(2), "a:v1", "wrong").await.is_err());
    let now = cluster.ring(1).get(&repo, &tag).await;
    assert_eq!(now, Ok(Some(Digest::of(b"new"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_can_be_taken_back_until_all_rely_on_it() {
    let mut cluster = Cluster::started(3).await;
    put(cluster.ring(0), "a:v1", "x").await.unwrap();
    // The fourth is not there: nothing has come of it yet.
    cluster.roll(&[0], &[0, 1]).await;
    cluster.roll(&[0], &[0, 1, 2]).await;
    cluster.settled(&[0, 1, 2]).await;
    cluster.roll(&[0, 1, 2], &[0, 1]).await;
    cluster.settled(&[0, 1]).await;
    // One that has left is not one of them again by being started.
    cluster.kill(2);
    let left = cluster.refusal(2, &[0, 1]).await;
    assert_eq!(left, Some(RingError::NotListed("index-2".into())));
    let twice = cluster.refusal(1, &[0, 1, 1]).await;
    assert_eq!(twice, Some(RingError::Twice("index-1".into())));
}
