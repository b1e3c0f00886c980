//! What goes wrong with the build-indexes, drawn from a seed.

use std::time::{Duration, Instant};

use kraken_core::proto::rng::Rng;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::Outcome;
use crate::cluster::{Cluster, INDEXES};

/// How often what went wrong.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Faults {
    /// SIGKILL, and a start later.
    pub(crate) kills: usize,
    /// SIGSTOP for some seconds.
    pub(crate) pauses: usize,
    /// SIGKILL, and a start with an empty disk.
    pub(crate) wiped: usize,
    /// Another list of build-indexes, with a start of each.
    pub(crate) list_changes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Kill,
    /// All of them at once.
    KillAll,
    Pause,
    Wipe,
    List,
}

/// Those that take turns, in an order that is drawn.
const KINDS: [Kind; 8] = [
    Kind::Kill,
    Kind::Pause,
    Kind::Wipe,
    Kind::Kill,
    Kind::List,
    Kind::Pause,
    Kind::KillAll,
    Kind::Wipe,
];

/// Lets one thing after the other go wrong for so long; in the end all on the list are ready. Tells clients who
/// is on it.
pub(crate) async fn play(
    cluster: &mut Cluster,
    mut rng: Rng,
    (lasts, listed): (Duration, &watch::Sender<Vec<usize>>),
) -> Outcome<Faults> {
    let mut faults = Faults::default();
    let until = Instant::now() + lasts;
    'all: loop {
        let mut kinds = KINDS;
        rng.shuffle(&mut kinds);
        for kind in kinds {
            some(&mut rng, 500, 2000).await;
            if Instant::now() > until {
                break 'all;
            }
            let among: Vec<_> = cluster.listed.iter().copied().collect();
            let at = among[rng.below(among.len())];
            match kind {
                Kind::Kill => kill(cluster, &mut rng, &[at], &mut faults).await?,
                Kind::KillAll => kill(cluster, &mut rng, &among, &mut faults).await?,
                Kind::Pause => {
                    cluster.pause(at, true)?;
                    some(&mut rng, 500, 5000).await;
                    cluster.pause(at, false)?;
                    faults.pauses += 1;
                }
                Kind::Wipe => wipe(cluster, &mut rng, at, &mut faults).await?,
                Kind::List => {
                    replace(cluster, &mut rng, (at, &mut faults)).await?;
                    listed.send_replace(cluster.listed.iter().copied().collect());
                }
            }
        }
    }
    all_ready(cluster).await?;
    Ok(faults)
}

/// Waits for between so many milliseconds.
async fn some(rng: &mut Rng, from: usize, to: usize) {
    let millis = from + rng.below(to - from);
    sleep(Duration::from_millis(millis as u64)).await;
}

async fn all_ready(cluster: &Cluster) -> Outcome<()> {
    for at in &cluster.listed {
        cluster.ready(*at).await?;
    }
    Ok(())
}

/// They may still be on their way when the next thing goes wrong: nothing is lost with them.
async fn kill(
    cluster: &mut Cluster,
    rng: &mut Rng,
    among: &[usize],
    faults: &mut Faults,
) -> Outcome<()> {
    for at in among {
        cluster.kill(*at)?;
        faults.kills += 1;
    }
    some(rng, 0, 2500).await;
    for at in among {
        cluster.run(*at)?;
    }
    Ok(())
}

/// A disk is lost only when all have learnt again what they had, and no other before this one has.
async fn wipe(cluster: &mut Cluster, rng: &mut Rng, at: usize, faults: &mut Faults) -> Outcome<()> {
    all_ready(cluster).await?;
    cluster.kill(at)?;
    cluster.wipe(at)?;
    faults.wiped += 1;
    some(rng, 0, 2000).await;
    cluster.run(at)?;
    cluster.ready(at).await
}

/// The one that is not on the list takes the place of this one, which is stopped when the new list stands. It
/// comes back later, with its disk or without.
async fn replace(
    cluster: &mut Cluster,
    rng: &mut Rng,
    (old, faults): (usize, &mut Faults),
) -> Outcome<()> {
    all_ready(cluster).await?;
    let before = cluster.listed.clone();
    let Some(new) = (0..INDEXES).find(|it| !before.contains(it)) else {
        return Ok(());
    };
    let mut listed = before.clone();
    listed.remove(&old);
    listed.insert(new);
    cluster.list(listed)?;
    cluster.run(new)?;
    let mut order: Vec<_> = before.into_iter().collect();
    rng.shuffle(&mut order);
    for at in order {
        if rng.below(2) == 0 {
            cluster.kill(at)?;
        } else {
            cluster.stop(at).await?;
        }
        cluster.run(at)?;
        cluster.ready(at).await?;
    }
    cluster.ready(new).await?;
    cluster.settled().await?;
    cluster.stop(old).await?;
    if rng.below(2) == 0 {
        cluster.wipe(old)?;
    }
    faults.list_changes += 1;
    Ok(())
}
