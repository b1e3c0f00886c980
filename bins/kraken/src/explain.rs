//! `kraken explain`: which bytes of a blob came from whom, when and how fast, why an origin fetched it,
//! and what clients were told.

use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::Table;
use kraken_core::net::http::segment;
use kraken_core::origin::{Asker, Fetch};
use kraken_core::proto::PeerRole;
use kraken_core::proto::history::{Source, Teller, Transfer};
use kraken_core::{Digest, PeerId};
use kraken_daemon::answers::Answer;
use kraken_daemon::explain::{Explanation, OriginSays};
use kraken_registry::Manifest;
use serde::Serialize;

use crate::Failure;
use crate::operator::{Operator, failed};

/// How long an agent may ask the origins.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes.
const ANSWER: usize = 16 << 20;

/// A blob of an image, or one by itself, and what is remembered of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The blob.
    pub digest: Digest,
    /// What it is in the image: `manifest` or `blob`; nothing for one by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// What is remembered.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// What the process remembers of a blob.
///
/// # Errors
/// It does not answer.
pub async fn of_blob(process: &Operator, digest: Digest) -> Result<Explanation, Failure> {
    let path = format!("/x/explain/{digest}");
    let answer = process.answer("GET", &path, PATIENCE).await;
    let answer = answer.map_err(failed)?.successful().await.map_err(failed)?;
    answer.json(ANSWER).await.map_err(failed)
}

/// What clients of the agent were told about a tag.
///
/// # Errors
/// It does not answer.
pub async fn of_tag(
    process: &Operator,
    (repository, tag): (&str, &str),
) -> Result<Vec<Answer>, Failure> {
    let (repository, tag) = (segment(repository), segment(tag));
    let path = format!("/x/answers?repository={repository}&tag={tag}");
    let answer = process.answer("GET", &path, PATIENCE).await;
    let answer = answer.map_err(failed)?.successful().await.map_err(failed)?;
    answer.json(ANSWER).await.map_err(failed)
}

/// An image, and what is remembered of all its blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageExplained {
    /// Its manifest or index; nothing when no client was told it.
    pub digest: Option<Digest>,
    /// What clients were told about the tag.
    pub answers: Vec<Answer>,
    /// The manifest and all that it names, as far as it is here.
    pub blobs: Vec<Explained>,
}

/// The most blobs of an image that are told.
const MOST: usize = 256;
/// The longest manifest, in bytes.
const MANIFEST: usize = 4 << 20;

/// What the agent remembers of an image. Nothing is fetched for it.
///
/// # Errors
/// The agent does not answer, or no client asked for the tag.
pub async fn of_image(
    process: &Operator,
    (repository, reference): (&str, &str),
) -> Result<ImageExplained, Failure> {
    let (digest, answers) = match reference.parse::<Digest>() {
        Ok(digest) => (Some(digest), Vec::new()),
        Err(_) => {
            let answers = of_tag(process, (repository, reference)).await?;
            let told = answers.iter().rev().find_map(|answer| answer.digest);
            (told, answers)
        }
    };
    if digest.is_none() && answers.is_empty() {
        return Err(Failure::Registry(format!(
            "no client asked lately what {repository}:{reference} is: name the image by its digest, \
             {repository}@sha256:…"
        )));
    }
    let blobs = match digest {
        Some(digest) => blobs_of(process, repository, digest).await?,
        None => Vec::new(),
    };
    Ok(ImageExplained {
        digest,
        answers,
        blobs,
    })
}

/// A manifest and all that it names, as far as it is here.
async fn blobs_of(
    process: &Operator,
    repository: &str,
    digest: Digest,
) -> Result<Vec<Explained>, Failure> {
    let mut blobs = Vec::<Explained>::new();
    let mut next = vec![(digest, "manifest")];
    while let Some((digest, part)) = next.pop() {
        if blobs.len() >= MOST || blobs.iter().any(|it| it.digest == digest) {
            continue;
        }
        let explanation = of_blob(process, digest).await?;
        if part == "manifest" && explanation.kept.is_some() {
            next.extend(named_by(process, repository, digest).await?);
        }
        blobs.push(Explained {
            digest,
            part: Some(part.to_string()),
            explanation,
        });
    }
    Ok(blobs)
}

