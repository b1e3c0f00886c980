//! Sizes, rates and times as people write them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{Span, SpanRelativeTo};
use kraken_core::net::http::BaseUrl;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};

/// A size in bytes: `4MiB`, `300MB`, or a plain number.
///
/// # Errors
/// What is expected instead.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("a size such as 4MiB, 300MB or a number of bytes is expected, not {text}");
    if text.trim_end().ends_with("/s") {
        return Err(format!(
            "a size is expected, not a rate: {text} without the /s"
        ));
    }
    bytes(text).ok_or_else(wrong)
}

/// Bytes per second: `300MB/s`, the same without `/s`, or a plain number.
///
/// # Errors
/// What is expected instead.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let amount = trimmed.strip_suffix("/s").unwrap_or(trimmed);
    let wrong =
        || format!("bytes per second such as 300MB/s, 1GiB/s or a number are expected, not {text}");
    bytes(amount).ok_or_else(wrong)
}

fn bytes(text: &str) -> Option<u64> {
    let size = text.trim().parse::<ByteSize>().ok()?;
    Some(size.as_u64())
}

/// A time: `30s`, `6h`, `1d 12h`; a day has 24 hours.
///
/// # Errors
/// What is expected instead.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("a time such as 30s, 5m, 6h or 7d is expected, not {text}");
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!(
            "a time needs its unit: {text}s, {text}m, {text}h or {text}d"
        ));
    }
    let span: Span = text.parse().map_err(|_| wrong())?;
    let time = span.to_duration(SpanRelativeTo::days_are_24_hours());
    let time = time.ok().and_then(|time| Duration::try_from(time).ok());
    time.ok_or_else(wrong)
}

/// Whether a text is the URL of a service, such as `example`.
///
/// # Errors
/// What is expected instead.
pub(crate) fn url(text: &str, example: &str) -> Result<(), String> {
    let url = text.parse::<BaseUrl>().map(drop);
    url.map_err(|error| format!("{text:?} is no URL such as {example}: {}", error.why()))
}

/// Bytes in the largest unit that has them whole.
pub(crate) fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 8] = [
        (1_000_000_000_000, "TB"),
        (1 << 40, "TiB"),
        (1_000_000_000, "GB"),
        (1 << 30, "GiB"),
        (1_000_000, "MB"),
        (1 << 20, "MiB"),
        (1_000, "kB"),
        (1 << 10, "KiB"),
    ];
    let fits = |(unit, _): &&(u64, &str)| bytes > 0 && bytes.is_multiple_of(*unit);
    match UNITS.iter().find(fits) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// A time in the largest unit that has it whole.
pub(crate) fn time_text(time: Duration) -> String {
    let seconds = time.as_secs();
    if time.subsec_nanos() != 0 {
        return format!("{}ms", time.as_millis());
    }
    for (unit, name) in [(24 * 3600, "d"), (3600, "h"), (60, "m")] {
        if seconds > 0 && seconds.is_multiple_of(unit) {
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

/// Lets a type be written as text.
macro_rules! serialize_as_text {
    ($type:ty, $text:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let text: fn(&$type) -> String = $text;
                to.serialize_str(&text(self))
            }
        }
    };
}

pub(crate) use serialize_as_text;

/// A scalar as it was written, whether YAML takes it for a number, for a switch, or for text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written(pub(crate) String);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Writing)
    }
}

impl JsonSchema for Written {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Written".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer"]})
    }
}

struct Writing;

impl Visitor<'_> for Writing {
    type Value = Written;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Written, E> {
        Ok(Written(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Written, E> {
        Ok(Written(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Written, E> {
        Ok(Written(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Written, E> {
        Ok(Written(number.to_string()))
    }

    /// What YAML makes of `on` and `off`.
    fn visit_bool<E>(self, is_on: bool) -> Result<Written, E> {
        Ok(Written(if is_on { "on" } else { "off" }.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, bytes) in [
            ("4MiB", 4 << 20),
            ("300MB", 300_000_000),
            ("1.5 GB", 1_500_000_000),
            ("4096", 4096),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(rate(text), Ok(bytes), "{text}");
            assert_eq!(rate(&format!("{text}/s")), Ok(bytes), "{text}");
        }
        for (text, seconds) in [
            ("30s", 30),
            ("6h", 21_600),
            ("1d 12h", 129_600),
            ("2w", 1_209_600),
        ] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn errors_say_which_unit_is_expected() {
        for (wrong, says) in [
            (size("300MB/s"), "not a rate"),
            (size("-5"), "such as 4MiB"),
            (size("many"), "such as 4MiB"),
            (rate("300MB/min"), "300MB/s"),
            (rate("fast"), "bytes per second"),
        ] {
            let error = wrong.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        for (wrong, says) in [
            ("30", "30s, 30m, 30h or 30d"),
            ("soon", "such as 30s"),
            ("-5h", "such as 30s"),
            ("", "such as 30s"),
            ("4MiB", "such as 30s"),
        ] {
            let error = time(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(url("http://a:1", "http://b"), Ok(()));
        let error = url("a:1", "http://b").unwrap_err();
        assert_eq!(
            error,
            "\"a:1\" is no URL such as http://b: it begins with http:// or https://"
        );
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for bytes in [
            0,
            1,
            1000,
            1024,
            20_000_000,
            4 << 20,
            3 << 30,
            1_500_000_000,
            u64::MAX,
        ] {
            assert_eq!(size(&size_text(bytes)), Ok(bytes), "{}", size_text(bytes));
        }
        for seconds in [0, 1, 30, 60, 90, 3600, 86_400, 86_401] {
            let time_of = Duration::from_secs(seconds);
            assert_eq!(time(&time_text(time_of)), Ok(time_of));
        }
        assert_eq!(size_text(20_000_000), "20MB");
        assert_eq!(time_text(Duration::from_secs(86_400)), "1d");
    }
}
