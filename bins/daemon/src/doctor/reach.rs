//! Whether this host answers where its peers are told to dial it.

use std::net::SocketAddr;

use kraken_core::net::PathProbe;

use super::{Doctor, Finding};

const CHECK: &str = "way in";

/// Dials this host as a peer would.
pub(super) async fn look(doctor: &Doctor) -> Vec<Finding> {
    let own = doctor.agent.local();
    let probe = doctor.transport.probe(own).await;
    vec![judge(own.addr, &probe)]
}

/// Only a warning: from here some routers lead nowhere that others come in by, and what is pulled comes in
/// all the same, by connections that begin here.
fn judge(addr: SocketAddr, PathProbe { quic, tcp }: &PathProbe) -> Finding {
    let port = addr.port();
    let (way, error) = match (quic, tcp) {
        (Ok(_), Ok(_)) => {
            let what = format!("{addr}, where peers dial it, answers over UDP and TCP");
            return Finding::ok(CHECK, what);
        }
        (Err(error), Ok(_)) => ("UDP", error),
        (Ok(_), Err(error)) => ("TCP", error),
        (Err(error), Err(_)) => ("UDP and TCP", error),
    };
    let what =
        format!("{addr}, where peers are told to dial it, does not answer over {way}: {error}");
    let advice = format!(
        "correct advertise, or let {way} to port {port} in; until then it gives little to others"
    );
    Finding::warning(CHECK, what, advice)
}
