//! Sockets that outlive this process: a supervisor opens them and hands them over, as systemd does for
//! the units of its sockets. While the process is restarted, whoever connects waits instead of being
//! refused.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kraken_core::net::http::ServeError;
use listenfd::ListenFd;

/// Those that were handed over and that nobody has taken yet.
static GIVEN: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

fn given() -> MutexGuard<'static, Vec<TcpListener>> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what the environment says was handed over: `LISTEN_FDS` sockets from descriptor 3 on, if
/// `LISTEN_PID` is this process (sd_listen_fds(3)).
pub(crate) fn adopt() {
    // Without it they may be meant for the process that started this one.
    let ours = std::env::var("LISTEN_PID").ok();
    if ours != Some(std::process::id().to_string()) {
        return;
    }
    let mut sockets = ListenFd::from_env();
    for index in 0..sockets.len() {
        match sockets.take_tcp_listener(index) {
            Ok(Some(socket)) => given().push(socket),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(index, %error, "a socket that was handed over is not used")
            }
        }
    }
}

/// The socket that was handed over for `addr`, or a new one.
///
/// # Errors
/// The address cannot be had.
pub(crate) fn listen(addr: SocketAddr) -> Result<TcpListener, ServeError> {
    let mut given = given();
    let is_it = |socket: &TcpListener| socket.local_addr().is_ok_and(|it| it == addr);
    if let Some(place) = given.iter().position(is_it) {
        return Ok(given.swap_remove(place));
    }
    let bound = TcpListener::bind(addr);
    if bound.is_err() {
        for other in given.iter().filter_map(|socket| socket.local_addr().ok()) {
            tracing::error!(%other, %addr, "a socket was handed over for another address: write the same in both");
        }
    }
    bound.map_err(|source| ServeError::Bind { addr, source })
}

/// Says which sockets were handed over for nothing: the process and its supervisor do not mean the same
/// address.
pub(crate) fn tell_unused() {
    for socket in given().drain(..) {
        match socket.local_addr() {
            Ok(addr) => {
                tracing::warn!(%addr, "a socket was handed over that no key of the configuration names")
            }
            Err(error) => tracing::warn!(%error, "a socket that was handed over is not used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_used_at_its_own_address_only() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = TcpListener::bind(any).unwrap();
        let addr = socket.local_addr().unwrap();
        given().push(socket);
        assert_ne!(listen(any).unwrap().local_addr().unwrap(), addr);
        assert_eq!(listen(addr).unwrap().local_addr().unwrap(), addr);
        // Taken, and closed again: it is bound anew.
        assert!(given().is_empty());
        assert_eq!(listen(addr).unwrap().local_addr().unwrap(), addr);
    }
}
