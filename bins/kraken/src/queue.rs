//! `kraken queue`: the durable tasks of an origin.

use comfy_table::Table;
use http::Request;
use kraken_core::net::Identity;
use kraken_core::net::http::{ApiError, BaseUrl, HttpBody, HttpClient, HttpResponse};
use kraken_daemon::Tls;
use kraken_daemon::queue::{TaskInfo, TaskList};

use crate::Failure;

/// An origin, asked by somebody with a certificate of the cluster.
#[derive(Debug)]
pub struct Queue {
    origin: BaseUrl,
    http: HttpClient,
}

/// The longest list of tasks that is read, in bytes.
const LIST: usize = 4 << 20;

impl Queue {
    /// # Errors
    /// The URL or the certificate makes no sense.
    pub fn new(origin: &str, tls: &Tls) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Argument(error.to_string());
        let identity = Identity::from_files(&tls.cert, &tls.key, &tls.ca);
        let identity = identity.map_err(|error| wrong(&error))?;
        Ok(Self {
            origin: origin.parse().map_err(|error| wrong(&error))?,
            http: HttpClient::new(Some(&identity)).map_err(|error| wrong(&error))?,
        })
    }

    /// The tasks that wait, or the dead letters behind `after`.
    ///
    /// # Errors
    /// The origin does not answer.
    pub async fn list(&self, dead: bool, after: Option<u64>) -> Result<TaskList, Failure> {
        let state = if dead { "dead" } else { "waiting" };
        let after = after.map_or_else(String::new, |id| format!("&after={id}"));
        let path = format!("/x/queue?state={state}&max=1000{after}");
        let answer = self.send("GET", &path).await.map_err(failed)?;
        answer.json(LIST).await.map_err(failed)
    }

    /// Tries one dead letter again, or all that there are.
    ///
    /// # Errors
    /// The origin does not answer, or has no such dead letter.
    pub async fn retry(&self, id: Option<u64>) -> Result<u64, Failure> {
        if let Some(id) = id {
            self.send("POST", &format!("/x/queue/{id}/retry"))
                .await
                .map_err(|error| gone(error, id))?;
            return Ok(1);
        }
        let (mut count, mut after) = (0, None);
        loop {
            let dead = self.list(true, after).await?.tasks;
            let Some(last) = dead.last() else {
                return Ok(count);
            };
            after = Some(last.id);
            for task in dead {
                match self
                    .send("POST", &format!("/x/queue/{}/retry", task.id))
                    .await
                {
                    Ok(_) => count += 1,
                    // Another was pushed for it meanwhile.
                    Err(ApiError::NotFound) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
    }

    /// Gives a dead letter up.
    ///
    /// # Errors
    /// The origin does not answer, or has no such dead letter.
    pub async fn drop(&self, id: u64) -> Result<(), Failure> {
        let dropped = self.send("DELETE", &format!("/x/queue/{id}")).await;
        dropped.map(drop).map_err(|error| gone(error, id))
    }

    async fn send(&self, method: &str, path: &str) -> Result<HttpResponse, ApiError> {
        let url = format!("{}{path}", self.origin);
        let request = Request::builder().method(method).uri(url);
        let request = request
            .body(HttpBody::Empty)
            .map_err(|error| ApiError::BadRequest(error.to_string()))?;
        self.http.send(request).await?.successful().await
    }
}

fn gone(error: ApiError, id: u64) -> Failure {
    match error {
        ApiError::NotFound => Failure::Argument(format!(
            "the origin has given up no task {id}: see kraken queue ls --dead"
        )),
        error => failed(error),
    }
}

fn failed(error: ApiError) -> Failure {
    Failure::Argument(format!("the origin: {error}"))
}

/// The tasks as a table.
pub fn table(tasks: &[TaskInfo]) -> Table {
    let mut table = Table::new();
    table.set_header(["id", "kind", "what", "tried", "due (ms since 1970)"]);
    for task in tasks {
        table.add_row([
            task.id.to_string(),
            task.kind.clone(),
            task.key.clone(),
            task.attempts.to_string(),
            task.due_ms.to_string(),
        ]);
    }
    table
}
