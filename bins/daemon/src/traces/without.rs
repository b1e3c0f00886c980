//! What there is instead of traces in a build that cannot send any.

use std::convert::Infallible;

use super::TracingConfig;
use crate::problems::Problems;
use crate::process::StartError;

impl TracingConfig {
    /// What would keep traces from being sent: this build cannot.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        Err(Problems::one("", WITHOUT))
    }
}

const WITHOUT: &str = "this program was built without the feature `otel`: leave this out";

/// Traces that are being collected: none ever are.
#[derive(Debug)]
pub struct Traces(Infallible);

impl Traces {
    /// Says that this build cannot collect spans.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &TracingConfig, _: (&str, Option<String>)) -> Result<Self, StartError> {
        Err(Problems::one("tracing", WITHOUT).into())
    }

    /// Nothing waits to be sent.
    pub fn stop(self) -> std::future::Ready<()> {
        match self.0 {}
    }
}