/// What a manifest that is here names, the last first.
async fn named_by(
    process: &Operator,
    repository: &str,
    digest: Digest,
) -> Result<Vec<(Digest, &'static str)>, Failure> {
    let path = format!("/v2/{repository}/blobs/{digest}");
    let answer = process.answer("GET", &path, PATIENCE).await;
    let answer = answer.map_err(failed)?.successful().await.map_err(failed)?;
    let bytes = answer.bytes(MANIFEST).await.map_err(failed)?;
    let manifest = Manifest::parse(&bytes);
    let manifest = manifest.map_err(|error| Failure::Registry(format!("{digest}: {error}")))?;
    let manifests = manifest.manifests().map(|it| (it.digest, "manifest"));
    let blobs = manifest.blobs().map(|it| (it.digest, "blob"));
    let mut named: Vec<_> = manifests.chain(blobs).collect();
    named.reverse();
    Ok(named)
}

/// In words what an image is, which was asked for by a name.
pub fn is(name: &str, image: &ImageExplained) -> String {
    match image.digest {
        Some(digest) => format!("{name} is {digest}"),
        None => format!("What {name} is was told to no client lately."),
    }
}

/// A blob in words and tables; `now_ms` is the time in milliseconds since 1970.
pub fn text(explained: &Explained, now_ms: u64) -> String {
    let Explained {
        digest,
        part,
        explanation,
    } = explained;
    let part = part.as_ref().map(|part| format!("{part} "));
    let mut lines = vec![format!("{}{digest}", part.unwrap_or_default())];
    lines.extend(here(explanation, now_ms));
    for transfer in &explanation.transfers {
        lines.extend(transferred(transfer));
    }
    lines.extend(
        explanation
            .fetches
            .iter()
            .flat_map(|it| fetched("this origin", it)),
    );
    for origin in &explanation.origins {
        lines.extend(at_origin(origin));
    }
    lines.extend(told(&explanation.answers));
    lines.join("\n")
}

fn here(explanation: &Explanation, now_ms: u64) -> Vec<String> {
    let mut lines = Vec::new();
    match &explanation.kept {
        Some(kept) => {
            let (size, came) = (ByteSize(kept.bytes), time(kept.born_ms));
            let used = ago(now_ms.saturating_sub(kept.used_ms));
            lines.push(format!(
                "  It is in the store: {size}, came {came}, used {used} ago."
            ));
        }
        None => lines.push("  It is not in the store.".into()),
    }
    if explanation.transfers.is_empty() {
        let what = "  Nothing is remembered of its coming: it came before this process started, or is too long ago.";
        lines.push(what.into());
    }
    lines
}

fn transferred(transfer: &Transfer) -> Vec<String> {
    let Transfer {
        length,
        pieces,
        had,
        told_by,
        begun_ms,
        end,
        ..
    } = transfer;
    let told = match told_by {
        Teller::Discovery => "A tracker told what it consists of",
        Teller::Peer => "No tracker answered, and a peer told what it consists of",
        Teller::Origin => "This origin took it in",
    };
    let before = match had {
        0 => String::new(),
        had => format!("; {had} pieces were here before"),
    };
    let (size, begun) = (ByteSize(*length), time(*begun_ms));
    let mut lines = vec![format!(
        "  {begun}: {told}: {size} in {pieces} pieces{before}."
    )];
    if transfer.ingested > 0 {
        let bytes = ByteSize(transfer.ingested);
        lines.push(format!(
            "  {bytes} came from no peer: by a push, from another origin or the storage."
        ));
    }
    if !transfer.sources.is_empty() {
        lines.extend(indented(&sources(transfer).to_string()));
    }
    if transfer.others > 0 {
        lines.push(format!(
            "  {} came from further peers.",
            ByteSize(transfer.others)
        ));
    }
    lines.push(match end {
        None => format!("  It is under way: {} came.", ByteSize(transfer.came())),
        Some(end) => {
            let took = end.at_ms.saturating_sub(*begun_ms);
            match &end.failed {
                None => format!(
                    "  It was whole after {}, at {}.",
                    seconds(took),
                    rate(transfer.came(), took)
                ),
                Some(why) => format!("  It was given up after {}: {why}.", seconds(took)),
            }
        }
    });
    lines
}

fn sources(transfer: &Transfer) -> Table {
    let mut table = Table::new();
    table.set_header([
        "from", "peer", "address", "pieces", "bytes", "share", "first", "last", "rate", "",
    ]);
    let all = transfer.came().max(1);
    for source in &transfer.sources {
        let after = |ms: u64| format!("+{}", seconds(ms.saturating_sub(transfer.begun_ms)));
        let took = source.last_ms.saturating_sub(transfer.begun_ms);
        let addr = source
            .addr
            .map_or_else(|| "?".into(), |addr| addr.to_string());
        let has_sent = source.pieces > 0;
        let when = |ms| if has_sent { after(ms) } else { String::new() };
        table.add_row([
            role(source.role).to_string(),
            short(source.peer),
            addr,
            source.pieces.to_string(),
            ByteSize(source.bytes).to_string(),
            format!("{} %", source.bytes.saturating_mul(100) / all),
            when(source.first_ms),
            when(source.last_ms),
            if has_sent {
                rate(source.bytes, took)
            } else {
                String::new()
            },
            faults(source),
        ]);
    }
    table
}

