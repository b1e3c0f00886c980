//! `kraken queue`: the durable tasks of an origin.

use comfy_table::Table;
use kraken_core::net::http::ApiError;
use kraken_daemon::queue::{TaskInfo, TaskList};

use crate::Failure;
use crate::operator::{Operator, failed};
use crate::store::{ago, span};

/// The tasks of an origin.
#[derive(Debug)]
pub struct Queue {
    origin: Operator,
}

/// The longest list of tasks that is read, in bytes.
const LIST: usize = 4 << 20;

impl Queue {
    /// The queue of the origin that `operator` asks.
    pub fn new(operator: Operator) -> Self {
        Self { origin: operator }
    }

    /// The tasks that wait, or the dead letters behind `after`.
    ///
    /// # Errors
    /// The origin does not answer.
    pub async fn list(&self, dead: bool, after: Option<u64>) -> Result<TaskList, Failure> {
        let state = if dead { "dead" } else { "waiting" };
        let after = after.map_or_else(String::new, |id| format!("&after={id}"));
        let path = format!("/x/queue?state={state}&max=1000{after}");
        let answer = self.origin.send("GET", &path).await.map_err(failed)?;
        answer.json(LIST).await.map_err(failed)
    }

    /// Tries one dead letter again, or all that there are.
    ///
    /// # Errors
    /// The origin does not answer, or has no such dead letter.
    pub async fn retry(&self, id: Option<u64>) -> Result<u64, Failure> {
        if let Some(id) = id {
            self.origin
                .send("POST", &format!("/x/queue/{id}/retry"))
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
                    .origin
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
        let dropped = self.origin.send("DELETE", &format!("/x/queue/{id}")).await;
        dropped.map(drop).map_err(|error| gone(error, id))
    }
}

fn gone(error: ApiError, id: u64) -> Failure {
    match error {
        ApiError::NotFound => Failure::Other(format!(
            "the origin has given up no task {id}: see kraken queue ls --dead"
        )),
        error => failed(error),
    }
}

/// The tasks as a table; `now_ms` is the time in milliseconds since 1970.
pub fn table(tasks: &[TaskInfo], now_ms: u64) -> Table {
    let mut table = Table::new();
    table.set_header(["id", "kind", "what", "tried", "since", "due"]);
    for task in tasks {
        table.add_row([
            task.id.to_string(),
            task.kind.clone(),
            task.key.clone(),
            task.attempts.to_string(),
            ago(task.born_ms, now_ms),
            due(task.due_ms, now_ms),
        ]);
    }
    table
}

/// When it is tried next, or was to be.
fn due(due_ms: u64, now_ms: u64) -> String {
    match due_ms.checked_sub(now_ms) {
        None | Some(0) => ago(due_ms, now_ms),
        Some(left) => format!("in {}", span(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_tasks_are_told_as_ages() {
        let now_ms = 1_800_000_000_000;
        let task = |due_ms| TaskInfo {
            id: 7,
            kind: "write-back".into(),
            key: "team/app".into(),
            attempts: 3,
            due_ms,
            born_ms: now_ms - 7_200_000,
        };
        let text = table(&[task(now_ms + 90_000), task(now_ms - 5000)], now_ms).to_string();
        for said in ["2 h ago", "in 1 min", "5 s ago"] {
            assert!(text.contains(said), "{said}:\n{text}");
        }
        assert!(!text.contains("1800000"), "{text}");
    }
}
