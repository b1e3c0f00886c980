//! Small objects by their paths, beside the blobs or in a place of their own.

use ::opendal::ErrorKind;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::{OpendalBackend, Place, sync_parents, unreachable};
use crate::backend::BackendError;

impl OpendalBackend {
    /// The first `most` bytes of an object, or nothing when it is not there.
    ///
    /// # Errors
    /// The storage could not be asked.
    pub async fn read_object(
        &self,
        path: &str,
        most: usize,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let reader = self.operator()?.reader(path).await;
        let reader = reader.map_err(|error| unreachable(&error))?;
        let stream = reader.into_stream(..).await;
        let mut stream = stream.map_err(|error| unreachable(&error))?;
        let mut bytes = Vec::new();
        loop {
            match stream.try_next().await {
                Ok(Some(chunk)) if bytes.len() < most => {
                    bytes.extend_from_slice(&chunk.to_bytes());
                }
                Ok(_) => {
                    bytes.truncate(most);
                    return Ok(Some(bytes));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.check_present().await?;
                    return Ok(None);
                }
                Err(error) => return Err(unreachable(&error)),
            }
        }
    }

    /// Writes an object, in place of one of the same path. It appears whole or not at all.
    ///
    /// # Errors
    /// The storage refused, or could not be asked.
    pub async fn write_object(&self, path: &str, bytes: Vec<u8>) -> Result<(), BackendError> {
        // OpenDAL would make the directory anew, on whatever disk lies below.
        self.operator()?;
        self.check_present().await?;
        let written = self.operator()?.write(path, bytes).await;
        written.map_err(|error| unreachable(&error))?;
        match self.place.clone() {
            Place::Directory(root) => sync_parents(root, path.to_owned()).await,
            _ => Ok(()),
        }
    }

    /// Removes an object. Not an error when it is not there.
    ///
    /// # Errors
    /// The storage refused, or could not be asked.
    pub async fn remove_object(&self, path: &str) -> Result<(), BackendError> {
        self.operator()?;
        self.check_present().await?;
        let removed = self.operator()?.delete(path).await;
        removed.map_err(|error| unreachable(&error))
    }

    /// The paths of all objects whose paths begin with `prefix`, which is empty or ends with a slash, in any
    /// order. They come as they are read; after an error the rest does not.
    ///
    /// # Errors
    /// The storage could not be asked.
    pub async fn list_objects(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'static, Result<String, BackendError>>, BackendError> {
        match self.place {
            Place::Remote => self.look().await?,
            _ => {
                self.operator()?;
                self.check_present().await?;
            }
        }
        let names = self.operator()?.lister_with(prefix).recursive(true).await;
        let names = match names {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(futures::stream::empty().boxed());
            }
            names => names.map_err(|error| unreachable(&error))?,
        };
        let names = names.filter_map(async |entry| match entry {
            Ok(entry) if entry.metadata().is_file() => Some(Ok(entry.path().to_owned())),
            Ok(_) => None,
            // Nothing was ever written there, or it was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(Err(unreachable(&error))),
        });
        Ok(names.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn listed(backend: &OpendalBackend, prefix: &str) -> Vec<String> {
        let names = backend.list_objects(prefix).await.unwrap();
        let mut names: Vec<String> = names.try_collect().await.unwrap();
        names.sort();
        names
    }

    async fn objects_come_and_go(backend: OpendalBackend) {
        assert!(listed(&backend, "a/").await.is_empty());
        assert_eq!(backend.read_object("a/b/one", 9).await.unwrap(), None);
        backend.remove_object("a/b/one").await.unwrap();
        for (path, bytes) in [("a/b/one", "1"), ("a/two", "2"), ("c", ""), ("a/two", "3")] {
            let written = backend.write_object(path, bytes.into()).await;
            written.unwrap();
        }
        assert_eq!(listed(&backend, "a/").await, ["a/b/one", "a/two"]);
        let two = backend.read_object("a/two", 1).await.unwrap();
        assert_eq!(two.as_deref(), Some(&b"3"[..]));
        let empty = backend.read_object("c", 0).await.unwrap();
        assert_eq!(empty.as_deref(), Some(&b""[..]));
        backend
            .write_object("a/long", b"123".to_vec())
            .await
            .unwrap();
        let long = backend.read_object("a/long", 2).await.unwrap();
        assert_eq!(long.as_deref(), Some(&b"12"[..]));
        backend.remove_object("a/long").await.unwrap();
        backend.remove_object("a/two").await.unwrap();
        assert_eq!(listed(&backend, "a/").await, ["a/b/one"]);
    }

    #[tokio::test]
    async fn objects_are_kept_by_their_paths() {
        objects_come_and_go(OpendalBackend::memory()).await;
        let dir = tempfile::tempdir().unwrap();
        objects_come_and_go(OpendalBackend::local_disk(dir.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let backend = OpendalBackend::local_disk(dir.path()).unwrap();
        backend.write_object("a", b"1".to_vec()).await.unwrap();
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(backend.read_object("a", 9).await.is_err());
        assert!(backend.write_object("a", b"1".to_vec()).await.is_err());
        assert!(backend.remove_object("a").await.is_err());
        assert!(backend.list_objects("").await.is_err());
    }
}
