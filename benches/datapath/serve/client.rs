//! A reader that costs as little as it can: HTTP/1.1 over a plain socket, into one buffer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::Outcome;

/// Below the size at which the allocator gives memory that does not begin at a page, to which the
/// kernel copies more slowly.
const BUFFER: usize = 64 << 10;

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads `path` to its end over `connections` connections at once, and says how many bytes came, and
/// in how many seconds.
pub(super) fn read_all(addr: SocketAddr, path: &str, connections: usize) -> Outcome<(u64, f64)> {
    let started = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..connections)
            .map(|_| scope.spawn(|| read(addr, path).map_err(|error| error.to_string())))
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().map_err(|_| "a reader panicked".to_string())?)
            .sum::<Result<u64, String>>()
    })?;
    Ok((bytes, started.elapsed().as_secs_f64()))
}

/// Reads `path` to its end, and says how many bytes its body has.
pub(super) fn read(addr: SocketAddr, path: &str) -> Outcome<u64> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let mut stream = connect(addr)?;
    stream.write_all(request.as_bytes())?;
    let mut buffer = vec![0; BUFFER];
    let (answer, more) = head(&mut stream, &mut buffer)?;
    if answer.status != 200 {
        return Err(format!("{addr}{path}: status {}", answer.status).into());
    }
    let length = answer.length.ok_or("an answer without a length")?;
    let mut left = length - more as u64;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(format!("{addr}{path}: {left} bytes are missing").into()),
            read => left -= read as u64,
        }
    }
    Ok(length)
}

/// An answer's head.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(super) length: Option<u64>,
    pub(crate) location: Option<String>,
}

pub(crate) fn connect(addr: SocketAddr) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads an answer's head, and says how many bytes of its body came with it.
pub(crate) fn head(stream: &mut TcpStream, buffer: &mut [u8]) -> Outcome<(Answer, usize)> {
    let mut filled = 0;
    let end = loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err("an answer without an end of its head".into());
        }
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|it| it == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = std::str::from_utf8(&buffer[..end])?;
    let status = text.split(' ').nth(1).ok_or("no status")?.parse()?;
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_string())
    };
    let answer = Answer {
        status,
        length: field("content-length").and_then(|length| length.parse().ok()),
        location: field("location"),
    };
    Ok((answer, filled - end))
}

/// Places where nobody listens, each another one.
pub(crate) fn free<const N: usize>() -> Outcome<[SocketAddr; N]> {
    let held: Vec<_> = (0..N)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()?;
    let places: Vec<_> = held
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<_, _>>()?;
    Ok(places.try_into().expect("as many as were held"))
}
