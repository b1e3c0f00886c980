use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::record::write_record;
use super::*;

fn queue() -> (DurableQueue, PathBuf, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue");
    (DurableQueue::open(&path).unwrap(), path, dir)
}

fn ids(tasks: &[Task]) -> Vec<u64> {
    tasks.iter().map(|task| task.id).collect()
}

#[test]
fn a_task_goes_its_way() {
    let (queue, _, _dir) = queue();
    assert_eq!(queue.next_due(), Ok(None));
    let late = queue.push("write-back", "b", b"2", 20).unwrap();
    let soon = queue.push("write-back", "a", b"1", 10).unwrap();
    assert_eq!(queue.next_due(), Ok(Some(10)));
    assert_eq!(queue.take_due(9, 5), Ok(vec![]));

    let taken = queue.take_due(20, 1).unwrap();
    let expected = Task {
        id: soon,
        priority: Priority::Normal,
        kind: "write-back".into(),
        key: "a".into(),
        payload: b"1".into(),
        attempts: 0,
        due_ms: 10,
        born_ms: 10,
    };
    assert_eq!(taken, [expected]);
    assert_eq!(queue.next_due(), Ok(Some(20)));
    assert_eq!(ids(&queue.take_due(20, 5).unwrap()), [late]);
    assert_eq!(queue.take_due(20, 5), Ok(vec![]));
    assert_eq!((queue.next_due(), queue.len()), (Ok(None), Ok(2)));

    queue.retry(soon, 50).unwrap();
    queue.done(late).unwrap();
    assert_eq!(queue.contains("write-back", "a"), Ok(true));
    assert_eq!(queue.contains("write-back", "b"), Ok(false));
    let again = queue.take_due(50, 5).unwrap();
    assert_eq!((again[0].attempts, again[0].due_ms), (1, 50));
    queue.done(soon).unwrap();
    assert_eq!(queue.is_empty(), Ok(true));
}

#[test]
fn what_is_in_a_hurry_is_due_earlier_unless_it_was_tried() {
    let (queue, _, _dir) = queue();
    let first = queue.push("write-back", "a 1", b"", 100).unwrap();
    queue.push("write-back", "b 1", b"", 100).unwrap();
    queue.push("copy", "a 1", b"", 100).unwrap();
    queue.hurry("write-back", "a ", 50).unwrap();
    let due = queue.take_due(99, 9).unwrap();
    assert_eq!(
        (ids(&due), due[0].due_ms, due[0].attempts),
        (vec![first], 50, 0)
    );
    queue.hurry("write-back", "a ", 40).unwrap();
    queue.retry(first, 200).unwrap();
    queue.hurry("write-back", "a ", 60).unwrap();
    assert_eq!(
        queue.take_due(99, 9),
        Ok(vec![]),
        "it waits after a failure"
    );
    assert_eq!(queue.take_due(200, 9).unwrap().len(), 3);
}

#[test]
fn what_is_given_back_is_as_it_was() {
    let (queue, _, _dir) = queue();
    let id = queue.push("write-back", "a", b"", 10).unwrap();
    let taken = queue.take_due(10, 1).unwrap();
    assert_eq!(queue.take_due(10, 1), Ok(vec![]));
    queue.give_back(id);
    assert_eq!(queue.take_due(10, 1), Ok(taken), "no attempt was counted");
}

#[test]
fn what_matters_goes_first_and_nothing_waits_for_ever() {
    let (queue, _, _dir) = queue();
    let push = |priority, key: &str, due| queue.push_ranked(priority, "k", key, b"", due);
    let low = push(Priority::Low, "low", 1).unwrap();
    let normal = queue.push("k", "normal", b"", 2).unwrap();
    let high: Vec<_> = (3..9)
        .map(|due| push(Priority::High, &due.to_string(), due).unwrap())
        .collect();
    assert_eq!(queue.next_due(), Ok(Some(1)));
    let first = ids(&queue.take_due(9, 3).unwrap());
    assert_eq!(
        first,
        high[..3],
        "the longest due of those that matter most"
    );
    // The turn of age goes on over calls.
    let next = ids(&queue.take_due(9, 4).unwrap());
    assert_eq!(next, [low, high[3], high[4], high[5]]);
    assert_eq!(ids(&queue.take_due(9, 4).unwrap()), [normal]);
    queue.retry(low, 5).unwrap();
    let page = queue.page(None, 9).unwrap();
    assert_eq!(page.last().map(|task| task.priority), Some(Priority::Low));
}

