//! `kraken top`: what agents and origins are doing at this moment.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::Table;
use futures::future::join_all;
use kraken_core::net::http::ApiError;
use kraken_core::proto::history::Transfer;
use kraken_daemon::explain::Activity;
use serde::Serialize;

use crate::Failure;
use crate::caller::silence;
use crate::directory::Directory;
use crate::explain::{rate, role, short};
use crate::operator::Operator;

/// How long a process may think; it looks into its memory.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const ANSWER: usize = 8 << 20;
/// Transfers and peers of one process that are shown.
const SHOWN: usize = 10;
/// Characters of a bar.
const BAR: u64 = 20;

/// A process that is asked.
#[derive(Debug)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Whom to ask.
    pub asked: Operator,
}

/// What a process said of itself, or why it did not.
#[derive(Debug, Clone)]
pub struct Look {
    name: String,
    said: Result<Activity, String>,
}

/// What a process did between two looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Why nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
    /// Bytes of pieces per second that came in.
    pub received_per_second: u64,
    /// Bytes of pieces per second that went to peers.
    pub sent_per_second: u64,
    /// The second look.
    #[serde(flatten)]
    pub activity: Option<Activity>,
}

/// The agents and origins of the cluster in `dir`.
///
/// # Errors
/// There is no cluster of `kraken dev` in that directory.
pub fn processes_in(dir: &Path) -> Result<Vec<Process>, Failure> {
    let cluster = Directory::read(dir)?;
    let tls = cluster.tls(dir);
    let of = cluster.processes.iter();
    let of = of.filter(|it| matches!(it.role.as_str(), "agent" | "origin"));
    let process = |it: &crate::directory::Process| {
        Ok(Process {
            name: it.name.clone(),
            asked: Operator::new(&it.url, &tls)?,
        })
    };
    of.map(process).collect()
}

/// Asks all of them at once.
pub async fn look(processes: &[Process]) -> Vec<Look> {
    let looks = processes.iter().map(async |process| {
        let said = ask(&process.asked).await;
        Look {
            name: process.name.clone(),
            said: said.map_err(|error| silence(&error.to_string())),
        }
    });
    join_all(looks).await
}

async fn ask(process: &Operator) -> Result<Activity, ApiError> {
    let answer = process.answer("GET", "/x/top", PATIENCE).await?;
    answer.successful().await?.json(ANSWER).await
}

/// What each process did between two looks at the same processes.
pub fn compare(before: &[Look], now: &[Look]) -> Vec<Seen> {
    let pairs = before.iter().zip(now);
    pairs.map(|(before, now)| seen(before, now)).collect()
}

fn seen(before: &Look, now: &Look) -> Seen {
    let mut seen = Seen {
        name: now.name.clone(),
        silent: now.said.as_ref().err().cloned(),
        received_per_second: 0,
        sent_per_second: 0,
        activity: now.said.as_ref().ok().cloned(),
    };
    if let (Ok(before), Ok(now)) = (&before.said, &now.said) {
        let ms = now.now_ms.saturating_sub(before.now_ms).max(1);
        // After a restart it counts from zero again.
        let per_second = |now: u64, before: u64| now.saturating_sub(before) * 1000 / ms;
        let received = |it: &Activity| it.from_origins + it.from_agents;
        seen.received_per_second = per_second(received(now), received(before));
        seen.sent_per_second = per_second(now.sent, before.sent);
    }
    seen
}

/// One picture of all processes.
pub fn frame(seen: &[Seen]) -> String {
    let mut text = format!("{}\n", overview(seen));
    for process in seen {
        let Some(activity) = &process.activity else {
            let why = process.silent.as_deref().unwrap_or_default();
            text.push_str(&format!("\n{}: {why}\n", process.name));
            continue;
        };
        if !activity.transfers.is_empty() {
            let table = transfers(activity);
            text.push_str(&format!("\n{} fetches\n{table}\n", process.name));
            text.push_str(&more(activity.transfers.len()));
        }
        let busy = activity.neighbours.iter();
        let busy = busy.filter(|it| it.received + it.sent > 0).count();
        if busy > 0 {
            text.push_str(&format!(
                "\n{} and its peers\n{}\n",
                process.name,
                peers(activity)
            ));
            text.push_str(&more(busy));
        }
    }
    text
}

fn more(count: usize) -> String {
    match count.saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("and {more} more\n"),
    }
}

