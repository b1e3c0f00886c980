//! What there is instead of traces in a build that cannot send any.

use std::convert::Infallible;

use super::TracingConfig;
use crate::process::StartError;

impl TracingConfig {
    /// What would keep traces from being sent: this build cannot.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        Traces::start(self, ("", None)).map(drop)
    }
}

/// Traces that are being collected: none ever are.
#[derive(Debug)]
pub struct Traces(Infallible);

impl Traces {
    /// Says that this build cannot collect spans.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &TracingConfig, _: (&str, Option<String>)) -> Result<Self, StartError> {
        let what = "tracing: this program was built without the feature `otel`";
        Err(StartError::Config(what.into()))
    }

    /// Nothing waits to be sent.
    pub fn stop(self) -> std::future::Ready<()> {
        match self.0 {}
    }
}