#[test]
fn the_oldest_task_is_known_whatever_was_tried_or_revived() {
    let (queue, _, _dir) = queue();
    assert_eq!(queue.first_born(), Ok(None));
    let letter = queue.push("a", "letter", b"", 5).unwrap();
    let old = queue.push("a", "old", b"", 20).unwrap();
    queue.push("a", "new", b"", 30).unwrap();
    queue
        .push_ranked(Priority::High, "a", "newer", b"", 40)
        .unwrap();
    assert_eq!(queue.first_born(), Ok(Some(5)));
    queue.bury(letter).unwrap();
    assert_eq!(queue.first_born(), Ok(Some(20)));
    queue.revive(letter, 50).unwrap();
    assert_eq!(queue.first_born(), Ok(Some(20)), "one that is born anew");
    assert_eq!(queue.take_due(25, 1).unwrap().len(), 1);
    assert_eq!(queue.first_born(), Ok(Some(20)), "it is under way");
    queue.retry(old, 900).unwrap();
    assert_eq!(queue.first_born(), Ok(Some(20)), "it was in vain");
    queue.done(old).unwrap();
    assert_eq!(queue.first_born(), Ok(Some(30)));
}

#[test]
fn what_is_known_of_a_beginning_is_known_of_all_its_tasks() {
    let (queue, _, _dir) = queue();
    let id = queue.push("copy", "blob-1 there", b"", 1).unwrap();
    let asks = |kind, prefix| queue.contains_prefix(kind, prefix).unwrap();
    assert!(asks("copy", "blob-1 "));
    assert!(!asks("copy", "blob-2 ") && !asks("cop", "yblob-1 ") && !asks("copy", "blob-1 x"));
    queue.take_due(1, 1).unwrap();
    assert!(asks("copy", "blob-1 "), "while it is under way");
    queue.bury(id).unwrap();
    assert!(asks("copy", "blob-1 "), "as a dead letter");
    queue.push("copy", "blob-1 elsewhere", b"", 1).unwrap();
    queue.push("copy", "blob-10 elsewhere", b"", 1).unwrap();
    let mut keys = queue.keys("copy", "blob-1 ").unwrap();
    keys.sort_unstable();
    assert_eq!(keys, ["blob-1 elsewhere", "blob-1 there"]);
    queue.drop_dead(id).unwrap();
    assert_eq!(queue.keys("copy", "blob-1 t").unwrap(), [""; 0]);
}

#[test]
fn what_is_forgotten_waits_no_more_and_what_is_taken_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let queue = DurableQueue::open(dir.path().join("queue")).unwrap();
    for key in ["blob-1 a", "blob-1 b", "blob-2 a"] {
        queue.push("copy", key, b"", 0).unwrap();
    }
    queue.push("other", "blob-1 a", b"", 0).unwrap();
    let taken = queue.take_due(0, 1).unwrap();
    assert_eq!(taken[0].key, "blob-1 a");
    assert_eq!(queue.forget("copy", "blob-1 ").unwrap(), 1);
    assert_eq!(queue.keys("copy", "blob-1 ").unwrap(), ["blob-1 a"]);
    assert_eq!(queue.len().unwrap(), 3);
    assert_eq!(queue.forget("copy", "blob-3 ").unwrap(), 0);
}

#[test]
fn what_waits_is_not_doubled_and_what_is_taken_does_not_count() {
    let (queue, path, _dir) = queue();
    let first = queue.push("k", "a", b"1", 10).unwrap();
    assert_eq!(queue.push("k", "a", b"2", 5), Ok(first));
    assert_ne!(queue.push("ka", "", b"", 99), Ok(first));
    assert_eq!(queue.take_due(10, 9).unwrap()[0].payload, b"1");

    let second = queue.push("k", "a", b"3", 5).unwrap();
    assert_ne!(second, first);
    // The work on the first failed; the second makes up for it.
    queue.retry(first, 7).unwrap();
    assert_eq!(ids(&queue.take_due(10, 9).unwrap()), [second]);

    // A crash while both are there: only the newer comes back.
    let third = queue.push("k", "a", b"4", 8).unwrap();
    drop(queue);
    let queue = DurableQueue::open(&path).unwrap();
    assert_eq!(ids(&queue.take_due(10, 9).unwrap()), [third]);
    assert_eq!(queue.len(), Ok(2));
}

