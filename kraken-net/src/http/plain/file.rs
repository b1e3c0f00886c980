//! A body that lies in a file.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt as _;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;

use crate::http::ByteStream;
use crate::http::bounded::patiently;

/// Where a response's body lies, as an extension of the response: it goes straight from there, when
/// the connection can. The response has its body as well, for a connection that cannot.
#[derive(Clone)]
pub struct FileBody {
    /// The file. What it holds does not change.
    pub file: Arc<File>,
    /// The body's bytes within the file.
    pub range: Range<u64>,
    /// Reads a part of the file as bytes: for what is not in the page cache. A thread that waits for
    /// a disk in `sendfile` could do nothing else, and whoever has the file may want to look at what
    /// comes from the disk.
    pub read: Arc<dyn Fn(Range<u64>) -> ByteStream + Send + Sync>,
    /// Whether the file is still good. Once it is not, all the rest is read.
    pub valid: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for FileBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBody")
            .field("file", &self.file)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// The most bytes in one call of `sendfile`: others have their turn after each.
const STEP: u64 = 512 << 10;
/// Bytes that are read by [`FileBody::read`] after the page cache lacked some: as much as a disk
/// is asked to read ahead.
const COLD: u64 = 1 << 20;
/// How far apart the page cache is asked, in bytes. It takes and drops pages in runs.
const PROBE: usize = 64 << 10;

/// Sends the body.
pub(super) async fn send(stream: &mut TcpStream, body: &FileBody) -> io::Result<()> {
    let Range { mut start, end } = body.range;
    while start < end {
        let part = start..end.min(start + STEP);
        let sent = match patiently(send_cached(stream, body, part)).await? {
            Cached::Sent(sent) => sent,
            Cached::Cold => {
                let stop = end.min(start + COLD);
                send_read(stream, (body.read)(start..stop), stop - start).await?
            }
            Cached::Invalid => send_read(stream, (body.read)(start..end), end - start).await?,
        };
        start += sent;
    }
    Ok(())
}

/// How many bytes from the beginning of `range` are in the page cache, as far as probes tell. None
/// on a file system that cannot say. A probe that finds nothing makes the system read there: asked
/// again it would find a page that nobody has looked at.
fn cached(file: &File, range: Range<u64>) -> u64 {
    for at in range.clone().step_by(PROBE) {
        let mut byte = [0];
        let mut bytes = [io::IoSliceMut::new(&mut byte)];
        let read = rustix::io::preadv2(file, &mut bytes, at, ReadWriteFlags::NOWAIT);
        if read != Ok(1) {
            return at - range.start;
        }
    }
    range.end - range.start
}

/// What came of sending a part by `sendfile`.
enum Cached {
    /// So many bytes are sent.
    Sent(u64),
    /// The page cache lacks the next byte.
    Cold,
    /// The file is no longer good.
    Invalid,
}

/// One `sendfile` within `part`, as soon as the socket takes any. Only then the page cache is asked:
/// while a client lets us wait, pages go.
async fn send_cached(stream: &TcpStream, body: &FileBody, part: Range<u64>) -> io::Result<Cached> {
    stream
        .async_io(Interest::WRITABLE, || {
            if !(body.valid)() {
                return Ok(Cached::Invalid);
            }
            let hot = cached(&body.file, part.clone());
            if hot == 0 {
                return Ok(Cached::Cold);
            }
            let (mut offset, len) = (part.start, usize::try_from(hot).expect("at most STEP"));
            match rustix::fs::sendfile(stream, &*body.file, Some(&mut offset), len) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(sent) => Ok(Cached::Sent(sent as u64)),
                Err(Errno::INTR) => Ok(Cached::Sent(0)),
                Err(error) => Err(error.into()),
            }
        })
        .await
}

async fn send_read(stream: &mut TcpStream, mut bytes: ByteStream, want: u64) -> io::Result<u64> {
    let mut sent = 0;
    while let Some(chunk) = bytes.next().await.transpose()? {
        sent += chunk.len() as u64;
        if sent > want {
            break;
        }
        patiently(stream.write_all(&chunk)).await?;
    }
    if sent == want {
        return Ok(sent);
    }
    let told = format!("{sent} bytes came instead of {want}");
    Err(io::Error::other(told))
}
