//! Passes connections on, and shows what clients asked.

use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// How much of what a client says on one connection is kept.
const KEPT: usize = 64 * 1024;

/// A port in front of another. It works until the process ends.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    pub(crate) fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let relay = Self {
            addr,
            said: said.clone(),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let (target, said) = (target.clone(), said.clone());
                thread::spawn(move || pass_on(&client, &target, &said));
            }
        });
        relay
    }

    /// What clients said, a connection each, in small letters.
    pub(crate) fn said(&self) -> Vec<String> {
        let said = self.said.lock().unwrap();
        said.iter()
            .map(|bytes| String::from_utf8_lossy(bytes).to_lowercase())
            .collect()
    }
}

fn pass_on(client: &TcpStream, target: &str, said: &Mutex<Vec<Vec<u8>>>) {
    // A client whose connection is dropped says so itself.
    let Ok(server) = TcpStream::connect(target) else {
        return;
    };
    let index = {
        let mut said = said.lock().unwrap();
        said.push(Vec::new());
        said.len() - 1
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(&server, client, |_| ()));
        copy(client, &server, |bytes| {
            let kept = &mut said.lock().unwrap()[index];
            let room = KEPT.saturating_sub(kept.len()).min(bytes.len());
            kept.extend_from_slice(&bytes[..room]);
        });
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, mut see: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        see(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            let _ = from.shutdown(Shutdown::Read);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