fn overview(seen: &[Seen]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "process",
        "in",
        "out",
        "from origins",
        "from agents",
        "sent",
        "peers",
        "fetching",
        "blobs",
        "store",
    ]);
    for process in seen {
        let Some(activity) = &process.activity else {
            table.add_row([process.name.as_str(), "does not answer"]);
            continue;
        };
        let limit = activity
            .limit
            .map(|limit| format!(" of {}", ByteSize(limit)));
        table.add_row([
            process.name.clone(),
            rate(process.received_per_second, 1000),
            rate(process.sent_per_second, 1000),
            ByteSize(activity.from_origins).to_string(),
            ByteSize(activity.from_agents).to_string(),
            ByteSize(activity.sent).to_string(),
            activity.neighbours.len().to_string(),
            activity.transfers.len().to_string(),
            activity.blobs.to_string(),
            format!("{}{}", ByteSize(activity.stored), limit.unwrap_or_default()),
        ]);
    }
    table
}

fn transfers(activity: &Activity) -> Table {
    let mut table = Table::new();
    table.set_header(["blob", "of", "size", "", "", "rate", "from"]);
    for transfer in activity.transfers.iter().take(SHOWN) {
        let here = here(transfer);
        let took = activity.now_ms.saturating_sub(transfer.begun_ms);
        table.add_row([
            transfer.digest.hex()[..12].to_string(),
            transfer.namespace.clone(),
            ByteSize(transfer.length).to_string(),
            bar(here, transfer.length),
            format!("{} %", percent(here, transfer.length)),
            rate(transfer.came(), took),
            format!("{} peers", transfer.sources.len()),
        ]);
    }
    table
}

/// Bytes that are here, with those that were before.
fn here(transfer: &Transfer) -> u64 {
    let had = u64::from(transfer.had) * (transfer.length / u64::from(transfer.pieces.max(1)));
    (had + transfer.came()).min(transfer.length)
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(100)
}

fn bar(part: u64, whole: u64) -> String {
    let full = part.saturating_mul(BAR).checked_div(whole).unwrap_or(BAR);
    let signs = (0..BAR).map(|at| if at < full { '#' } else { '.' });
    signs.collect()
}

fn peers(activity: &Activity) -> Table {
    let mut table = Table::new();
    table.set_header(["peer", "address", "is", "received", "sent"]);
    let mut busy: Vec<_> = activity.neighbours.iter().collect();
    busy.retain(|it| it.received + it.sent > 0);
    busy.sort_by_key(|it| std::cmp::Reverse(it.received + it.sent));
    for peer in busy.into_iter().take(SHOWN) {
        table.add_row([
            short(peer.peer),
            peer.addr.to_string(),
            role(peer.role).to_string(),
            ByteSize(peer.received).to_string(),
            ByteSize(peer.sent).to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use kraken_core::proto::history::{Neighbour, Teller};
    use kraken_core::{Digest, PeerId};

    use super::*;

    fn activity(now_ms: u64, bytes: u64) -> Activity {
        Activity {
            now_ms,
            from_origins: bytes,
            from_agents: bytes,
            sent: bytes,
            transfers: vec![Transfer {
                digest: Digest::of(b"a"),
                namespace: "library/app".into(),
                length: 8 << 20,
                pieces: 8,
                had: 1,
                told_by: Teller::Discovery,
                begun_ms: 0,
                end: None,
                sources: Vec::new(),
                others: 3 << 20,
                ingested: 0,
            }],
            neighbours: vec![Neighbour {
                peer: PeerId::from_bytes([7; 32]),
                addr: ([10, 0, 0, 7], 7600).into(),
                role: None,
                since_ms: 0,
                received: 1,
                sent: 2 << 20,
            }],
            blobs: 3,
            stored: 1 << 30,
            limit: Some(2 << 30),
        }
    }

    fn look(name: &str, said: Result<Activity, String>) -> Look {
        let name = name.to_string();
        Look { name, said }
    }

    #[test]
    fn a_frame_shows_rates_progress_peers_and_who_is_silent() {
        let before = [
            look("one", Ok(activity(1000, 0))),
            look("two", Ok(activity(0, 9))),
        ];
        let now = [
            look("one", Ok(activity(3000, 4 << 20))),
            look("two", Err("gone".into())),
        ];
        let seen = compare(&before, &now);
        assert_eq!(
            (seen[0].received_per_second, seen[0].sent_per_second),
            (4 << 20, 2 << 20)
        );
        let frame = frame(&seen);
        for says in [
            "4.0 MiB/s",
            "1.0 GiB of 2.0 GiB",
            "##########..........",
            "50 %",
            "10.0.0.7:7600",
            "07070707",
            "two: gone",
            "does not answer",
        ] {
            assert!(frame.contains(says), "{says:?} is not in\n{frame}");
        }
        // A process that was restarted has not taken bytes back.
        let restarted = compare(&now[..1], &[look("one", Ok(activity(4000, 5)))]);
        assert_eq!(restarted[0].received_per_second, 0);
        let json = serde_json::to_value(&seen).unwrap();
        assert_eq!(json[0]["blobs"], 3);
        assert_eq!(json[1]["silent"], "gone");
    }
}
