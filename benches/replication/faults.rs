//! What goes wrong: processes are killed and started again, and clusters are cut off from each other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_core::net::http::HttpClient;
use kraken_core::proto::rng::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::cluster::{Cluster, Role};
use crate::relay::{Gate, Way};

/// All clusters.
pub(crate) type Clusters = Arc<Mutex<Vec<Cluster>>>;

pub(crate) fn open(clusters: &Clusters) -> MutexGuard<'_, Vec<Cluster>> {
    clusters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those of which one at most is away at a time: the processes of a role in a cluster.
pub(crate) type Group = (usize, Role);

/// Kills.
pub(crate) struct Kills {
    pub(crate) clusters: Clusters,
    pub(crate) groups: Vec<Group>,
    pub(crate) http: HttpClient,
    pub(crate) seed: u64,
}

/// How long it takes on average from one kill to the next.
const EVERY: Duration = Duration::from_secs(2);
/// How long a process may take until it answers.
const START: Duration = Duration::from_secs(60);

impl Kills {
    /// Kills one process after the other, and starts each again 1 to 3 s later, until it is told to stop
    /// and all are back; gives how many.
    pub(crate) async fn play(self, stop: CancellationToken) -> Outcome<usize> {
        let mut rng = Rng::seeded(self.seed);
        let (mut away, mut busy) = (JoinSet::new(), BTreeSet::new());
        let (mut count, mut next) = (0, Instant::now() + EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(back) = away.join_next() => {
                    busy.remove(&back??);
                }
                () = sleep_until(next), if !self.groups.is_empty() => {
                    next += EVERY.mul_f64(0.5 + rng.unit());
                    let group = self.groups[rng.below(self.groups.len())];
                    let lasts = Duration::from_millis(1000 + rng.below(2000) as u64);
                    let at = self.draw(group, &mut rng);
                    if busy.insert(group) {
                        count += 1;
                        let (clusters, http) = (self.clusters.clone(), self.http.clone());
                        away.spawn(async move {
                            hit(&clusters, (group.0, at), lasts, &http).await.map(|()| group)
                        });
                    }
                }
            }
        }
        while let Some(back) = away.join_next().await {
            back??;
        }
        Ok(count)
    }

    /// One of a group.
    fn draw(&self, (cluster, role): Group, rng: &mut Rng) -> usize {
        let clusters = open(&self.clusters);
        let members = clusters[cluster].members.iter().enumerate();
        let of: Vec<_> = members.filter(|(_, it)| it.role == role).collect();
        of[rng.below(of.len())].0
    }
}

async fn hit(
    clusters: &Clusters,
    (cluster, at): (usize, usize),
    lasts: Duration,
    http: &HttpClient,
) -> Outcome<()> {
    open(clusters)[cluster].kill(at)?;
    sleep(lasts).await;
    open(clusters)[cluster].start(at)?;
    let (name, url) = {
        let clusters = open(clusters);
        let member = &clusters[cluster].members[at];
        (member.name.clone(), member.url())
    };
    ready(&name, &url, http).await
}

/// Waits until a process says that it is ready.
pub(crate) async fn ready(name: &str, url: &str, http: &HttpClient) -> Outcome<()> {
    let asking = async {
        loop {
            let answer = http.raw().get(format!("{url}/readiness"));
            let answer = answer.timeout(Duration::from_secs(1)).send().await;
            if answer.is_ok_and(|it| it.status().is_success()) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let asked = timeout(START, asking).await;
    asked.map_err(|_| format!("{name} does not get ready: see its log").into())
}

/// Cuts two clusters off from each other again and again, in one direction or both, until it is told to
/// stop; gives how often.
pub(crate) async fn partitions(
    gates: Vec<Gate>,
    seed: u64,
    stop: CancellationToken,
) -> Outcome<usize> {
    let mut rng = Rng::seeded(seed);
    let mut count = 0;
    while !stop.is_cancelled() {
        let ways = [Way::Refused, Way::Silent];
        let which = 1 + rng.below((1 << gates.len()) - 1);
        for (at, gate) in gates.iter().enumerate() {
            if which & (1 << at) != 0 {
                gate.set(ways[rng.below(ways.len())]);
            }
        }
        count += 1;
        let lasts = Duration::from_millis(1000 + rng.below(4000) as u64);
        let _ = timeout(lasts, stop.cancelled()).await;
        for gate in &gates {
            gate.set(Way::Open);
        }
        let rests = Duration::from_millis(500 + rng.below(2500) as u64);
        let _ = timeout(rests, stop.cancelled()).await;
    }
    Ok(count)
}
