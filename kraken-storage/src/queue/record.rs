//! A task's record: when it was first due (64 bits), attempts (32), then kind and key with their
//! lengths in front (32), all big-endian, then the payload. Priority, due time and id are in the record's place.

use super::tables::Place;
use super::{Priority, QueueError, Task};

/// Kind and key as one name; the length in front keeps `("a", "bc")` and `("ab", "c")` apart.
pub(super) fn name_of(kind: &str, key: &str) -> Vec<u8> {
    let mut name = Vec::with_capacity(4 + kind.len() + key.len());
    write_text(&mut name, kind);
    name.extend_from_slice(key.as_bytes());
    name
}

pub(super) fn write_record(task: &Task) -> Vec<u8> {
    let len = 20 + task.kind.len() + task.key.len() + task.payload.len();
    let mut record = Vec::with_capacity(len);
    record.extend_from_slice(&task.born_ms.to_be_bytes());
    record.extend_from_slice(&task.attempts.to_be_bytes());
    write_text(&mut record, &task.kind);
    write_text(&mut record, &task.key);
    record.extend_from_slice(&task.payload);
    record
}

pub(super) fn read_record(place: Place, mut record: &[u8]) -> Result<Task, QueueError> {
    let (priority, due_ms, id) = place;
    let damaged = |what| QueueError::Damaged { id, what };
    let priority = Priority::ALL.get(usize::from(priority));
    let priority = *priority.ok_or_else(|| damaged("it has a priority that is not known"))?;
    let (born_ms, rest) = record
        .split_first_chunk()
        .ok_or_else(|| damaged("it ends in its time"))?;
    record = rest;
    let attempts = read_number(&mut record).ok_or_else(|| damaged("it ends in its attempts"))?;
    let kind = read_text(&mut record).ok_or_else(|| damaged("it has no kind"))?;
    let key = read_text(&mut record).ok_or_else(|| damaged("it has no key"))?;
    Ok(Task {
        id,
        priority,
        kind,
        key,
        payload: record.to_vec(),
        attempts,
        due_ms,
        born_ms: u64::from_be_bytes(*born_ms),
    })
}

fn write_text(to: &mut Vec<u8>, text: &str) {
    let len = u32::try_from(text.len()).expect("kinds and keys are short");
    to.extend_from_slice(&len.to_be_bytes());
    to.extend_from_slice(text.as_bytes());
}

fn read_number(from: &mut &[u8]) -> Option<u32> {
    let (number, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_be_bytes(*number))
}

fn read_text(from: &mut &[u8]) -> Option<String> {
    let len = usize::try_from(read_number(from)?).ok()?;
    let (text, rest) = from.split_at_checked(len)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}
