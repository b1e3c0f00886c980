//! A layer of 1 GiB pushed to the proxy, with three origins behind it: how long the commit takes after
//! the last byte, besides the copies for the quorum, and how often the origins read the bytes back.
//!
//! Proxy and origins are processes of their own, as they ship. The storage behind the origins is
//! away: what is written back to it later would be read as well. An origin's own metrics say what
//! its copies took; what it reads from files the kernel counts, in which sockets have no part.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kraken_core::net::CertAuthority;
use kraken_core::net::http::{HttpBody, HttpClient};

use crate::Outcome;
use crate::lab::{self, Lab, payload_path};
use crate::measure::{Measure, median};
use crate::process::{Child, scratch};
use crate::serve::client::{connect, free, head};

const ORIGINS: usize = 3;
/// Seconds between the last byte and the answer, besides the copies.
const COMMIT: f64 = 0.2;
/// The copies that a quorum and the third owner are sent.
const COPIES: f64 = 2.0;
/// The longest that a service may take to answer after its start.
const START: Duration = Duration::from_secs(30);

/// Pushes as docker does, and as containerd does.
pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let mut measures = Vec::new();
    for (name, way) in [("streamed", Way::Streamed), ("in-one-request", Way::Whole)] {
        let mut samples = Vec::new();
        for round in 0..lab.effort.repeats {
            let sample = run(lab, way)?;
            eprintln!("  round {round}: {name} {sample:.3?}");
            samples.push(sample);
        }
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        let commit = of(|it| it.answered - it.copies);
        let read = of(|it| it.read_back);
        measures.extend([
            Measure::of(
                format!("push/commit-{name}"),
                "s",
                (commit, Some(COMMIT)),
                1.0,
            )
            .note("peer: the bound"),
            Measure::of(
                format!("push/read-back-{name}"),
                "blobs",
                (read, Some(COPIES)),
                1.01,
            )
            .note("peer: the copies that are sent"),
        ]);
    }
    Ok(measures)
}

#[derive(Clone, Copy)]
enum Way {
    /// A `PATCH` with all bytes, then a `PUT` without any.
    Streamed,
    /// A `PUT` with all of them.
    Whole,
}

#[derive(Debug)]
struct Sample {
    /// Seconds that all bytes took, from the start of the upload.
    #[expect(dead_code, reason = "is printed")]
    sent: f64,
    /// Seconds from the last byte to the answer.
    answered: f64,
    /// Those of them that the copies took.
    copies: f64,
    /// How often the origins together read each byte from their files.
    read_back: f64,
}

fn run(lab: &Lab, way: Way) -> Outcome<Sample> {
    let dir = scratch(lab.path())?;
    let cluster = Cluster::start(dir.path())?;
    let (mut blob, length) = (File::open(payload_path(lab.path()))?, lab.mib << 20);
    let digest = lab::meta(lab.path())?.digest();
    let before = cluster.read()?;
    let mut upload = Upload::start(cluster.proxy)?;
    let begun = Instant::now();
    let (location, with) = (upload.location.clone(), format!("digest={digest}"));
    match way {
        Way::Streamed => upload.request("PATCH", &location, length)?,
        Way::Whole => upload.request("PUT", &join(&location, &with), length)?,
    }
    let last = upload.body(&mut blob)?;
    if matches!(way, Way::Streamed) {
        upload.answered(202)?;
        let location = upload.location.clone();
        upload.request("PUT", &join(&location, &with), 0)?;
    }
    upload.answered(201)?;
    let answered = last.elapsed().as_secs_f64();
    Ok(Sample {
        sent: (last - begun).as_secs_f64(),
        answered,
        copies: cluster.copies()?,
        read_back: (cluster.read()? - before) as f64 / length as f64,
    })
}

fn join(location: &str, query: &str) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}{query}")
}

/// One upload over one connection.
struct Upload {
    stream: std::net::TcpStream,
    host: SocketAddr,
    location: String,
}

impl Upload {
    fn start(host: SocketAddr) -> Outcome<Self> {
        let location = "/v2/library/app/blobs/uploads/".to_string();
        let stream = connect(host)?;
        let mut upload = Self {
            stream,
            host,
            location: location.clone(),
        };
        upload.request("POST", &location, 0)?;
        upload.answered(202)?;
        Ok(upload)
    }

    fn request(&mut self, method: &str, path: &str, length: u64) -> Outcome<()> {
        let host = self.host;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        Ok(self.stream.write_all(request.as_bytes())?)
    }

