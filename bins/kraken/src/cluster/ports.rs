//! Where the processes of a cluster on loopback listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use super::{ClusterOptions, MOST};
use crate::Failure;

/// Where everything listens.
pub(super) struct Ports {
    pub(super) tracker: SocketAddr,
    pub(super) build_index: SocketAddr,
    pub(super) proxy: SocketAddr,
    pub(super) console: SocketAddr,
    /// HTTP and peers.
    pub(super) origins: Vec<(SocketAddr, SocketAddr)>,
    /// Registry and peers.
    pub(super) agents: Vec<(SocketAddr, SocketAddr)>,
}

impl Ports {
    pub(super) fn of(options: &ClusterOptions) -> Result<Self, Failure> {
        let (agents, origins) = (options.agents, options.origins);
        let Some(base) = options.base_port else {
            return Self::free(agents, origins);
        };
        check(base, origins)?;
        let pairs = |first: u16, count: u16| {
            (0..count)
                .map(|i| (loopback(first + 2 * i), loopback(first + 2 * i + 1)))
                .collect()
        };
        Ok(Self {
            tracker: loopback(base),
            build_index: loopback(base + 1),
            proxy: loopback(base + 2),
            console: loopback(base + 6),
            origins: pairs(base + 300, origins),
            agents: pairs(base + 10, agents),
        })
    }

    /// Ports that nobody has at this moment, for TCP and UDP. They lie below those that the system
    /// gives to outgoing connections, which would take them before they are used here. Processes
    /// that start side by side look in different places, and one process never looks twice.
    fn free(agents: u16, origins: u16) -> Result<Self, Failure> {
        static LOOKED_AT: AtomicU16 = AtomicU16::new(0);
        let first = 10_000 + 500 * u16::try_from(std::process::id() % 44).expect("small");
        let mut held = Vec::new();
        let mut next = || {
            for _ in 0..1000 {
                let addr = loopback(first + LOOKED_AT.fetch_add(1, Ordering::Relaxed) % 500);
                if let (Ok(tcp), Ok(udp)) = (TcpListener::bind(addr), UdpSocket::bind(addr)) {
                    held.push((tcp, udp));
                    return Ok(addr);
                }
            }
            Err(Failure::Other(
                "no free ports between 10000 and 32000".into(),
            ))
        };
        let (tracker, build_index, proxy, console) = (next()?, next()?, next()?, next()?);
        let mut pairs = |count: u16| -> Result<Vec<_>, Failure> {
            (0..count).map(|_| Ok((next()?, next()?))).collect()
        };
        let (origins, agents) = (pairs(origins), pairs(agents));
        Ok(Self {
            tracker,
            build_index,
            proxy,
            console,
            origins: origins?,
            agents: agents?,
        })
    }
}

/// Refuses a first port behind which there are too few.
pub(super) fn check(base: u16, origins: u16) -> Result<(), Failure> {
    let last = u32::from(base) + 300 + 2 * u32::from(origins.max(MOST));
    match base == 0 || last > u32::from(u16::MAX) {
        true => Err(Failure::Argument(format!(
            "--base-port {base}: ports up to {last} are needed"
        ))),
        false => Ok(()),
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
