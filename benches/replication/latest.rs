//! Two clusters that copy to each other, and tags that are pushed in both, while they are cut off from
//! each other time and again.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use kraken_core::proto::rng::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::cluster::Client;
use crate::images::Maker;
use crate::push::{insist, put_parts};
use crate::relay::{Gate, Way};

/// The tags, escaped as one segment of a path.
const TAGS: [&str; 3] = [
    "team%2Fa%3Alatest",
    "team%2Fb%3Alatest",
    "team%2Fc%2Fapp%3Alatest",
];
/// How long a writer rests after each put, at most twice that.
const PACE: Duration = Duration::from_millis(300);
/// The header with a tag's version.
const VERSION: &str = "kraken-tag-version";
/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Latest {
    /// Acknowledged.
    pub(crate) puts: usize,
    /// Reads that gave a version before one that was acknowledged, or read, before in that cluster; and
    /// tags that are behind an acknowledged version in the end.
    pub(crate) went_back: usize,
    /// Tags that do not point to the same everywhere in the end.
    pub(crate) differ: usize,
    pub(crate) history_differs: usize,
    #[serde(skip)]
    pub(crate) reads: usize,
    #[serde(skip)]
    pub(crate) reasons: Vec<String>,
}

/// Of each tag the latest version that somebody in a cluster was told.
type Floors = Arc<Mutex<BTreeMap<usize, u64>>>;

fn floor(floors: &Floors, tag: usize, seen: u64) -> u64 {
    let mut floors = floors.lock().unwrap_or_else(PoisonError::into_inner);
    let floor = floors.entry(tag).or_default();
    *floor = seen.max(*floor);
    *floor
}

/// Pushes so often, half in each cluster, and reads all the while. In the end, when `faults` are over, the
/// clusters are cut off once more and each tag is pushed in both. Gives of each tag the last version that was
/// acknowledged.
pub(crate) async fn play(
    clients: &[Client],
    puts: usize,
    seed: u64,
    faults: impl Future<Output = Outcome<Vec<Gate>>>,
) -> Outcome<(Vec<u64>, Latest)> {
    let floors: Vec<_> = clients.iter().map(|_| Floors::default()).collect();
    let stop = CancellationToken::new();
    let mut readers = tokio::task::JoinSet::new();
    for (at, client) in clients.iter().enumerate() {
        let (client, floors, stop) = (client.clone(), floors[at].clone(), stop.clone());
        let seed = seed.wrapping_mul(100) + at as u64;
        readers.spawn(async move { read_all(&client, &floors, seed, &stop).await });
    }
    let mut writers = writers(clients, &floors, seed);
    let share = |at: usize| puts / clients.len() + usize::from(at < puts % clients.len());
    let all = writers.iter_mut().enumerate();
    let written = try_join_all(all.map(|(at, writer)| writer.write(share(at)))).await;
    let gates = faults.await?;
    written?;
    gates.iter().for_each(|gate| gate.set(Way::Silent));
    let last = try_join_all(writers.iter_mut().map(Writer::write_each)).await;
    gates.iter().for_each(|gate| gate.set(Way::Open));
    last?;
    stop.cancel();
    let (reads, back): (Vec<_>, Vec<_>) = readers.join_all().await.into_iter().unzip();
    let acknowledged = (0..TAGS.len()).map(|tag| {
        let floors = floors.iter().map(|it| floor(it, tag, 0));
        floors.max().unwrap_or_default()
    });
    let reasons: Vec<_> = back.into_iter().flatten().collect();
    let latest = Latest {
        puts: writers.iter().map(|writer| writer.puts).sum(),
        went_back: reasons.len(),
        differ: 0,
        history_differs: 0,
        reads: reads.iter().sum(),
        reasons,
    };
    Ok((acknowledged.collect(), latest))
}

/// Lets tags of a cluster point to one new image after the other, at any of its build-indexes.
struct Writer<'a> {
    client: &'a Client,
    floors: &'a Floors,
    maker: Maker,
    rng: Rng,
    /// Acknowledged.
    puts: usize,
}

/// One for each cluster.
fn writers<'a>(clients: &'a [Client], floors: &'a [Floors], seed: u64) -> Vec<Writer<'a>> {
    let clusters = clients.iter().zip(floors).zip(50..);
    let writer = |((client, floors), number)| Writer {
        client,
        floors,
        maker: Maker::new(seed.wrapping_mul(100) + number),
        rng: Rng::seeded(seed.wrapping_mul(100) + number),
        puts: 0,
    };
    clusters.map(writer).collect()
}

