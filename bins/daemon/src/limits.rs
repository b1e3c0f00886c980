//! Limits in the configuration, and their change while the process runs.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use axum::routing::patch;
use axum::{Json, Router};
use kraken_core::net::http::{ApiError, SentBytes};
use kraken_core::proto::{Config, PieceLength};
use kraken_core::{Agent, Limits, Origin};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::units::{self, Written};

/// Limits on the bytes of pieces, per direction. Without a key, there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// To all peers together.
    #[serde(default)]
    pub upload: Option<PeerRate>,
    /// From all peers together.
    #[serde(default)]
    pub download: Option<PeerRate>,
}

/// Bytes per second: `300MB/s`, `1GiB/s`, the same without `/s`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written", title = "rate", extend("examples" = ["300MB/s"]))]
pub struct Rate(pub NonZeroU64);

impl Rate {
    /// Whoever sends or takes a body over HTTP gives it up when nothing comes of it for so long.
    const SILENCE: Duration = Duration::from_secs(60);
}

impl TryFrom<Written> for Rate {
    type Error = String;

    fn try_from(Written(text): Written) -> Result<Self, String> {
        rate(&text, Self::SILENCE).map(Self)
    }
}

/// A [`Rate`] of what peers exchange, who are less patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written", title = "rate", extend("examples" = ["300MB/s"]))]
pub struct PeerRate(pub NonZeroU64);

impl TryFrom<Written> for PeerRate {
    type Error = String;

    fn try_from(Written(text): Written) -> Result<Self, String> {
        rate(&text, Config::default().drop_after).map(Self)
    }
}

/// A rate at which a piece of a large blob passes within some time, after which it would be given up.
fn rate(text: &str, patience: Duration) -> Result<NonZeroU64, String> {
    let piece = PieceLength::for_blob(1 << 30).bytes();
    let least = piece.div_ceil(patience.as_secs());
    let rate = NonZeroU64::new(units::rate(text)?);
    let rate = rate.ok_or("a limit of 0 would stop everything: for no limit, leave the key out")?;
    if rate.get() >= least {
        return Ok(rate);
    }
    let (piece, patience) = (units::size_text(piece), units::time_text(patience));
    Err(format!(
        "a rate of {text} is too low, as a piece of {piece} that takes more than {patience} is given up: {least} bytes \
         per second at least; is the unit missing, as in 300MB/s?"
    ))
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", units::size_text(self.0.get()))
    }
}

impl From<LimitsConfig> for Limits {
    fn from(config: LimitsConfig) -> Self {
        Self::NONE
            .with_upload(config.upload.map(|rate| rate.0))
            .with_download(config.download.map(|rate| rate.0))
    }
}

impl From<Limits> for LimitsConfig {
    fn from(limits: Limits) -> Self {
        Self {
            upload: limits.upload.map(PeerRate),
            download: limits.download.map(PeerRate),
        }
    }
}

/// What has limits that can be changed.
pub(crate) trait Limited: Clone + Send + Sync + 'static {
    fn limits(&self) -> Limits;
    fn set_limits(&self, limits: Limits);
}

impl Limited for Agent {
    fn limits(&self) -> Limits {
        Self::limits(self)
    }
    fn set_limits(&self, limits: Limits) {
        Self::set_limits(self, limits);
    }
}

impl Limited for Origin {
    fn limits(&self) -> Limits {
        Self::limits(self)
    }
    fn set_limits(&self, limits: Limits) {
        Self::set_limits(self, limits);
    }
}

/// Adds `PATCH /x/config/scheduler`: changes the limits that its body names, and answers with all.
pub(crate) fn with_live_limits(router: Router, of: impl Limited) -> Router {
    let change =
        async move |SentBytes(body): SentBytes| -> Result<Json<Live<LimitsConfig>>, ApiError> {
            let Json(Live { limits }) = Json::<Live<Change>>::from_bytes(&body)
                .map_err(|error| ApiError::BadRequest(error.body_text()))?;
            let limits = limits.applied_to(of.limits().into());
            of.set_limits(limits.into());
            tracing::info!(%limits, "limits changed");
            Ok(Json(Live { limits }))
        };
    router.route("/x/config/scheduler", patch(change))
}

