use std::sync::atomic::{AtomicBool, Ordering};

use redb::{ReadableDatabase as _, ReadableTableMetadata as _};

use super::*;

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");

/// A file whose volume may be full, and whose disk may fail.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    is_full: AtomicBool,
    syncs_fail: AtomicBool,
}

impl Faults {
    fn full(&self) -> io::Result<()> {
        let is_full = self.is_full.load(Ordering::Relaxed);
        fails(is_full, io::ErrorKind::StorageFull)
    }
}

fn fails(now: bool, kind: io::ErrorKind) -> io::Result<()> {
    if now { Err(kind.into()) } else { Ok(()) }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.full()?;
        self.file.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // What is in place needs no room.
        if offset >= 4096 {
            self.faults.full()?;
        }
        self.file.write(offset, data)
    }

    fn sync_data(&self) -> io::Result<()> {
        let now = self.faults.syncs_fail.load(Ordering::Relaxed);
        fails(now, io::ErrorKind::StorageFull)?;
        self.file.sync_data()
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(
        &self,
        start: std::ops::Bound<u64>,
        end: std::ops::Bound<u64>,
    ) -> Result<bool, redb::BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(
        &self,
        start: std::ops::Bound<u64>,
        end: std::ops::Bound<u64>,
    ) -> Result<(), redb::BackendError> {
        self.file.unlock_range(start, end)
    }
}

fn faulty(dir: &Path, pause: Duration) -> (DatabaseFile, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let (path, given) = (dir.join("rows.redb"), faults.clone());
    let file = path.clone();
    let opening = move || -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = FileBackend::new(options.open(&file)?).map_err(io::Error::other)?;
        let faults = given.clone();
        Ok(Box::new(Faulty { file, faults }))
    };
    let opened = DatabaseFile::with(path, (1 << 20, pause), Box::new(opening));
    (opened.unwrap(), faults)
}

fn add(file: &DatabaseFile, row: u64, bytes: &[u8]) -> Result<(), redb::Error> {
    file.write(|database| {
        let write = database.begin_write()?;
        write.open_table(ROWS)?.insert(row, bytes)?;
        Ok(write.commit()?)
    })
}

fn rows(file: &DatabaseFile) -> Result<u64, redb::Error> {
    file.read(|database| Ok(database.begin_read()?.open_table(ROWS)?.len()?))
}

#[test]
fn a_file_goes_on_when_its_volume_has_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let (file, faults) = faulty(dir.path(), Duration::ZERO);
    add(&file, 1, b"before").unwrap();
    assert_eq!((file.failure(), file.why_not_writable()), (None, None));

    faults.is_full.store(true, Ordering::Relaxed);
    for row in 2..5 {
        add(&file, row, &[7; 100_000]).unwrap_err();
        assert_eq!(rows(&file).unwrap(), 1, "what was there can be read");
    }
    let why = file.why_not_writable().unwrap();
    assert!(why.contains("no storage space"), "{why}");

    faults.is_full.store(false, Ordering::Relaxed);
    assert_eq!(file.why_not_writable(), None, "it tries by itself");
    add(&file, 2, &[7; 100_000]).unwrap();
    assert_eq!((rows(&file).unwrap(), file.failure()), (2, None));
    drop(file);
    let again = DatabaseFile::open(dir.path().join("rows.redb"), 1 << 20).unwrap();
    assert_eq!(rows(&again).unwrap(), 2);
}

#[test]
fn after_a_write_without_room_others_are_refused_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (file, faults) = faulty(dir.path(), Duration::from_secs(3600));
    add(&file, 1, b"before").unwrap();
    faults.is_full.store(true, Ordering::Relaxed);
    add(&file, 2, &[7; 100_000]).unwrap_err();
    faults.is_full.store(false, Ordering::Relaxed);
    let refused = add(&file, 2, b"small").unwrap_err().to_string();
    assert!(refused.contains("make room"), "{refused}");
    let why = file.why_not_writable().unwrap();
    assert!(why.contains("no storage space"), "the first reason: {why}");
    assert_eq!(rows(&file).unwrap(), 1);
}

#[test]
fn after_a_sync_that_failed_nothing_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, faults) = faulty(dir.path(), Duration::ZERO);
    add(&file, 1, b"before").unwrap();
    faults.syncs_fail.store(true, Ordering::Relaxed);
    add(&file, 2, b"lost").unwrap_err();
    faults.syncs_fail.store(false, Ordering::Relaxed);
    for error in [
        add(&file, 2, b"small").unwrap_err(),
        rows(&file).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("start the process anew"), "{error}");
    }
    assert!(file.why_not_writable().is_some());
}

#[test]
fn a_file_that_is_open_is_not_opened_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.redb");
    let _file = DatabaseFile::open(&path, 1 << 20).unwrap();
    let second = DatabaseFile::open(&path, 1 << 20).unwrap_err();
    assert!(matches!(second, DatabaseError::DatabaseAlreadyOpen));
}