#[test]
fn taken_tasks_come_back_after_a_crash_and_ids_are_not_used_again() {
    let (queue, path, _dir) = queue();
    let kept = queue.push("k", "kept", b"", 1).unwrap();
    let done = queue.push("k", "done", b"", 2).unwrap();
    assert_eq!(queue.take_due(9, 9).unwrap().len(), 2);
    queue.done(done).unwrap();
    drop(queue);

    let queue = DurableQueue::open(&path).unwrap();
    assert_eq!(ids(&queue.take_due(9, 9).unwrap()), [kept]);
    assert!(queue.push("k", "new", b"", 1).unwrap() > done);
    queue.done(999).unwrap();
    queue.retry(999, 5).unwrap();
}

/// A copy of the file while the queue is open is what `kill -9` leaves.
#[test]
fn a_killed_process_loses_nothing_that_has_returned() {
    let (queue, path, dir) = queue();
    let copy = dir.path().join("copy");
    for round in 1..20_u64 {
        let id = queue.push("k", &round.to_string(), b"x", round).unwrap();
        assert_eq!(ids(&queue.take_due(round, 9).unwrap()), [id]);
        match round % 3 {
            0 => queue.done(id).unwrap(),
            1 => queue.retry(id, 100 + round).unwrap(),
            _ => {}
        }
        std::fs::copy(&path, &copy).unwrap();
        let left = DurableQueue::open(&copy).unwrap();
        let expected = queue.page(None, 99).unwrap();
        assert_eq!(left.page(None, 99).unwrap(), expected);
        assert_eq!(left.take_due(u64::MAX, 99).unwrap(), expected);
    }
}

#[test]
fn a_queue_whose_making_was_cut_short_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.redb");
    std::fs::write(dir.path().join("queue.redb.new"), [0; 4096]).unwrap();
    let queue = DurableQueue::open(&path).unwrap();
    queue.push("kind", "key", b"", 0).unwrap();
    assert!(path.exists() && !dir.path().join("queue.redb.new").exists());
}

#[test]
fn a_file_has_one_queue() {
    let (_queue, path, _dir) = queue();
    let second = DurableQueue::open(&path);
    assert!(matches!(second, Err(QueueError::InUse(_))), "{second:?}");
}

#[test]
fn a_dead_letter_rests_until_somebody_wants_it() {
    let (queue, path, _dir) = queue();
    let (a, b) = (
        queue.push("k", "a", b"1", 1).unwrap(),
        queue.push("k", "b", b"2", 1).unwrap(),
    );
    queue.retry(a, 5).unwrap();
    assert_eq!(queue.take_due(9, 9).unwrap().len(), 2);
    queue.bury(a).unwrap();
    queue.bury(b).unwrap();
    drop(queue);
    let queue = DurableQueue::open(&path).unwrap();
    assert_eq!(queue.take_due(99, 9), Ok(vec![]));
    assert_eq!((queue.len(), queue.dead_len()), (Ok(0), Ok(2)));
    assert_eq!(queue.contains("k", "a"), Ok(false));
    let dead = queue.dead(None, 1).unwrap();
    assert_eq!((dead[0].id, dead[0].attempts, dead[0].born_ms), (a, 2, 1));
    assert_eq!(ids(&queue.dead(Some(a), 9).unwrap()), [b]);

    assert_eq!(queue.revive(a, 50), Ok(true));
    assert_eq!(queue.revive(a, 50), Ok(false));
    let again = queue.take_due(50, 9).unwrap();
    assert_eq!(
        (again[0].id, again[0].attempts, again[0].born_ms),
        (a, 0, 50)
    );
    assert_eq!(again[0].payload, b"1");
    // One that was pushed while it was taken makes up for it.
    let newer = queue.push("k", "a", b"3", 60).unwrap();
    queue.bury(a).unwrap();
    assert_eq!(ids(&queue.take_due(60, 9).unwrap()), [newer]);
    assert_eq!(queue.dead_len(), Ok(1));
    // And one that is pushed later takes its place.
    queue.push("k", "b", b"4", 60).unwrap();
    assert_eq!(queue.dead_len(), Ok(0));
    assert_eq!(queue.drop_dead(b), Ok(false));
    queue.bury(newer).unwrap();
    assert_eq!(queue.drop_dead(newer), Ok(true));
    assert_eq!(queue.dead_len(), Ok(0));
}