impl fmt::Display for LimitsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |rate: Option<PeerRate>| {
            rate.map_or_else(|| "unlimited".into(), |it| Rate(it.0).to_string())
        };
        write!(
            f,
            "upload {}, download {}",
            rate(self.upload),
            rate(self.download)
        )
    }
}

/// The part of the configuration that can be changed live.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Live<T> {
    limits: T,
}

/// The limits to change: absent is as before, `null` is none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    #[serde(default, deserialize_with = "named")]
    upload: Option<Option<PeerRate>>,
    #[serde(default, deserialize_with = "named")]
    download: Option<Option<PeerRate>>,
}

impl Change {
    fn applied_to(self, before: LimitsConfig) -> LimitsConfig {
        LimitsConfig {
            upload: self.upload.unwrap_or(before.upload),
            download: self.download.unwrap_or(before.download),
        }
    }
}

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<PeerRate>>, D::Error> {
    Option::deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::body::{Body, to_bytes};
    use axum::http::{Method, Request, StatusCode};
    use tower::ServiceExt as _;

    use super::*;

    fn limits(upload: u64, download: u64) -> Limits {
        let (upload, download) = (NonZeroU64::new(upload), NonZeroU64::new(download));
        Limits::NONE.with_upload(upload).with_download(download)
    }

    #[test]
    fn rates_are_sizes_per_second() {
        let parse = |text: &str| serde_saphyr::from_str::<LimitsConfig>(text);
        let config = parse("{upload: 300MB/s, download: 1GiB}").unwrap();
        assert_eq!(Limits::from(config), limits(300_000_000, 1 << 30));
        assert_eq!(
            Limits::from(parse("upload: 5000000").unwrap()),
            limits(5_000_000, 0)
        );
        assert_eq!(Limits::from(parse("{}").unwrap()), Limits::NONE);
        assert!(parse("upload: 52429").is_ok());
        // Others have more patience.
        let least: Rate = Written("17477".into()).try_into().unwrap();
        assert_eq!(least.0.get(), 17477);
        assert!(Rate::try_from(Written("17476".into())).is_err());
        for (wrong, says) in [
            ("upload: 0", "leave the key out"),
            ("upload: fast", "fast"),
            (
                "upload: 300",
                "52429 bytes per second at least; is the unit missing",
            ),
            ("download: 52428", "more than 20s is given up"),
            ("up: 1MB", "upload"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[derive(Clone, Default)]
    struct Handle(Arc<Mutex<Limits>>);

    impl Limited for Handle {
        fn limits(&self) -> Limits {
            *self.0.lock().unwrap()
        }
        fn set_limits(&self, limits: Limits) {
            *self.0.lock().unwrap() = limits;
        }
    }

    #[tokio::test]
    async fn limits_change_by_request_and_those_not_named_stay() {
        let handle = Handle::default();
        let router = with_live_limits(Router::new(), handle.clone());
        let call = async |body: &'static str| {
            let request = Request::builder()
                .method(Method::PATCH)
                .uri("/x/config/scheduler")
                .body(Body::from(body))
                .unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = answer.status();
            let body = to_bytes(answer.into_body(), 4096).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        let (status, body) = call(r#"{"limits": {"upload": "20MB"}}"#).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body, r#"{"limits":{"upload":20000000,"download":null}}"#);
        call(r#"{"limits": {"download": 100000}}"#).await;
        assert_eq!(handle.limits(), limits(20_000_000, 100_000));
        for (wrong, says) in [
            (r#"{"limits": {"up": "20MB"}}"#, "upload"),
            (r#"{"limits": {"upload": 0}}"#, "leave the key out"),
            (r#"{"limits": {"upload": 1000}}"#, "too low"),
            ("{}", "limits"),
            ("", "EOF"),
        ] {
            let (status, body) = call(wrong).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
            assert!(body.contains(says), "{body}");
        }
        let (status, body) = call(" ".repeat(3 << 20).leak()).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(
            body.starts_with(r#"{"error":{"code":"TOO_LARGE""#),
            "{body}"
        );
        assert_eq!(handle.limits(), limits(20_000_000, 100_000));
        call(r#"{"limits": {"upload": null}}"#).await;
        assert_eq!(handle.limits(), limits(0, 100_000));
    }
}