fn faults(source: &Source) -> String {
    let mut faults = Vec::new();
    if source.rejected > 0 {
        faults.push(format!("{} pieces were wrong", source.rejected));
    }
    if source.stalled > 0 {
        faults.push(format!("was silent {} times", source.stalled));
    }
    faults.extend(source.banned.as_ref().map(|why| format!("banned: {why}")));
    faults.join(", ")
}

fn at_origin(origin: &OriginSays) -> Vec<String> {
    let OriginSays {
        name,
        remembers,
        silent,
    } = origin;
    let mut lines = Vec::new();
    if let Some(why) = silent {
        lines.push(format!("  {name} was not asked: {why}."));
    }
    let Some(remembers) = remembers else {
        return lines;
    };
    if remembers.fetches.is_empty() && remembers.kept.is_some() {
        lines.push(format!(
            "  {name} has it, and asked nobody for it as far as it remembers."
        ));
    }
    lines.extend(remembers.fetches.iter().flat_map(|it| fetched(name, it)));
    lines
}

/// Why an origin fetched a blob, and from where.
fn fetched(name: &str, fetch: &Fetch) -> Vec<String> {
    let why = match fetch.asked_by {
        Asker::Metainfo => "a tracker asked what it consists of, for a host that wants it",
        Asker::Reader => "another origin or a proxy wanted to read it",
        Asker::Prefetch => "a tracker whose hosts want it, or a preheat, asked for it",
    };
    let begun = time(fetch.begun_ms);
    let mut lines = vec![format!("  {begun}: {name} did not have it, and {why}:")];
    let after = |ms: u64| seconds(ms.saturating_sub(fetch.begun_ms));
    let steps = fetch.steps.iter();
    lines.extend(steps.map(|step| format!("    +{} {}", after(step.at_ms), step.what)));
    lines.extend(fetch.end.as_ref().map(|end| match &end.failed {
        None => format!("    +{} it was whole", after(end.at_ms)),
        Some(why) => format!("    +{} it did not come: {why}", after(end.at_ms)),
    }));
    lines
}

/// What clients were told, as a table.
pub fn told(answers: &[Answer]) -> Vec<String> {
    if answers.is_empty() {
        return vec!["  No client asked for it lately.".into()];
    }
    let mut table = Table::new();
    table.set_header([
        "when", "client", "asked", "told", "why", "bytes", "waited", "who",
    ]);
    for answer in answers {
        let client = answer
            .client
            .map_or_else(|| "?".into(), |it| it.to_string());
        table.add_row([
            time(answer.at_ms),
            client,
            asked(answer),
            answer.status.to_string(),
            why(answer),
            answer
                .bytes
                .map_or_else(String::new, |it| ByteSize(it).to_string()),
            seconds(answer.waited_ms),
            answer.user_agent.clone().unwrap_or_default(),
        ]);
    }
    let mut lines = vec!["  Clients were told:".to_string()];
    lines.extend(indented(&table.to_string()));
    lines
}

/// The method, the thing and the part of it that a client wanted.
fn asked(answer: &Answer) -> String {
    let name = match answer.reference.parse::<Digest>() {
        Ok(_) => {
            let end = answer.reference.len().min(DIGITS);
            format!("@{}…", &answer.reference[..end])
        }
        Err(_) => format!(":{}", answer.reference),
    };
    let range = answer.range.as_ref().map(|range| format!(" {range}"));
    let range = range.unwrap_or_default();
    format!("{} {}{name}{range}", answer.method, answer.repository)
}

/// As much of a digest as fits into a table: its algorithm and twelve digits.
const DIGITS: usize = "sha256:".len() + 12;

/// Why a client did not get what it wanted, as far as that is known.
fn why(answer: &Answer) -> String {
    let status = http::StatusCode::from_u16(answer.status).ok();
    let status = status.filter(|it| !it.is_success() && !it.is_redirection());
    let known = answer.why.clone();
    let known = known.or_else(|| Some(status?.canonical_reason()?.to_owned()));
    known.unwrap_or_default()
}

fn indented(text: &str) -> Vec<String> {
    text.lines().map(|line| format!("  {line}")).collect()
}

