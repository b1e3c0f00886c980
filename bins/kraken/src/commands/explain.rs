//! `kraken explain` and `kraken top`.

use std::io::{ErrorKind, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use kraken::explain::{self, Explained};
use kraken::operator::Operator;
use kraken::top::{self, Process};
use kraken::{Failure, doctor};
use kraken_core::Digest;

use crate::args::doctor::{AgentFace, ExplainArgs, TopArgs};
use crate::{named, say};

/// How often `top` looks.
const LOOK: Duration = Duration::from_secs(1);

fn agent(face: AgentFace) -> Result<Operator, Failure> {
    doctor::agent_at(&face.agent, &face.tls.config())
}

/// Tells what is remembered of a blob, or of an image with all its blobs.
pub(crate) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let process = agent(args.face)?;
    if let Some(digest) = blob(&args.what)? {
        let explained = Explained {
            digest,
            part: None,
            explanation: explain::of_blob(&process, digest).await?,
        };
        return say(&match args.json {
            true => serde_json::json!(explained).to_string(),
            false => explain::text(&explained, unix_ms()),
        });
    }
    let (repository, reference) = named(&args.what)?;
    let named = (repository.as_str(), &*reference.to_string());
    let image = explain::of_image(&process, named).await?;
    if args.json {
        return say(&serde_json::json!(image).to_string());
    }
    say(&explain::is(&args.what, &image))?;
    explain::told(&image.answers)
        .iter()
        .try_for_each(|line| say(line))?;
    for blob in &image.blobs {
        say("")?;
        say(&explain::text(blob, unix_ms()))?;
    }
    Ok(())
}

/// The digest that is meant by itself; nothing for an image, whose digest is looked at as well if it is named
/// by one.
fn blob(what: &str) -> Result<Option<Digest>, Failure> {
    let named = what.split_once('@');
    let text = named.map_or(what, |(_, digest)| digest);
    if named.is_none() && !["sha256:", "sha512:"].iter().any(|it| text.starts_with(it)) {
        return Ok(None);
    }
    let digest = text.parse::<Digest>();
    let wrong = |error| Failure::Argument(format!("{text:?} is no digest: {error}"));
    let digest = digest.map_err(wrong)?;
    Ok(named.is_none().then_some(digest))
}

/// Shows what processes are doing, again and again.
pub(crate) async fn top(args: TopArgs) -> Result<(), Failure> {
    let processes = match &args.dir {
        Some(dir) => top::processes_in(dir)?,
        None => {
            let name = args.face.agent.clone();
            let asked = agent(args.face)?;
            vec![Process { name, asked }]
        }
    };
    let mut before = top::look(&processes).await;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = top::look(&processes).await;
        let seen = top::compare(&before, &now);
        let mut text = match args.json {
            true => format!("{}\n", serde_json::json!(seen)),
            false => top::frame(&seen),
        };
        if !args.json && !args.once {
            // To the upper left corner, and all below it cleared.
            text.insert_str(0, "\x1b[H\x1b[J");
        }
        let mut out = std::io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Nobody reads along any more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(Failure::io("write to the standard output"))?,
        }
        if args.once {
            return match seen.iter().all(|it| it.silent.is_some()) {
                true => Err(Failure::Away("nobody answers".into())),
                false => Ok(()),
            };
        }
        before = now;
    }
}

fn unix_ms() -> u64 {
    let since = UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_a_digest_is_one_or_wrong() {
        let digest = Digest::of(b"a");
        assert_eq!(blob(&digest.to_string()).unwrap(), Some(digest));
        for image in ["team/app:v1".to_owned(), format!("team/app@{digest}")] {
            assert_eq!(blob(&image).unwrap(), None);
        }
        for wrong in [
            "sha256:00",
            "sha512:00",
            "team/app@sha256:00",
            "team/app@v1",
        ] {
            let error = blob(wrong).unwrap_err().to_string();
            assert!(error.contains("is no digest"), "{wrong}: {error}");
        }
    }
}
