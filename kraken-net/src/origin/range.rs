//! Byte ranges in headers.

use std::ops::Range;

use http::{HeaderMap, header};

use crate::http::ApiError;

/// A `Range` header of one range (RFC 9110, section 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// From here to the end, or to a last byte.
    From(u64, Option<u64>),
    /// The last so many bytes.
    Last(u64),
}

impl Asked {
    /// The range that a request asks for. Other units, several ranges and malformed ones are
    /// ignored, as the RFC allows: the answer is then the whole blob.
    pub(super) fn of(head: &HeaderMap) -> Option<Self> {
        let text = head.get(header::RANGE)?.to_str().ok()?;
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", last) => Some(Self::Last(last.parse().ok()?)),
            (first, "") => Some(Self::From(first.parse().ok()?, None)),
            (first, last) => {
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The bytes of a blob of `length` that it means.
    pub(super) fn resolve(self, length: u64) -> Result<Range<u64>, ApiError> {
        let range = match self {
            Self::From(first, last) => {
                first..last.map_or(length, |last| last.saturating_add(1).min(length))
            }
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        if range.start < range.end {
            Ok(range)
        } else {
            Err(ApiError::RangeInvalid { len: length })
        }
    }
}

/// Where the body of an upload request belongs: `Upload-Offset: start`, or `Content-Range` as
/// `start-end` or `start,end`, whose end is the first byte that does not belong to it.
pub(super) fn declared(head: &HeaderMap) -> Result<Option<(u64, Option<u64>)>, ApiError> {
    let text = |name: &str| {
        head.get(name)
            .map(|value| value.to_str().unwrap_or_default().trim())
    };
    let wrong = |name: &str, value: &str| {
        ApiError::BadRequest(format!("{name}: {value:?} is not an offset in bytes"))
    };
    if let Some(value) = text("content-range") {
        let plain = value.strip_prefix("bytes ").unwrap_or(value);
        let parsed = plain
            .split_once(['-', ','])
            .and_then(|(start, end)| Some((start.trim().parse().ok()?, end.trim().parse().ok()?)))
            .filter(|(start, end)| start <= end);
        let (start, end) = parsed.ok_or_else(|| wrong("Content-Range", value))?;
        return Ok(Some((start, Some(end))));
    }
    let Some(value) = text(super::UPLOAD_OFFSET) else {
        return Ok(None);
    };
    let start = value.parse().map_err(|_| wrong("Upload-Offset", value))?;
    Ok(Some((start, None)))
}

/// Takes bytes for the headers of a request about a blob of `length`.
///
/// # Panics
/// They mean bytes that the blob does not have, or an end before the beginning.
#[cfg(feature = "fuzzing")]
pub fn fuzz(value: &[u8], length: u64) {
    let Ok(value) = http::HeaderValue::from_bytes(value) else {
        return;
    };
    let offset = http::HeaderName::from_static(super::UPLOAD_OFFSET);
    for name in [header::RANGE, header::CONTENT_RANGE, offset] {
        let head = [(name, value.clone())].into_iter().collect();
        if let Some(Ok(range)) = Asked::of(&head).map(|asked| asked.resolve(length)) {
            assert!(range.start < range.end && range.end <= length);
        }
        if let Ok(Some((start, Some(end)))) = declared(&head) {
            assert!(start <= end);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn head(name: &'static str, value: &str) -> HeaderMap {
        let name = HeaderName::from_static(name);
        [(name, HeaderValue::from_str(value).unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn ranges_of_a_blob_of_ten_bytes() {
        let cases = [
            ("bytes=0-0", Ok(0..1)),
            ("bytes=3-", Ok(3..10)),
            ("bytes=3-99", Ok(3..10)),
            ("bytes=-4", Ok(6..10)),
            ("bytes=-40", Ok(0..10)),
            ("bytes=10-", Err(ApiError::RangeInvalid { len: 10 })),
            ("bytes=-0", Err(ApiError::RangeInvalid { len: 10 })),
            ("bytes=0-18446744073709551615", Ok(0..10)),
        ];
        for (text, expected) in cases {
            let asked = Asked::of(&head("range", text)).unwrap();
            assert_eq!(asked.resolve(10), expected, "{text}");
        }
        for ignored in [
            "lines=1-2",
            "bytes=5-4",
            "bytes=1-2,4-5",
            "bytes=a-b",
            "bytes=-",
        ] {
            assert_eq!(Asked::of(&head("range", ignored)), None, "{ignored}");
        }
    }

    #[test]
    fn upload_offsets_have_three_forms() {
        let of = |name, value| declared(&head(name, value));
        assert_eq!(of("content-range", "5-9"), Ok(Some((5, Some(9)))));
        assert_eq!(of("content-range", "5,9"), Ok(Some((5, Some(9)))));
        assert_eq!(of("upload-offset", "7"), Ok(Some((7, None))));
        assert_eq!(of("host", "7"), Ok(None));
        for (name, value) in [
            ("content-range", "9-5"),
            ("content-range", "5"),
            ("upload-offset", "-1"),
        ] {
            assert!(matches!(of(name, value), Err(ApiError::BadRequest(_))));
        }
    }
}
