//! dockerd, by its API on a Unix socket: `POST /images/create`.

use std::path::Path;

use kraken_core::net::http::{HttpClient, segment};
use kraken_registry::name::Reference;
use serde::Deserialize;

use super::{PreloadError, SAID};

/// The longest line of progress that is read, in bytes.
const LINE: usize = 64 << 10;

/// What a line of progress may say.
#[derive(Debug, Deserialize)]
struct Said {
    /// That it failed: the status came before.
    error: Option<String>,
}

/// What a refusal says.
#[derive(Debug, Deserialize)]
struct Refusal {
    message: String,
}

/// Lets dockerd pull, and follows until it is done.
pub(super) async fn pull(
    socket: &Path,
    repository: &str,
    reference: &Reference,
) -> Result<(), PreloadError> {
    let what = || format!("dockerd at {}", socket.display());
    let away = |reason: String| PreloadError::Away {
        what: what(),
        reason,
    };
    let failed = |said: String| PreloadError::Failed { what: what(), said };
    let client = HttpClient::over_socket(socket).map_err(|error| away(error.to_string()))?;
    let (repository, reference) = (segment(repository), segment(&reference.to_string()));
    let url = format!("http://localhost/images/create?fromImage={repository}&tag={reference}");
    let asked = client.raw().post(url).send().await;
    let mut answer = asked.map_err(|error| away(chain(&error)))?;
    let is_begun = answer.status().is_success();
    let status = answer.status();
    let mut line = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| away(chain(&error)))? {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > LINE {
                return Err(failed("a line that is too long".into()));
            }
            if is_begun && line.ends_with(b"\n") {
                told(&line).map_err(failed)?;
                line.clear();
            }
        }
    }
    if is_begun {
        return told(&line).map_err(failed);
    }
    let message = serde_json::from_slice(&line).map(|refusal: Refusal| refusal.message);
    let said = message.unwrap_or_else(|_| String::from_utf8_lossy(&line).into_owned());
    Err(failed(format!("{status}: {}", shortened(&said))))
}

/// A line of progress; other lines than those of a failure are let be.
fn told(line: &[u8]) -> Result<(), String> {
    match serde_json::from_slice(line) {
        Ok(Said { error: Some(error) }) => Err(shortened(&error)),
        _ => Ok(()),
    }
}

fn shortened(text: &str) -> String {
    text.trim().chars().take(SAID).collect()
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
