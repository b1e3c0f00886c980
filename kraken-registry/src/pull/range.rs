//! The `Range` header: single ranges of bytes.

/// What a client asked for, before the length is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// `a-b`, the last byte included.
    Between(u64, u64),
    /// `a-`
    From(u64),
    /// `-n`
    Last(u64),
}

/// Bytes `start..end`, never empty, and whether the client asked for all that there is from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) is_rest: bool,
}

impl Asked {
    /// Reads `bytes=…`. None for what a server may ignore and answer with the whole: another unit,
    /// several ranges, no numbers.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        match (first, last) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => Some(Self::Between(number(first)?, number(last)?)),
        }
    }

    /// The bytes of a blob of `total` bytes; none when there are none.
    pub(super) fn within(self, total: u64) -> Option<Span> {
        let (start, end) = match self {
            Self::Between(first, last) => (first, last.saturating_add(1).min(total)),
            Self::From(first) => (first, total),
            Self::Last(n) => (total.saturating_sub(n), total),
        };
        let is_rest = matches!(self, Self::From(_));
        (start < end).then_some(Span {
            start,
            end,
            is_rest,
        })
    }
}

/// Digits only: the standard library's parser would take a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str, total: u64) -> Option<Option<(u64, u64)>> {
        let asked = Asked::parse(text)?;
        Some(asked.within(total).map(|span| (span.start, span.end)))
    }

    #[test]
    fn ranges_are_trimmed_to_the_blob() {
        let cases = [
            ("bytes=500-1499", 2000, Some((500, 1500))),
            ("bytes=500-", 2000, Some((500, 2000))),
            ("bytes=-500", 2000, Some((1500, 2000))),
            ("bytes=-5000", 2000, Some((0, 2000))),
            ("bytes=1000-5000", 2000, Some((1000, 2000))),
            ("bytes=0-0", 1, Some((0, 1))),
            ("Bytes= 1-1", 2, Some((1, 2))),
            ("bytes=500-0", 2000, None),
            ("bytes=2000-", 2000, None),
            ("bytes=5000-10000", 2000, None),
            ("bytes=-0", 2000, None),
            ("bytes=0-", 0, None),
            ("bytes=0-18446744073709551615", 10, Some((0, 10))),
        ];
        for (text, total, expected) in cases {
            assert_eq!(span(text, total), Some(expected), "{text} of {total}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_ignored() {
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "lines=1-2",
            "bytes=+1-2",
        ] {
            assert_eq!(span(text, 10), None, "{text}");
        }
        assert_eq!(span("bytes=99999999999999999999-", 10), None);
    }
}
