//! How OpenDAL's services send their requests: over one client each, and not before a server wants
//! to be asked again.

use std::time::Duration;

use ::opendal::{
    Buffer, Error, ErrorKind, HttpBody, HttpTransport, HttpTransporter, Operator, Result,
};
use http::{Request, Response};
use opendal_http_transport_reqwest::ReqwestTransport;

use crate::backend::BackendError;
use crate::backend::pause::Pause;
use crate::backend::web::client;

#[derive(Debug)]
pub(super) struct Transport {
    inner: ReqwestTransport,
    pause: Pause,
}

impl Transport {
    /// Waits at most half of `timeout` for a server that wants no request yet, so that a request has
    /// the other half.
    pub(super) fn new(timeout: Duration) -> std::result::Result<Self, BackendError> {
        Ok(Self {
            inner: ReqwestTransport::new(client(None)?),
            pause: Pause::new(timeout / 2),
        })
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> Result<Response<HttpBody>> {
        let host = request.uri().authority().map(ToString::to_string);
        let host = host.unwrap_or_default();
        self.pause.over(&host).await.map_err(|wait| {
            let wait = format!("the server wants no request for {} s", wait.as_secs());
            Error::new(ErrorKind::RateLimited, wait)
        })?;
        let response = self.inner.fetch(request).await?;
        self.pause
            .heed(&host, response.status(), response.headers());
        Ok(response)
    }
}

pub(super) fn with_transport(operator: Operator, transport: Transport) -> Operator {
    let context = operator.context();
    let context = context.with_http_transport(HttpTransporter::new(transport));
    operator.with_context(context)
}
