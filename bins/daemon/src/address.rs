//! Addresses in the configuration: where something listens, or is dialled.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// What an address looks like to those who write one.
pub(crate) struct Address;

impl JsonSchema for Address {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "title": "IP:PORT", "examples": [EXAMPLE]})
    }
}

const EXAMPLE: &str = "0.0.0.0:7603";

/// `IP:PORT`; IPv6 in brackets.
///
/// # Errors
/// What is to be written instead.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| {
        let hint = hint(text.trim());
        format!("IP:PORT such as `{EXAMPLE}` is expected here{hint}")
    })
}

/// What is wrong with a text that is no address, when that is plain.
fn hint(text: &str) -> String {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let with_port = SocketAddr::new(ip, 7603);
        return format!(": the port is missing, as in `{with_port}`");
    }
    if text.contains("://") {
        return ": this is a URL".into();
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return String::new();
    };
    if port.parse::<u16>().is_err() {
        return format!(": a port is a number up to {}", u16::MAX);
    }
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => format!(": IPv6 goes in brackets, as in `[{host}]:{port}`"),
        _ if host.is_empty() => format!(": write `0.0.0.0:{port}` for all addresses of this host"),
        _ => ": a name is no IP".into(),
    }
}

/// Reads a key that has to be there.
pub(crate) fn required<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    address(&text).map_err(D::Error::custom)
}

/// Reads a key that may be absent.
pub(crate) fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let read = text.map(|text| address(&text)).transpose();
    read.map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_and_no_name() {
        assert_eq!(address("[::1]:7603"), Ok("[::1]:7603".parse().unwrap()));
        for (text, says) in [
            ("10.0.0.1", "the port is missing, as in `10.0.0.1:7603`"),
            ("::1", "the port is missing, as in `[::1]:7603`"),
            ("https://10.0.0.1:1", "this is a URL"),
            ("10.0.0.1:99999", "a port is a number up to 65535"),
            ("10.0.0.1:http", "a port is a number up to 65535"),
            ("fd00::a:7603", "the port is missing"),
            (
                "fd00:0:0:0:0:0:0:1:7603",
                "as in `[fd00:0:0:0:0:0:0:1]:7603`",
            ),
            (":7603", "write `0.0.0.0:7603`"),
            ("localhost:7603", "a name is no IP"),
            ("soon", "such as `0.0.0.0:7603` is expected here"),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.starts_with("IP:PORT such as"), "{text}: {error}");
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
