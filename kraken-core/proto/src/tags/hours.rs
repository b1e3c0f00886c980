//! At which hours of the week something may go to another cluster.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

const MINUTE_MS: u64 = 60_000;
const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// 1970-01-01 was a Thursday.
const FIRST_DAY: u64 = 3;

/// A window that opens on some days of the week, in UTC: `22:00-06:00` every day, `mon-fri 22:00-06:00`,
/// `sat,sun 00:00-24:00`. The days are those on which it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// From Monday.
    days: [bool; 7],
    /// When it opens, in minutes of the day.
    from: u32,
    /// How many minutes it is open, at most a day.
    minutes: u32,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no window such as 22:00-06:00, mon-fri 22:00-06:00 or sat,sun 00:00-24:00")]
pub struct WindowError(String);

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let wrong = || WindowError(text.chars().take(64).collect());
        let (days, times) = match text.trim().rsplit_once(' ') {
            Some((days, times)) => (days_of(days.trim()).ok_or_else(wrong)?, times),
            None => ([true; 7], text.trim()),
        };
        let (from, to) = times.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (
            minute(from).ok_or_else(wrong)?,
            minute(to).ok_or_else(wrong)?,
        );
        if from == DAY || from == to {
            return Err(wrong());
        }
        let minutes = (to + DAY - from) % DAY;
        Ok(Self {
            days,
            from,
            minutes: if minutes == 0 { DAY } else { minutes },
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let days = DAYS.iter().zip(self.days).filter(|(_, is)| *is);
            let days: Vec<_> = days.map(|(day, _)| *day).collect();
            write!(f, "{} ", days.join(","))?;
        }
        let to = match self.from + self.minutes {
            to if to > DAY => to - DAY,
            to => to,
        };
        let (from, to) = ((self.from / 60, self.from % 60), (to / 60, to % 60));
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.0, from.1, to.0, to.1)
    }
}

/// `mon`, `mon-fri` or `mon,wed,fri`.
fn days_of(text: &str) -> Option<[bool; 7]> {
    let day = |text: &str| DAYS.iter().position(|day| text.eq_ignore_ascii_case(day));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part
            .trim()
            .split_once('-')
            .unwrap_or_else(|| (part.trim(), part.trim()));
        let (mut at, last) = (day(first)?, day(last)?);
        loop {
            days[at] = true;
            if at == last {
                break;
            }
            at = (at + 1) % DAYS.len();
        }
    }
    Some(days)
}

/// `06:30`, up to `24:00`.
fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        let is_plain = text.len() == 2 && text.bytes().all(|it| it.is_ascii_digit());
        is_plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= DAY).then_some(minute)
}

impl Window {
    /// The minutes until it closes, at a minute of the week; nothing when it is closed.
    fn open_for(&self, minute: u32) -> Option<u32> {
        let opens = (0..7).zip(self.days).filter(|(_, is)| *is);
        let since = opens.map(|(day, _)| (minute + WEEK - (day * DAY + self.from)) % WEEK);
        let left =
            since.filter_map(|since| self.minutes.checked_sub(since).filter(|left| *left > 0));
        left.max()
    }
}

/// When something may go: always without a window, or while one of them is open.
///
/// ```
/// use kraken_proto::tags::hours::Hours;
///
/// let hours = Hours::new(vec!["22:00-06:00".parse()?]);
/// let noon = 12 * 3600 * 1000;
/// assert!(!hours.is_open(noon));
/// assert!(hours.is_open(2 * noon));
/// # Ok::<(), kraken_proto::tags::hours::WindowError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hours(Vec<Window>);

impl Hours {
    /// While one of these is open, or always.
    pub const fn new(windows: Vec<Window>) -> Self {
        Self(windows)
    }

    /// Whether there are no others.
    pub fn are_all(&self) -> bool {
        let is_open = |minute| self.0.iter().any(|it| it.open_for(minute).is_some());
        self.0.is_empty() || (0..WEEK).all(is_open)
    }

    /// Whether something may go, at so many milliseconds since 1970.
    pub fn is_open(&self, unix_ms: u64) -> bool {
        let minutes = unix_ms / MINUTE_MS + FIRST_DAY * u64::from(DAY);
        let minute = u32::try_from(minutes % u64::from(WEEK)).unwrap_or_default();
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|window| window.open_for(minute).is_some())
    }
}

/// How fast something may go, in bytes a second, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// While these are open.
    pub hours: Hours,
    /// How fast then; as fast as it can when absent.
    pub limit: Option<NonZeroU64>,
    /// How fast at all other hours; nothing goes then when absent.
    pub limit_outside: Option<NonZeroU64>,
}

/// What may go at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Nothing.
    Nothing,
    /// So many bytes a second; all when absent.
    Rate(Option<NonZeroU64>),
}

