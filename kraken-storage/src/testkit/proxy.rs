//! A server that misbehaves, out of one that does not.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered with 429, and so many seconds to wait.
    Busy(u32),
    /// It is answered with 503.
    Broken,
    /// The connection is closed without an answer.
    Closed,
    /// The connection is closed after so many bytes of the answer.
    Cut(usize),
}

/// Passes HTTP requests on to a server, and spoils some. Ends when it is dropped.
#[derive(Debug)]
pub struct FaultyProxy {
    addr: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Faults {
    next: VecDeque<Fault>,
    all: Option<Fault>,
    requests: u64,
}

impl FaultyProxy {
    /// A proxy in front of the server at `target`, which speaks HTTP/1.1 without TLS.
    ///
    /// # Errors
    /// There is no port for it.
    pub async fn before(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let faults = Arc::<Mutex<Faults>>::default();
        let shared = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let faults = Arc::clone(&shared);
                // A connection that broke is what this is for.
                tokio::spawn(async move { drop(pass(client, target, &faults).await) });
            }
        });
        Ok(Self { addr, faults, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Spoils the next `GET` that comes, or the one after those that are to be spoiled already.
    pub fn next(&self, fault: Fault) {
        lock(&self.faults).next.push_back(fault);
    }

    /// Spoils every request from now on.
    pub fn all(&self, fault: Fault) {
        lock(&self.faults).all = Some(fault);
    }

    /// Spoils no request any more.
    pub fn heal(&self) {
        let mut faults = lock(&self.faults);
        (faults.all, faults.next) = (None, VecDeque::new());
    }

    /// How many requests are still to be spoiled.
    pub fn left(&self) -> usize {
        lock(&self.faults).next.len()
    }

    /// How many requests came.
    pub fn requests(&self) -> u64 {
        lock(&self.faults).requests
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(faults: &Mutex<Faults>) -> MutexGuard<'_, Faults> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to happen to what a client sends, if it is the beginning of a request.
fn judge(bytes: &[u8], faults: &Mutex<Faults>) -> Option<Fault> {
    let methods: [&[u8]; 5] = [b"GET /", b"HEAD /", b"PUT /", b"POST /", b"DELETE /"];
    if !methods.iter().any(|method| bytes.starts_with(method)) {
        return None;
    }
    let mut faults = lock(faults);
    faults.requests += 1;
    if faults.all.is_some() {
        return faults.all.clone();
    }
    match bytes.starts_with(b"GET /") {
        true => faults.next.pop_front(),
        false => None,
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, faults: &Mutex<Faults>) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut left = usize::MAX;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                match judge(&up[..read], faults) {
                    None => {}
                    Some(Fault::Closed) => return Ok(()),
                    Some(Fault::Cut(bytes)) => left = bytes,
                    Some(Fault::Busy(seconds)) => {
                        let wait = format!("Retry-After: {seconds}\r\n");
                        return answer(client, "429 Too Many Requests", &wait).await;
                    }
                    Some(Fault::Broken) => {
                        return answer(client, "503 Service Unavailable", "").await;
                    }
                }
                server.write_all(&up[..read]).await?;
            }
            read = server.read(&mut down) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                let pass = read.min(left);
                client.write_all(&down[..pass]).await?;
                if pass < read {
                    return Ok(());
                }
                left -= if left == usize::MAX { 0 } else { read };
            }
        }
    }
}

async fn answer(mut client: TcpStream, status: &str, headers: &str) -> io::Result<()> {
    let text =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}
