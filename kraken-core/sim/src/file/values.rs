//! The values in a plan file. A wrong one is refused where it is read, with what is right.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use kraken_proto::{MetaInfo, PieceLength};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count<const MIN: u64, const MAX: u64>(u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for Whole<MIN, MAX> {
            type Value = u64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
                let fits = u64::try_from(value).ok();
                fits.filter(|it| (MIN..=MAX).contains(it))
                    .ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
            }
        }
        Ok(Self(deserializer.deserialize_i64(Whole::<MIN, MAX>)?))
    }
}

impl<const MIN: u64, const MAX: u64> From<Count<MIN, MAX>> for u64 {
    fn from(count: Count<MIN, MAX>) -> Self {
        count.0
    }
}

impl<const MIN: u64, const MAX: u64> From<Count<MIN, MAX>> for u32 {
    fn from(count: Count<MIN, MAX>) -> Self {
        Self::try_from(count.0).unwrap_or(Self::MAX)
    }
}

impl<const MIN: u64, const MAX: u64> From<Count<MIN, MAX>> for usize {
    fn from(count: Count<MIN, MAX>) -> Self {
        Self::try_from(count.0).unwrap_or(Self::MAX)
    }
}

/// What a [`Measure`] is of, and its bounds.
pub(super) trait Unit {
    /// What a file should say.
    const WHAT: &str;
    /// What it may say.
    const BOUNDS: RangeInclusive<f64>;
}

/// A number with or without a fraction.
#[derive(Debug)]
pub(super) struct Measure<U>(pub(super) f64, PhantomData<U>);

impl<'de, U: Unit> Deserialize<'de> for Measure<U> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<U>(PhantomData<U>);
        impl<U: Unit> Visitor<'_> for Number<U> {
            type Value = f64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(U::WHAT)
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
                if U::BOUNDS.contains(&value) {
                    Ok(value)
                } else {
                    Err(E::invalid_value(Unexpected::Float(value), &self))
                }
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
                self.visit_f64(value as f64)
            }
        }
        let value = deserializer.deserialize_f64(Number::<U>(PhantomData))?;
        Ok(Self(value, PhantomData))
    }
}

macro_rules! units {
    ($($(#[$doc:meta])* $name:ident, $unit:ident: $bounds:expr, $what:literal;)*) => {$(
        $(#[$doc])*
        pub(super) type $name = Measure<$unit>;
        #[derive(Debug)]
        pub(super) enum $unit {}
        impl Unit for $unit {
            const WHAT: &str = $what;
            const BOUNDS: RangeInclusive<f64> = $bounds;
        }
        impl From<$name> for f64 {
            fn from(measure: $name) -> Self {
                measure.0
            }
        }
    )*};
}

units! {
    /// A part of a whole.
    Share, ShareUnit: 0.0..=1.0, "a share from 0 to 1";
    /// A part of the packets: beyond one half nothing would ever arrive whole.
    Loss, LossUnit: 0.0..=0.5, "a share from 0 to 0.5";
    /// A time, up to 11 days.
    Seconds, SecondsUnit: 0.0..=1e6, "seconds from 0 to 1000000";
    /// A short time.
    Millis, MillisUnit: 0.0..=1e7, "milliseconds from 0 to 10000000";
    /// How often.
    PerSecond, PerSecondUnit: 0.001..=1000.0, "a number per second from 0.001 to 1000";
    /// How many times as much.
    Factor, FactorUnit: 0.01..=1000.0, "a factor from 0.01 to 1000";
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs_f64(seconds.0)
    }
}

impl From<Millis> for Duration {
    fn from(millis: Millis) -> Self {
        Self::from_secs_f64(millis.0 / 1e3)
    }
}

/// From the first to the second of two times.
#[derive(Debug)]
pub(super) struct MillisRange(RangeInclusive<Duration>);

impl<'de> Deserialize<'de> for MillisRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [least, most] = <[Millis; 2]>::deserialize(deserializer)?;
        if least.0 > most.0 {
            let what = format!("put the smaller number first: [{}, {}]", most.0, least.0);
            return Err(D::Error::custom(what));
        }
        Ok(Self(least.into()..=most.into()))
    }
}

impl From<MillisRange> for RangeInclusive<Duration> {
    fn from(range: MillisRange) -> Self {
        range.0
    }
}

/// A number of bytes from 1 to the longest blob, with a unit or without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Bytes).map(Self)
    }
}

struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = MetaInfo::MAX_LENGTH >> 30;
        write!(
            f,
            "bytes such as 4096, \"300MB\" or \"1.5GiB\", at least 1 and at most {most}GiB"
        )
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        let bytes = u64::try_from(value).ok();
        bytes
            .filter(|it| (1..=MetaInfo::MAX_LENGTH).contains(it))
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let bytes = text.parse::<ByteSize>().ok().map(|size| size.as_u64());
        bytes
            .filter(|it| (1..=MetaInfo::MAX_LENGTH).contains(it))
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

/// The distance of a blob's piece boundaries.
#[derive(Debug)]
pub(super) struct Pieces(pub(super) PieceLength);

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let size = Size::deserialize(deserializer)?;
        PieceLength::new(size.0).map(Self).map_err(|_| {
            let (least, most) = (PieceLength::MIN.bytes(), PieceLength::MAX.bytes());
            let (least, most) = (least >> 10, most >> 20);
            D::Error::custom(format!(
                "a piece length is a power of two from {least}KiB to {most}MiB, such as \"1MiB\""
            ))
        })
    }
}
