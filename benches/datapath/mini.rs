//! The least that the job can cost with the same parts: quinn, one SHA-256 and a write, with no
//! scheduler, no identities and no store around them.
//!
//! Four workers ask for a piece each on a stream of its own, receive it into a page-aligned buffer
//! that is used again, and hash and write it in steps of 64 KiB into a file that has its room; the
//! file is synced at the end. The other side reads each piece into such a buffer and hands it to
//! quinn as it is.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::{JoinSet, spawn_blocking};

use crate::Outcome;
use crate::lab::{Lab, payload_path};
use crate::measure::Sample;
use crate::process::{self, Child, cpu_seconds, next_line, scratch};

const PIECE: u64 = 4 << 20;
const STEP: usize = 64 << 10;
const PAGE: usize = 4096;
const STREAMS: usize = 4;

/// One transfer of the lab's blob.
pub(crate) fn one(lab: &Lab, mtu: u16) -> Outcome<Sample> {
    let (run, mtu) = (scratch(lab.path())?, mtu.to_string());
    let path = lab.path().to_string_lossy();
    let cert = run.path().join("cert");
    let cert = cert.to_string_lossy();
    let seed = Child::role(["mini-seed", "--lab", &path, "--cert", &cert, "--mtu", &mtu])?;
    process::pair(seed, |ready| {
        let [addr] = ready else {
            return Err("a seeder says where it is".into());
        };
        let file = run.path().join("payload");
        let (file, length) = (file.to_string_lossy(), (lab.mib << 20).to_string());
        Child::role([
            "mini-leech",
            "--file",
            &file,
            "--cert",
            &cert,
            "--mtu",
            &mtu,
            "--addr",
            addr,
            "--length",
            &length,
        ])
    })
}

#[derive(Args)]
pub(crate) struct Seed {
    #[arg(long)]
    lab: PathBuf,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    mtu: u16,
}

#[derive(Args)]
pub(crate) struct Leech {
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    mtu: u16,
    #[arg(long)]
    addr: SocketAddr,
    #[arg(long)]
    length: u64,
}

impl Seed {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("mini-seed", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let key = rcgen::generate_simple_self_signed(["mini.invalid".to_string()])?;
        fs::write(&self.cert, key.cert.der())?;
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der())?;
        let mut config = ServerConfig::with_single_cert(vec![key.cert.der().clone()], private)?;
        config.transport_config(Arc::new(transport(self.mtu)));
        let endpoint = endpoint(self.mtu, Some(config))?;
        let file = Arc::new(File::open(payload_path(&self.lab))?);
        let addr = endpoint.local_addr()?;
        let before = cpu_seconds();
        println!("ready {addr}");
        let serve = tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if let Ok(conn) = incoming.await {
                    tokio::spawn(serve(conn, file.clone()));
                }
            }
        });
        next_line().await?;
        println!("cpu {}", cpu_seconds() - before);
        serve.abort();
        Ok(())
    }
}

async fn serve(conn: Connection, file: Arc<File>) -> Outcome<()> {
    let pool = Pool::default();
    loop {
        let (mut send, mut recv) = conn.accept_bi().await?;
        let (file, pool) = (file.clone(), pool.clone());
        tokio::spawn(async move {
            let mut request = [0; 12];
            recv.read_exact(&mut request).await?;
            let (offset, len) = request.split_at(8);
            let offset = u64::from_le_bytes(offset.try_into()?);
            let len = u32::from_le_bytes(len.try_into()?) as usize;
            let piece = spawn_blocking(move || -> Outcome<_> {
                let mut piece = pool.take();
                file.read_exact_at(piece.room(len), offset)?;
                Ok(piece)
            });
            send.write_chunk(Bytes::from_owner(piece.await??)).await?;
            send.finish()?;
            Outcome::Ok(())
        });
    }
}

