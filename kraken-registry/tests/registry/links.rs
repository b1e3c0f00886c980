//! What repositories hold beside tags, kept by three build-indexes that die and lose their disks.

use kraken_proto::Digest;
use kraken_registry::link::{Link, LinkKind, Linked};
use kraken_registry::tags::{LinkService, TagService};

use crate::ring::Cluster;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_kept_like_tags_and_listed_apart_from_them() {
    let mut cluster = Cluster::started(3).await;
    let client = cluster.client(0);
    let (repo, other) = ("app/web".parse().unwrap(), "app/other".parse().unwrap());
    let subject = digest("subject");
    let mut about: Vec<_> = (0..5).map(|it| digest(&format!("about {it}"))).collect();
    about.sort();
    for manifest in &about {
        let (subject, manifest) = (subject, *manifest);
        let link = Link::Referrer { subject, manifest };
        client.set_link(&repo, link, true).await.unwrap();
    }
    let (image, blob) = (Link::Manifest(subject), Link::Blob(digest("layer")));
    client.set_link(&repo, image, true).await.unwrap();
    assert_eq!(client.link(&repo, blob).await, Ok(Linked::Never));
    // What was never there can be removed, and is known to be.
    client.set_link(&repo, blob, false).await.unwrap();
    client
        .put(&repo, &"v1".parse().unwrap(), subject)
        .await
        .unwrap();
    client
        .put(&repo, &"v2".parse().unwrap(), digest("else"))
        .await
        .unwrap();
    // Two of three are enough, and a disk that is lost is filled again.
    cluster.kill(0);
    let client = cluster.client(1);
    assert_eq!(client.link(&repo, image).await, Ok(Linked::Held));
    cluster.start(0).await;
    cluster.ready(0).await;
    cluster.wipe(1);
    cluster.start(1).await;
    cluster.ready(1).await;
    cluster.kill(2);
    for at in [0, 1] {
        let client = cluster.client(at);
        assert_eq!(client.link(&repo, image).await, Ok(Linked::Held));
        assert_eq!(client.link(&repo, blob).await, Ok(Linked::Removed));
        assert_eq!(client.link(&other, image).await, Ok(Linked::Never));
        let kind = LinkKind::ReferrersOf(subject);
        let first = client.links(&repo, kind, 2, None).await.unwrap();
        assert_eq!(first, about[..2]);
        let rest = client.links(&repo, kind, 9, Some(about[1])).await.unwrap();
        assert_eq!(rest, about[2..]);
        let manifests = client.links(&repo, LinkKind::Manifests, 9, None).await;
        assert_eq!(manifests.unwrap(), [subject]);
        let tags = client.tags_of(&repo, subject).await.unwrap();
        assert_eq!(tags, ["v1".parse().unwrap()]);
        assert_eq!(client.list(&repo, 9, None).await.unwrap(), ["v1", "v2"]);
        assert_eq!(client.is_known(&repo).await, Ok(true));
        assert_eq!(client.is_known(&other).await, Ok(false));
        let all = cluster.ring(at).page("", 9, None).await.unwrap();
        assert_eq!(all, ["app/web:v1", "app/web:v2"], "links are no tags");
    }
    cluster.start(2).await;
    cluster.ready(2).await;
    let gone = Link::Referrer {
        subject,
        manifest: about[0],
    };
    cluster
        .client(2)
        .set_link(&repo, gone, false)
        .await
        .unwrap();
    let left = cluster.client(0);
    let left = left.links(&repo, LinkKind::ReferrersOf(subject), 9, None);
    assert_eq!(left.await.unwrap(), about[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_removed_only_while_it_points_to_what_goes() {
    let cluster = Cluster::started(3).await;
    let client = cluster.client(0);
    let (repo, tag) = ("a".parse().unwrap(), "v1".parse().unwrap());
    let (old, new) = (digest("old"), digest("new"));
    assert_eq!(client.delete_at(&repo, &tag, old).await, Ok(false));
    client.put(&repo, &tag, new).await.unwrap();
    assert_eq!(client.delete_at(&repo, &tag, old).await, Ok(false));
    assert_eq!(client.get(&repo, &tag).await, Ok(Some(new)));
    assert_eq!(client.delete_at(&repo, &tag, new).await, Ok(true));
    assert_eq!(client.get(&repo, &tag).await, Ok(None));
    let again = cluster.ring(1).delete_at(&repo, &tag, new).await;
    assert_eq!(again, Ok(false));
}
