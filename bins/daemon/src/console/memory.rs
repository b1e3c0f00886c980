//! Answers of the last second: many who look cost no more than one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

/// For how long an answer is given again.
const FRESH: Duration = Duration::from_millis(900);
/// The most answers.
const MOST: usize = 64;

/// Answers by what was asked.
#[derive(Debug, Default)]
pub(super) struct Memory {
    answers: Mutex<HashMap<String, (Instant, Bytes)>>,
}

impl Memory {
    /// The answer to `question` if it was given a moment ago.
    pub(super) fn recall(&self, question: &str) -> Option<Bytes> {
        let answers = self.lock();
        let (at, answer) = answers.get(question)?;
        (at.elapsed() < FRESH).then(|| answer.clone())
    }

    /// Keeps an answer; beyond the bound none of those before.
    pub(super) fn keep(&self, question: String, answer: Bytes) {
        let mut answers = self.lock();
        answers.retain(|_, (at, _)| at.elapsed() < FRESH);
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(question, (Instant::now(), answer));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, Bytes)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_within_a_bound() {
        let memory = Memory::default();
        assert_eq!(memory.recall("a"), None);
        memory.keep("a".into(), Bytes::from_static(b"1"));
        assert_eq!(memory.recall("a"), Some(Bytes::from_static(b"1")));
        for n in 0..3 * MOST {
            memory.keep(n.to_string(), Bytes::new());
            assert!(memory.lock().len() <= MOST);
        }
    }
}