impl Leech {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("mini-leech", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(fs::read(&self.cert)?))?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(Arc::new(transport(self.mtu)));
        let endpoint = endpoint(self.mtu, None)?;
        println!("ready");
        next_line().await?;
        let (begun, before) = (Instant::now(), cpu_seconds());
        let conn = endpoint
            .connect_with(config, self.addr, "mini.invalid")?
            .await?;
        let file = Arc::new(preallocated(&self.file, self.length)?);
        let work = Arc::new(Work {
            conn,
            file: file.clone(),
            length: self.length,
            next: AtomicU64::new(0),
            pool: Pool::default(),
            turn: Arc::default(),
        });
        let mut workers = JoinSet::new();
        for _ in 0..STREAMS {
            workers.spawn(work.clone().run());
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        spawn_blocking(move || file.sync_data()).await??;
        let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - before);
        println!("done {wall} {cpu}");
        Ok(())
    }
}

/// What the workers that fetch share.
struct Work {
    conn: Connection,
    file: Arc<File>,
    length: u64,
    /// Where the next piece begins.
    next: AtomicU64,
    pool: Pool,
    /// Whose turn it is to write: the kernel lets no two writers into one file, and those who wait
    /// there burn processor time.
    turn: Arc<Mutex<()>>,
}

impl Work {
    async fn run(self: Arc<Self>) -> Outcome<()> {
        loop {
            let offset = self.next.fetch_add(PIECE, Ordering::Relaxed);
            if offset >= self.length {
                return Ok(());
            }
            let len = usize::try_from(PIECE.min(self.length - offset))?;
            let (mut send, mut recv) = self.conn.open_bi().await?;
            let mut request = offset.to_le_bytes().to_vec();
            request.extend_from_slice(&u32::try_from(len)?.to_le_bytes());
            send.write_all(&request).await?;
            send.finish()?;
            let mut piece = self.pool.take();
            recv.read_exact(piece.room(len)).await?;
            let (file, turn) = (self.file.clone(), self.turn.clone());
            spawn_blocking(move || hash_and_write((&file, &turn), piece.as_ref(), offset))
                .await??;
        }
    }
}

/// In steps that stay in the processor's cache in between. What the hash is matters to nobody here.
fn hash_and_write((file, turn): (&File, &Mutex<()>), piece: &[u8], mut offset: u64) -> Outcome<()> {
    let mut hash = Sha256::new();
    for step in piece.chunks(STEP) {
        hash.update(step);
        let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all_at(step, offset)?;
        drop(turn);
        offset += step.len() as u64;
    }
    std::hint::black_box(hash.finalize());
    Ok(())
}

fn preallocated(path: &Path, length: u64) -> Outcome<File> {
    let file = File::create(path)?;
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, flags, 0, length)?;
    Ok(file)
}

/// Buffers of one piece each that are used again.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    fn take(&self) -> Buffer {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| vec![0; PIECE as usize + PAGE]);
        Buffer {
            from: bytes.as_ptr().align_offset(PAGE),
            bytes,
            len: 0,
            pool: self.clone(),
        }
    }
}

/// A page-aligned buffer. Dropping it gives it back.
struct Buffer {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
    pool: Pool,
}

impl Buffer {
    /// The first `len` bytes, which are the buffer's from now on.
    fn room(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        &mut self.bytes[self.from..][..len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.from..][..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(bytes);
    }
}

/// The settings that measured best.
fn transport(mtu: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(64 << 20))
        .send_window(64 << 20)
        .initial_mtu(mtu)
        .mtu_discovery_config(Some(discovery));
    config
}

fn endpoint(mtu: u16, server: Option<ServerConfig>) -> Outcome<Endpoint> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(4 << 20)?;
    socket.set_send_buffer_size(4 << 20)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu.max(1472))?;
    let socket = UdpSocket::from(socket);
    Ok(Endpoint::new(
        config,
        server,
        socket,
        Arc::new(TokioRuntime),
    )?)
}
