//! Plans as files that people write: TOML, every key optional, every value checked.
//!
//! [`schema`] is what a file may say, [`values`] the numbers in it with their bounds, [`build`]
//! makes a plan of them, [`policy`] knows the knobs of the machines, [`error`] says what is wrong
//! and where.

mod build;
mod error;
mod policy;
mod schema;
mod values;

#[cfg(test)]
mod tests;

pub use error::PlanError;

use crate::plan::Plan;
use schema::PlanFile;

impl Plan {
    /// Reads a plan out of the text of a plan file. What the text leaves out is as in
    /// [`Plan::default`]; `docs/simulator.md` has every key.
    ///
    /// ```
    /// use kraken_sim::Plan;
    ///
    /// let plan = Plan::from_toml("
    ///     hosts = 100
    ///     [[blobs]]
    ///     size = '64MiB'
    ///     [caps]
    ///     up = '100MB'
    /// ")?;
    /// assert_eq!((plan.agents, plan.network.up), (100, 100_000_000));
    /// # Ok::<(), kraken_sim::PlanError>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError`] with the line, when the text is no TOML, has a key that does not exist or a
    /// value out of bounds.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        let file: PlanFile =
            toml::from_str(text).map_err(|error| PlanError::parse(text, &error))?;
        build::plan(file).map_err(|fault| PlanError::new(text, fault))
    }
}
