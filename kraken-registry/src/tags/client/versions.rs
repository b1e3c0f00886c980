//! What a tag was, and changes of it that depend on that: for people, who roll back.

use http::Method;
use kraken_proto::Digest;
use kraken_proto::tags::record::{Refusal, Version};
use serde::{Deserialize, Serialize};

use super::super::TagError;
use super::{Answer, Question, TURNS, TagClient, tag_path, unreadable};
use crate::name::TagName;
use crate::web::encode;

/// One state of a tag, as a build-index tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagVersion {
    /// What it pointed to; nothing once it was removed.
    pub digest: Option<Digest>,
    /// The number of the state, as text: it is larger than those that all readers of JSON keep exactly.
    pub version: String,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
    /// The cluster in which that was.
    pub cluster: String,
}

impl TagVersion {
    /// The number of the state.
    pub fn number(&self) -> Option<u64> {
        self.version.parse().ok()
    }
}

/// What must be so when a tag is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnlyIf {
    /// Nothing in particular.
    Any,
    /// It does not exist.
    Absent,
    /// It exists and is at this version.
    Version(u64),
}

impl OnlyIf {
    fn check(self, points_to: Option<Digest>, version: u64) -> Result<(), Refusal> {
        match self {
            Self::Absent if points_to.is_some() => Err(Refusal::Exists),
            Self::Version(_) if points_to.is_none() => Err(Refusal::Unknown),
            Self::Version(wanted) if wanted != version => {
                Err(Refusal::Changed(Version::new(version)))
            }
            _ => Ok(()),
        }
    }
}

impl TagClient {
    /// What a tag is and was, the latest first; `None` for one that was never set.
    ///
    /// # Errors
    /// [`TagError::Unavailable`]: no build-index could be asked.
    pub async fn history(&self, name: &TagName) -> Result<Option<Vec<TagVersion>>, TagError> {
        let path = format!("{}/history", path_of(name));
        let body = self.ask(&Question::get(&path)).await?.answer.body()?;
        let parsed = body.map(|body| serde_json::from_str(&body));
        parsed.transpose().map_err(|error| unreadable(&error))
    }

    /// Lets a tag point to `digest`, or removes it for `None`, as long as `only_if` holds when that is
    /// done. Whether there was anything to do: a tag that is so already is left, whatever the
    /// condition.
    ///
    /// # Errors
    /// [`TagError::Conflict`]: the condition does not hold, or the tag is immutable;
    /// [`TagError::Refused`]: the image is incomplete. The tag is as it was then.
    /// [`TagError::Unavailable`]: nobody could be asked; it may be changed or not.
    pub async fn change_if(
        &self,
        name: &TagName,
        digest: Option<Digest>,
        only_if: OnlyIf,
    ) -> Result<bool, TagError> {
        let tag = path_of(name);
        let (method, path) = match digest {
            Some(digest) => {
                let digest = encode(&digest.to_string());
                (Method::PUT, format!("{tag}/digest/{digest}"))
            }
            None => (Method::DELETE, tag.clone()),
        };
        for _ in 0..TURNS {
            let (body, version) = self.look(&tag).await?;
            let now = body.map(|body| body.trim().parse());
            let now = now.transpose().map_err(|error| unreadable(&error))?;
            if now == digest {
                return Ok(false);
            }
            only_if.check(now, version)?;
            let question = Question {
                method: method.clone(),
                path: &path,
                // A request that comes late undoes nothing.
                at: Some(version),
            };
            match self.ask(&question).await?.answer {
                Answer::Changed if self.was_made(&tag, digest, version).await? => return Ok(true),
                Answer::Changed => {}
                answer => return answer.body().map(|body| body.is_some()),
            }
        }
        let reason = "others change the tag all the time";
        Err(TagError::Unavailable(reason.into()))
    }
}

fn path_of(name: &TagName) -> String {
    tag_path(name.repo(), name.tag())
}