impl Writer<'_> {
    /// Tags by chance, so often.
    async fn write(&mut self, puts: usize) -> Outcome<()> {
        for _ in 0..puts {
            let tag = self.rng.below(TAGS.len());
            self.put(tag).await?;
            sleep(PACE.mul_f64(2.0 * self.rng.unit())).await;
        }
        Ok(())
    }

    /// Each tag once.
    async fn write_each(&mut self) -> Outcome<()> {
        for tag in 0..TAGS.len() {
            self.put(tag).await?;
        }
        Ok(())
    }

    async fn put(&mut self, tag: usize) -> Outcome<()> {
        let client = self.client;
        let image = self.maker.make(self.puts, 0)?;
        let parts = async || put_parts(client, &image).await;
        insist("the parts of an image", parts).await?;
        let digest = image.digest.to_string().replace(':', "%3A");
        let turn = Cell::new(self.rng.below(client.indexes.len()));
        let put = async || {
            let index = &client.indexes[turn.get() % client.indexes.len()];
            turn.set(turn.get() + 1);
            let url = format!("{index}/tags/{}/digest/{digest}", TAGS[tag]);
            let answer = client.http.raw().put(url).timeout(TIMEOUT).send().await?;
            let answer = answer.error_for_status()?;
            let version = answer.headers().get(VERSION);
            Ok(version.ok_or("no version")?.to_str()?.parse::<u64>()?)
        };
        floor(self.floors, tag, insist("a put", put).await?);
        self.puts += 1;
        Ok(())
    }
}

/// Reads until it is told to stop; gives how often, and what went back.
async fn read_all(
    client: &Client,
    floors: &Floors,
    seed: u64,
    stop: &CancellationToken,
) -> (usize, Vec<String>) {
    let mut rng = Rng::seeded(seed);
    let (mut count, mut back) = (0, Vec::new());
    while !stop.is_cancelled() {
        let tag = rng.below(TAGS.len());
        let index = &client.indexes[rng.below(client.indexes.len())];
        let before = floor(floors, tag, 0);
        // Who does not answer says nothing wrong.
        if let Ok(version) = read(client, index, tag).await {
            count += 1;
            floor(floors, tag, version);
            if version < before {
                let name = TAGS[tag];
                back.push(format!(
                    "{index}: {name} is at {version}, and was at {before}"
                ));
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    (count, back)
}

/// The version of a tag, 0 if it was never set.
async fn read(client: &Client, index: &str, tag: usize) -> Outcome<u64> {
    let url = format!("{index}/tags/{}", TAGS[tag]);
    let answer = client.http.raw().get(url).timeout(TIMEOUT).send().await?;
    let status = answer.status();
    let version = answer.headers().get(VERSION);
    match version {
        Some(version) if status.is_success() || status.as_u16() == 404 => {
            Ok(version.to_str()?.parse()?)
        }
        _ => Err(format!("{status}").into()),
    }
}

/// One state of a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Past {
    version: String,
    digest: Option<String>,
    cluster: String,
}

async fn history(client: &Client, index: &str, tag: usize) -> Outcome<Vec<Past>> {
    let url = format!("{index}/tags/{}/history", TAGS[tag]);
    let answer = client.http.raw().get(url).timeout(TIMEOUT).send().await?;
    let text = answer.error_for_status()?.text().await?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits, at most until `end`, until all build-indexes say the same of all tags.
pub(crate) async fn compare(
    clients: &[Client],
    acknowledged: &[u64],
    latest: &mut Latest,
    end: Instant,
) -> Outcome<()> {
    for (tag, acknowledged) in acknowledged.iter().enumerate() {
        let told = loop {
            let told = told(clients, tag).await?;
            if told.len() == 1 || Instant::now() > end {
                break told;
            }
            sleep(Duration::from_millis(500)).await;
        };
        let now: BTreeSet<_> = told.iter().map(|it| it.first()).collect();
        latest.differ += usize::from(now.len() > 1);
        latest.history_differs += usize::from(told.len() > 1);
        let versions = now.iter().map(|it| it.map_or("0", |past| &past.version));
        let behind = versions.filter(|it| it.parse::<u64>().unwrap_or(0) < *acknowledged);
        if behind.count() > 0 {
            latest.went_back += 1;
            let name = TAGS[tag];
            let reason = format!("{name} is behind {acknowledged} in the end");
            latest.reasons.push(reason);
        }
        if told.len() > 1 {
            latest.reasons.push(differences(TAGS[tag], &told));
        }
    }
    Ok(())
}

/// What some of the histories have and others have not.
fn differences(tag: &str, told: &BTreeSet<Vec<Past>>) -> String {
    let is_shared = |past: &Past| told.iter().all(|history| history.contains(past));
    let lists = told.iter().map(|history| {
        let own = history.iter().filter(|past| !is_shared(past));
        let own = own.map(|past| format!("{} of {}", past.version, past.cluster));
        format!("[{}]", own.collect::<Vec<_>>().join(", "))
    });
    let lists: Vec<_> = lists.collect();
    format!("histories of {tag} differ by {}", lists.join(" and "))
}

/// The different histories that build-indexes tell.
async fn told(clients: &[Client], tag: usize) -> Outcome<BTreeSet<Vec<Past>>> {
    let mut told = BTreeSet::new();
    for client in clients {
        for index in &client.indexes {
            let ask = async || history(client, index, tag).await;
            told.insert(insist("a history", ask).await?);
        }
    }
    Ok(told)
}
