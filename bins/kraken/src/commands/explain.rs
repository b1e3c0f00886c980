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
    if let Ok(digest) = args.what.parse::<Digest>() {
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
    let image = explain::of_image(&process, (&repository, &reference)).await?;
    if args.json {
        return say(&serde_json::json!(image).to_string());
    }
    say(&format!("{} is {}", args.what, image.digest))?;
    explain::told(&image.answers)
        .iter()
        .try_for_each(|line| say(line))?;
    for blob in &image.blobs {
        say("")?;
        say(&explain::text(blob, unix_ms()))?;
    }
    Ok(())
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
            return Ok(());
        }
        before = now;
    }
}

fn unix_ms() -> u64 {
    let since = UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