#[test]
fn pages_go_through_all_in_order() {
    let (queue, _, _dir) = queue();
    for (index, due) in [3, 1, 2, 2, 5].into_iter().enumerate() {
        queue.push("k", &index.to_string(), b"", due).unwrap();
    }
    let mut seen: Vec<Task> = Vec::new();
    loop {
        let page = queue.page(seen.last(), 2).unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    let order: Vec<_> = seen.iter().map(|task| task.due_ms).collect();
    assert_eq!(order, [1, 2, 2, 3, 5]);
}

#[test]
fn a_damaged_record_is_an_error() {
    let whole = write_record(&Task {
        priority: Priority::Normal,
        id: 1,
        kind: "kind".into(),
        key: "key".into(),
        payload: vec![],
        attempts: 3,
        due_ms: 4,
        born_ms: 1,
    });
    assert!(read_record((1, 4, 1), &whole).is_ok());
    for cut in 0..whole.len() {
        let read = read_record((1, 4, 1), &whole[..cut]);
        assert!(matches!(read, Err(QueueError::Damaged { id: 1, .. })));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Push { key: u8, due: u64 },
    Take { now: u64, max: usize },
    Done(u64),
    Retry { id: u64, due: u64 },
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..4_u8, 0..20_u64).prop_map(|(key, due)| Op::Push { key, due }),
        3 => (0..20_u64, 0..4_usize).prop_map(|(now, max)| Op::Take { now, max }),
        2 => (1..12_u64).prop_map(Op::Done),
        2 => (1..12_u64, 0..20_u64).prop_map(|(id, due)| Op::Retry { id, due }),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 0..40)
}

#[derive(Debug, Default)]
struct Model {
    /// (due, id) to (key, attempts).
    tasks: BTreeMap<(u64, u64), (u8, u32)>,
    current: BTreeMap<u8, u64>,
    taken: BTreeSet<u64>,
    last_id: u64,
}

impl Model {
    fn push(&mut self, key: u8, due: u64) -> u64 {
        if let Some(id) = self.current.get(&key).filter(|id| !self.taken.contains(id)) {
            return *id;
        }
        self.last_id += 1;
        self.tasks.insert((due, self.last_id), (key, 0));
        self.current.insert(key, self.last_id);
        self.last_id
    }

    fn take(&mut self, now: u64, max: usize) -> Vec<u64> {
        let mut found = Vec::new();
        for ((due, id), (key, _)) in self.tasks.clone() {
            if due > now || found.len() == max {
                break;
            }
            if self.taken.contains(&id) {
                continue;
            }
            if self.current.get(&key) == Some(&id) {
                found.push(id);
            } else {
                self.tasks.remove(&(due, id));
            }
        }
        self.taken.extend(&found);
        found
    }

    fn remove(&mut self, id: u64) -> Option<(u8, u32)> {
        self.taken.remove(&id);
        let at = *self.tasks.keys().find(|at| at.1 == id)?;
        let (key, attempts) = self.tasks.remove(&at)?;
        if self.current.get(&key) == Some(&id) {
            self.current.remove(&key);
        }
        Some((key, attempts))
    }

    fn retry(&mut self, id: u64, due: u64) {
        if let Some((key, attempts)) = self.remove(id)
            && !self.current.contains_key(&key)
        {
            self.tasks.insert((due, id), (key, attempts + 1));
            self.current.insert(key, id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn behaves_like_a_sorted_map(ops in ops()) {
        let (mut queue, path, _dir) = queue();
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Push { key, due } => {
                    let id = queue.push("k", &key.to_string(), &[key], due).unwrap();
                    prop_assert_eq!(id, model.push(key, due));
                }
                Op::Take { now, max } => {
                    let taken = queue.take_due(now, max).unwrap();
                    prop_assert_eq!(ids(&taken), model.take(now, max));
                }
                Op::Done(id) => {
                    queue.done(id).unwrap();
                    model.remove(id);
                }
                Op::Retry { id, due } => {
                    queue.retry(id, due).unwrap();
                    model.retry(id, due);
                }
                Op::Reopen => {
                    drop(queue);
                    queue = DurableQueue::open(&path).unwrap();
                    model.taken.clear();
                }
            }
            let all = queue.page(None, usize::MAX).unwrap();
            let all: Vec<_> = all.iter().map(|t| ((t.due_ms, t.id), (t.payload[0], t.attempts))).collect();
            prop_assert_eq!(all, model.tasks.clone().into_iter().collect::<Vec<_>>());
            for key in 0..4 {
                let there = queue.contains("k", &key.to_string()).unwrap();
                prop_assert_eq!(there, model.current.contains_key(&key));
            }
            let waits = model.tasks.keys().find(|at| !model.taken.contains(&at.1));
            prop_assert_eq!(queue.next_due().unwrap(), waits.map(|at| at.0));
        }
    }
}