    /// Sends all of `blob`, and says when the last byte left.
    fn body(&mut self, blob: &mut File) -> Outcome<Instant> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match blob.read(&mut buffer)? {
                0 => return Ok(Instant::now()),
                read => self.stream.write_all(&buffer[..read])?,
            }
        }
    }

    fn answered(&mut self, expected: u16) -> Outcome<()> {
        let (answer, _) = head(&mut self.stream, &mut vec![0; 64 << 10])?;
        if answer.status != expected {
            return Err(format!("a push was answered with {}", answer.status).into());
        }
        if let Some(location) = answer.location {
            self.location = location;
        }
        Ok(())
    }
}

/// A proxy and origins. Dropping it ends them.
struct Cluster {
    proxy: SocketAddr,
    origins: Vec<(Child, SocketAddr)>,
    _proxy: Child,
    http: HttpClient,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn start(dir: &Path) -> Outcome<Self> {
        let authority = CertAuthority::create()?;
        fs::write(dir.join("ca.crt"), authority.to_pem().0)?;
        let (places, proxy) = (free::<ORIGINS>()?, free::<1>()?[0]);
        let names = || (0..ORIGINS).map(|number| format!("origin-{number}"));
        let entries: Vec<_> = names()
            .zip(places)
            .map(|(name, place)| format!("{{name: {name}, url: \"https://{place}\"}}"))
            .collect();
        let entries = format!("origins: [{}]\nreplicas: {ORIGINS}\n", entries.join(", "));
        let service = |kind: &str, name: &str, text: String| {
            let config = configure(dir, &authority, (kind, name), &(text + &entries))?;
            Child::role(["service", kind, &config.to_string_lossy()])
        };
        let mut origins = Vec::new();
        for (name, place) in names().zip(places) {
            let (store, [peers]) = (dir.join(&name), free()?);
            let text = format!(
                "name: {name}\nstore: {}\nbackend: {{local_disk: /dev/null/away}}\n\
                 peer_listen: {peers}\nlisten: {place}\n",
                store.display()
            );
            origins.push((service("origin", &name, text)?, place));
        }
        let text = format!("listen: {proxy}\nbuild_indexes: [\"https://{proxy}\"]\n");
        let running = service("proxy", "proxy", text)?;
        for place in places.into_iter().chain([proxy]) {
            answers(place)?;
        }
        let (cert, key) = authority.issue("operator", &[])?;
        let identity = kraken_core::net::Identity::from_pem(&cert, &key, &authority.to_pem().0)?;
        let runtime = tokio::runtime::Runtime::new()?;
        let http = runtime.block_on(async { HttpClient::new(Some(&identity)) })?;
        Ok(Self {
            proxy,
            origins,
            _proxy: running,
            http,
            runtime,
        })
    }

    /// What all origins have read from files, in bytes.
    fn read(&self) -> Outcome<u64> {
        let counts = self.origins.iter().map(|it| it.0.file_bytes_read());
        counts.sum()
    }

    /// Seconds that the copies took, as the origin says that made them.
    fn copies(&self) -> Outcome<f64> {
        let mut sum = 0.0;
        for (_, place) in &self.origins {
            let text = self.runtime.block_on(self.metrics(*place))?;
            let mut lines = text.lines();
            let found = lines.find_map(|it| it.strip_prefix("kraken_commit_copies_seconds_sum "));
            sum += found
                .ok_or("an origin without its metrics")?
                .parse::<f64>()?;
        }
        Ok(sum)
    }

    async fn metrics(&self, place: SocketAddr) -> Outcome<String> {
        let request = http::Request::get(format!("https://{place}/metrics"));
        let answer = self.http.ask(request.body(HttpBody::Empty)?).await?;
        Ok(String::from_utf8(answer.bytes(1 << 20).await?.to_vec())?)
    }
}

/// Writes a configuration, with an identity.
fn configure(
    dir: &Path,
    authority: &CertAuthority,
    (role, name): (&str, &str),
    text: &str,
) -> Outcome<PathBuf> {
    let (cert, key) = authority.issue(role, &["127.0.0.1".to_string()])?;
    fs::write(dir.join(format!("{name}.crt")), cert)?;
    fs::write(dir.join(format!("{name}.key")), key)?;
    let path = dir.join(format!("{name}.yaml"));
    let at = dir.display();
    let tls = format!("tls: {{cert: {at}/{name}.crt, key: {at}/{name}.key, ca: {at}/ca.crt}}\n");
    fs::write(&path, text.to_string() + &tls)?;
    Ok(path)
}

fn answers(place: SocketAddr) -> Outcome<()> {
    let deadline = Instant::now() + START;
    while connect(place).is_err() {
        if Instant::now() > deadline {
            return Err(format!("nothing answers at {place}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
