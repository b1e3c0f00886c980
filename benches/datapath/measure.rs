//! A number, the one it is held against, and how both are had.

use serde::Serialize;

/// One line of the report. Lower is better in all of them.
#[derive(Debug, Serialize)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Option<f64>,
    /// `None` where the peer's program is missing.
    pub(crate) peer: Option<f64>,
    pub(crate) ratio: Option<f64>,
    /// The most that the ratio may be.
    pub(crate) target: f64,
    /// `None` where nothing can be said.
    pub(crate) ok: Option<bool>,
}

impl Measure {
    pub(crate) fn of(
        name: impl Into<String>,
        unit: &'static str,
        (ours, peer): (Option<f64>, Option<f64>),
        target: f64,
    ) -> Self {
        let ratio = ours.zip(peer).map(|(ours, peer)| ours / peer);
        Self {
            name: name.into(),
            unit,
            ours,
            peer,
            ratio,
            target,
            ok: ratio.map(|ratio| ratio <= target),
        }
    }
}

/// The middle one, or the mean of both.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}
