//! Whether the origins are there, and whether datagrams of QUIC reach them.

use kraken_core::net::quic::QuicPath;
use kraken_core::net::{NetError, PathProbe, QuicOptions};

use super::{Doctor, Finding, MOST};
use crate::config::{QuicMtu, TransportConfig};
use crate::explain::origins_at;

/// A path that carries no more than this squeezes QUIC: every Ethernet carries 1472.
const NARROW: u16 = 1350;

/// Looks at every origin that a tracker knows.
pub(super) async fn look(doctor: &Doctor) -> Vec<Finding> {
    let mut said = "no tracker is configured".to_string();
    let mut origins = None;
    for tracker in doctor.trackers.urls() {
        match origins_at(&doctor.http, &tracker).await {
            Ok(list) => {
                origins = Some(list);
                break;
            }
            Err(error) => said = error.to_string(),
        }
    }
    let Some(origins) = origins else {
        let what = format!("no tracker says where they are: {said}");
        return vec![Finding::skipped("origins", what)];
    };
    let some_answer = origins.iter().any(|origin| origin.peer.is_some());
    let looks = origins.iter().take(MOST).map(async |origin| {
        let check = format!("origin {}", origin.name);
        let Some(peer) = &origin.peer else {
            return (away(&check, &origin.url, some_answer), None);
        };
        let probe = doctor.transport.probe(peer).await;
        let found = path(&check, peer.addr, &probe, doctor.facts.transport);
        (found, probe.quic.ok())
    });
    let looks = futures::future::join_all(looks).await;
    let (mut found, paths): (Vec<_>, Vec<_>) = looks.into_iter().unzip();
    let least = paths
        .into_iter()
        .flatten()
        .map(|path: QuicPath| path.mtu)
        .min();
    found.push(mtu(least, doctor.facts.quic_mtu));
    found
}

/// An origin that is away, among others that answer or not.
fn away(check: &str, url: &str, some_answer: bool) -> Finding {
    let what = format!("{url} does not answer the tracker");
    if some_answer {
        let advice = "start it or see its log; the others serve meanwhile, with fewer copies";
        return Finding::warning(check, what, advice);
    }
    let advice =
        "start it or see its log: no origin answers, so that only what agents have can be pulled";
    Finding::failed(check, what, advice)
}

/// What a look at both ways to an origin says, for a host that dials as it is configured.
fn path(
    check: &str,
    addr: std::net::SocketAddr,
    probe: &PathProbe,
    transport: TransportConfig,
) -> Finding {
    let PathProbe { quic, tcp } = probe;
    for error in [quic.as_ref().err(), tcp.as_ref().err()]
        .into_iter()
        .flatten()
    {
        if let NetError::WrongPeer { .. } = error {
            let advice =
                "another process answers there: correct advertise or peer_listen of the origin";
            return Finding::failed(check, error.to_string(), advice);
        }
    }
    let udp = format!("let UDP to and from port {} pass both ways", addr.port());
    match (quic, tcp) {
        (Ok(path), Ok(_)) => {
            let ms = path.handshake.as_millis();
            Finding::ok(
                check,
                format!("{addr} answers over UDP within {ms} ms, and over TCP"),
            )
        }
        (Err(error), Ok(_)) => {
            let what = format!("UDP to {addr} is blocked, TCP passes: {error}");
            match transport {
                TransportConfig::Quic => {
                    let advice =
                        format!("{udp}, or set transport: auto in this agent's configuration");
                    Finding::failed(check, what, advice)
                }
                TransportConfig::Auto => Finding::warning(check, what, udp),
                TransportConfig::Tcp => Finding::ok(
                    check,
                    format!("{addr} answers over TCP, by which this host dials"),
                ),
            }
        }
        (Ok(_), Err(error)) => {
            let what = format!("TCP to {addr} is blocked, UDP passes: {error}");
            let advice = format!("open port {} for TCP", addr.port());
            match transport {
                TransportConfig::Quic => Finding::ok(
                    check,
                    format!("{addr} answers over UDP, by which this host dials"),
                ),
                TransportConfig::Auto => Finding::warning(check, what, advice),
                TransportConfig::Tcp => Finding::failed(check, what, advice),
            }
        }
        (Err(quic), Err(tcp)) => {
            let what = format!("neither UDP nor TCP reaches {addr}: {quic}; {tcp}");
            let advice = format!(
                "open port {} for UDP and TCP, and see that both hosts have certificates of one authority",
                addr.port()
            );
            Finding::failed(check, what, advice)
        }
    }
}

/// The largest datagram that reaches all origins, against what is configured.
fn mtu(least: Option<u16>, configured: QuicMtu) -> Finding {
    let check = "path MTU";
    let most = configured.bytes();
    let Some(least) = least else {
        return Finding::skipped(check, "no origin answers over UDP");
    };
    let what = format!("datagrams of {least} bytes pass, up to {most} are tried");
    if least < NARROW.min(most) {
        let advice = "a tunnel or an overlay network takes room from each packet, or larger ones are dropped \
                      without a word: raise the MTU of the network, or let ICMP \"fragmentation needed\" pass";
        return Finding::warning(check, what, advice);
    }
    if least < most && most != QuicOptions::DEFAULT_MTU {
        let advice = format!("set quic_mtu to {least}, or raise the MTU of the network");
        return Finding::warning(check, what, advice);
    }
    Finding::ok(check, what)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doctor::State;

    fn lost(addr: std::net::SocketAddr) -> NetError {
        let reason = "no answer within 4 s".to_string();
        NetError::Dial { addr, reason }
    }

    #[test]
    fn a_way_that_is_blocked_matters_to_those_who_use_it() {
        use TransportConfig::{Auto, Quic, Tcp};
        let addr = "10.0.0.1:7600".parse().unwrap();
        let tcp_only = PathProbe {
            quic: Err(lost(addr)),
            tcp: Ok(Duration::from_millis(1)),
        };
        for (transport, state) in [
            (Quic, State::Failed),
            (Auto, State::Warning),
            (Tcp, State::Ok),
        ] {
            let found = path("origin a", addr, &tcp_only, transport);
            assert_eq!(found.state, state);
            let named = found.what.contains("UDP to 10.0.0.1:7600 is blocked");
            assert_eq!(named, state != State::Ok, "{}", found.what);
        }
        let none = PathProbe {
            quic: Err(lost(addr)),
            tcp: Err(lost(addr)),
        };
        assert_eq!(path("origin a", addr, &none, Tcp).state, State::Failed);
        assert_eq!(away("origin a", "https://a", true).state, State::Warning);
        assert_eq!(away("origin a", "https://a", false).state, State::Failed);
    }

    #[test]
    fn a_narrow_path_is_named() {
        let set = |bytes| QuicMtu::try_from(bytes).unwrap();
        for (least, configured, state) in [
            (Some(8972), QuicMtu::default(), State::Ok),
            (Some(1472), QuicMtu::default(), State::Ok),
            (Some(1200), QuicMtu::default(), State::Warning),
            (Some(1200), set(1200), State::Ok),
            (Some(1452), set(8000), State::Warning),
            (None, set(1452), State::Skipped),
        ] {
            assert_eq!(mtu(least, configured).state, state, "{least:?}");
        }
    }
}