pub(crate) fn role(role: Option<PeerRole>) -> &'static str {
    match role {
        Some(PeerRole::Origin) => "origin",
        Some(PeerRole::Agent) => "agent",
        None => "?",
    }
}

/// As much of an id as tells peers apart in a log.
pub(crate) fn short(peer: PeerId) -> String {
    format!("{peer:?}")
}

fn time(ms: u64) -> String {
    let at = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "?".into(), |at| format!("{at:.3}"))
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

fn ago(ms: u64) -> String {
    match ms / 1000 {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3600),
    }
}

/// Bytes per second.
pub(crate) fn rate(bytes: u64, ms: u64) -> String {
    let per_second = u128::from(bytes) * 1000 / u128::from(ms.max(1));
    let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
    format!("{}/s", ByteSize(per_second))
}

#[cfg(test)]
mod tests {
    use kraken_core::origin::Step;
    use kraken_core::proto::history::End;

    use super::*;

    fn transfer() -> Transfer {
        let source = |number: u8, role| Source {
            peer: PeerId::from_bytes([number; 32]),
            addr: Some(([10, 0, 0, number], 7600).into()),
            role,
            pieces: 2,
            bytes: 2 << 20,
            rejected: 0,
            stalled: 0,
            banned: None,
            first_ms: 1_700_000_000_100,
            last_ms: 1_700_000_001_000,
        };
        let mut liar = source(3, None);
        (liar.pieces, liar.bytes, liar.rejected) = (0, 0, 1);
        liar.banned = Some("wrong-bytes".into());
        Transfer {
            digest: Digest::of(b"a"),
            namespace: "a".into(),
            length: 4 << 20,
            pieces: 4,
            had: 0,
            told_by: Teller::Discovery,
            begun_ms: 1_700_000_000_000,
            end: Some(End {
                at_ms: 1_700_000_002_000,
                failed: None,
            }),
            sources: vec![
                source(1, Some(PeerRole::Origin)),
                source(2, Some(PeerRole::Agent)),
                liar,
            ],
            others: 0,
            ingested: 0,
        }
    }

    #[test]
    fn what_failed_is_told_with_the_name_and_the_reason() {
        let answer = |reference: &str, status, why: Option<&str>| Answer {
            at_ms: 1_700_000_000_000,
            client: None,
            user_agent: None,
            method: "GET".into(),
            repository: "team/app".into(),
            kind: "manifests".into(),
            reference: reference.into(),
            range: None,
            status,
            digest: None,
            bytes: None,
            waited_ms: 5,
            why: why.map(str::to_owned),
        };
        let digest = Digest::of(b"a").to_string();
        let answers = vec![
            answer("v1", 404, Some("no such tag")),
            answer("v2", 503, None),
            answer(&digest, 200, None),
        ];
        let text = told(&answers).join("\n");
        for says in [
            "GET team/app:v1 ",
            "404",
            "no such tag",
            "Service Unavailable",
            "GET team/app@sha256:ca978112ca1b… ",
        ] {
            assert!(text.contains(says), "{says:?} is not in\n{text}");
        }
        let image = ImageExplained {
            digest: None,
            answers,
            blobs: Vec::new(),
        };
        assert!(is("team/app:v1", &image).contains("to no client"));
    }

    #[test]
    fn a_pull_is_told_in_words_and_a_table() {
        let fetch = Fetch {
            digest: Digest::of(b"a"),
            namespace: "a".into(),
            asked_by: Asker::Metainfo,
            begun_ms: 1_700_000_000_000,
            steps: vec![Step {
                at_ms: 1_700_000_000_005,
                what: "no origin has it: the storage is read".into(),
            }],
            end: None,
        };
        let explanation = Explanation {
            transfers: vec![transfer()],
            origins: vec![OriginSays {
                name: "origin-1".into(),
                remembers: Some(Box::new(Explanation {
                    fetches: vec![fetch],
                    ..Explanation::default()
                })),
                silent: None,
            }],
            ..Explanation::default()
        };
        let explained = Explained {
            digest: Digest::of(b"a"),
            part: Some("blob".into()),
            explanation,
        };
        let text = text(&explained, 1_700_000_010_000);
        for says in [
            "blob sha256:ca97",
            "not in the store",
            "2023-11-14T22:13:20.000Z",
            "10.0.0.1:7600",
            "50 %",
            "+0.100 s",
            "banned: wrong-bytes",
            "1 pieces were wrong",
            "whole after 2.000 s, at 2.0 MiB/s",
            "origin-1 did not have it",
            "+0.005 s no origin has it",
            "No client asked",
        ] {
            assert!(text.contains(says), "{says:?} is not in\n{text}");
        }
    }
}