impl Plan {
    /// What may go, at so many milliseconds since 1970.
    pub fn at(&self, unix_ms: u64) -> Allowed {
        match (self.hours.is_open(unix_ms), self.limit_outside) {
            (true, _) => Allowed::Rate(self.limit),
            (false, None) => Allowed::Nothing,
            (false, slow) => Allowed::Rate(slow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds of a minute of the first week that begins on a Monday.
    fn at(day: u64, time: &str) -> u64 {
        let minutes = u64::from(minute(time).unwrap());
        ((4 + day) * 24 * 60 + minutes) * MINUTE_MS
    }

    fn hours(windows: &[&str]) -> Hours {
        Hours::new(windows.iter().map(|it| it.parse().unwrap()).collect())
    }

    #[test]
    fn windows_may_leave_no_other_hours() {
        for (windows, are_all) in [
            (&[][..], true),
            (&["00:00-24:00"], true),
            (&["06:00-22:00", "22:00-06:00"], true),
            (&["06:00-22:00", "22:00-05:59"], false),
            (&["mon-sat 00:00-24:00"], false),
        ] {
            assert_eq!(hours(windows).are_all(), are_all, "{windows:?}");
        }
    }

    #[test]
    fn a_window_is_open_over_midnight_and_over_the_end_of_the_week() {
        let every = hours(&["22:00-06:00"]);
        for day in 0..7 {
            assert!(every.is_open(at(day, "22:00")) && every.is_open(at(day, "05:59")));
            assert!(!every.is_open(at(day, "21:59")) && !every.is_open(at(day, "06:00")));
        }
        let some = hours(&["fri-sun 22:00-06:00", "wed 12:00-12:30"]);
        assert!(
            some.is_open(at(6, "23:00")) && some.is_open(at(0, "05:00")),
            "from Sunday on"
        );
        assert!(!some.is_open(at(0, "22:00")) && !some.is_open(at(4, "05:00")));
        assert!(some.is_open(at(2, "12:29")) && !some.is_open(at(2, "12:30")));
        let whole = hours(&["sat,sun 00:00-24:00"]);
        assert!(whole.is_open(at(5, "00:00")) && whole.is_open(at(6, "23:59")));
        assert!(!whole.is_open(at(0, "00:00")) && !whole.is_open(at(4, "23:59")));
        assert!(hours(&[]).is_open(0));
        // 1970-01-01, a Thursday.
        assert!(hours(&["thu 00:00-24:00"]).is_open(0));
    }

    #[test]
    fn every_minute_of_a_week_is_as_a_naive_clock_says() {
        let window: Window = "tue-thu 20:30-04:15".parse().unwrap();
        let hours = Hours::new(vec![window]);
        for minute in 0..WEEK {
            let (day, time) = (minute / DAY, minute % DAY);
            let evening = (1..=3).contains(&day) && time >= 20 * 60 + 30;
            let morning = (2..=4).contains(&day) && time < 4 * 60 + 15;
            let ms = u64::from(4 * DAY + minute) * MINUTE_MS + 59_999;
            assert_eq!(hours.is_open(ms), evening || morning, "{minute}");
        }
    }

    #[test]
    fn outside_of_its_hours_nothing_goes_or_less() {
        let (fast, slow) = (NonZeroU64::new(100), NonZeroU64::new(10));
        let mut plan = Plan {
            hours: hours(&["22:00-06:00"]),
            limit: fast,
            limit_outside: None,
        };
        assert_eq!(plan.at(at(0, "23:00")), Allowed::Rate(fast));
        assert_eq!(plan.at(at(0, "12:00")), Allowed::Nothing);
        plan.limit_outside = slow;
        assert_eq!(plan.at(at(0, "12:00")), Allowed::Rate(slow));
        assert_eq!(Plan::default().at(at(0, "12:00")), Allowed::Rate(None));
    }

    #[test]
    fn windows_are_read_and_written() {
        for (text, told) in [
            ("22:00-06:00", "22:00-06:00"),
            ("MON-fri 00:00-24:00", "mon,tue,wed,thu,fri 00:00-24:00"),
            ("sat-mon 09:00-09:01", "mon,sat,sun 09:00-09:01"),
            ("sat, sun 09:00-12:00", "sat,sun 09:00-12:00"),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.to_string(), told);
            assert_eq!(told.parse(), Ok(window));
        }
        for text in [
            "",
            "22-06",
            "22:00",
            "24:00-06:00",
            "22:60-06:00",
            "25:00-06:00",
            "06:00-06:00",
            "+2:00-06:00",
            "day 22:00-06:00",
            "mon- 22:00-06:00",
            "mon 22:00 - 06:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}
