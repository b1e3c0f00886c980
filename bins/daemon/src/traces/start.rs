//! Puts together what sends spans.

use kraken_core::net::http::{HttpClient, OutsideTrust};
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanExporter as _};

use super::bridge::{self, OtelBridge};
use super::queue::Sending;
use super::{ENDPOINT, TracingConfig};
use crate::problems::Problems;
use crate::process::StartError;

impl TracingConfig {
    /// What would keep traces from being sent.
    ///
    /// # Errors
    /// With the keys inside this one.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        self.exporter().map(drop)
    }

    /// What sends spans to the collector.
    ///
    /// # Errors
    /// It is not said where to, or certificates cannot be used.
    fn exporter(&self) -> Result<SpanExporter, Problems> {
        let url = self.url(std::env::var(ENDPOINT).ok())?;
        let key = if self.ca.is_some() { "ca" } else { "endpoint" };
        let wrong = |what: String| Problems::one(key, what);
        let trust = OutsideTrust {
            ca: self.ca.clone(),
            ..OutsideTrust::default()
        };
        // A host without authorities of its own sends plainly all the same.
        let client = match url.starts_with("https:") {
            true => HttpClient::outside(&trust),
            false => HttpClient::new(None),
        };
        let client = client.map_err(|error| wrong(error.to_string()))?;
        let builder = SpanExporter::builder().with_http();
        let builder = builder.with_http_client(client.raw());
        let builder = builder
            .with_endpoint(url)
            .with_protocol(Protocol::HttpBinary);
        builder.build().map_err(|error| wrong(error.to_string()))
    }
}

/// Traces that are being collected, until [`Traces::stop`].
#[derive(Debug)]
pub struct Traces(Sending);

impl Traces {
    /// Lets spans be collected from now on, for a process of this name.
    ///
    /// # Errors
    /// It is not said where to, or certificates cannot be used; or they are collected already, which only
    /// one configuration of a process can ask for.
    pub fn start(
        config: &TracingConfig,
        (service, instance): (&str, Option<String>),
    ) -> Result<Self, StartError> {
        let exporter = config.exporter();
        let mut exporter = exporter.map_err(|wrong| wrong.under("tracing"))?;
        // OTEL_RESOURCE_ATTRIBUTES may say more.
        let resource = Resource::builder()
            .with_service_name(service.to_owned())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let resource = match instance {
            Some(name) => resource.with_attribute(KeyValue::new("service.instance.id", name)),
            None => resource,
        };
        let resource = resource.build();
        exporter.set_resource(&resource);
        let (queue, sending) = Sending::start(exporter);
        // Whether a trace begins has been decided where a request comes in.
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_span_processor(queue)
            .build();
        if !kraken_core::net::trace::set_bridge(OtelBridge::sampling(config.sample.0)) {
            let what = "tracing: traces of this process are collected already";
            return Err(StartError::Config(what.into()));
        }
        global::set_tracer_provider(provider);
        bridge::switch_on();
        Ok(Self(sending))
    }

    /// Sends what waits, if the collector takes it soon.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}
