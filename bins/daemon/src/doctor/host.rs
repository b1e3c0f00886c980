//! Whether the kernel lets this process have what it needs.

use std::fs;

use kraken_core::net::quic::SOCKET_BUFFER;

use super::Finding;

/// Open files below which a busy agent may stop taking connections.
const FILES: u64 = 4096;
/// Open files below which it hardly works.
const FEWEST: u64 = 256;

/// Looks at the limits of the host and of this process.
#[expect(clippy::unused_async, reason = "as the other looks")]
pub(crate) async fn look() -> Vec<Finding> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let [receive, send] = ["rmem_max", "wmem_max"].map(|name| read(name).and_then(number));
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    vec![buffers(receive.zip(send)), files(open_files(&limits))]
}

fn buffers(most: Option<(u64, u64)>) -> Finding {
    let check = "UDP buffers";
    let wanted = SOCKET_BUFFER as u64;
    match most {
        None => Finding::skipped(
            check,
            "/proc/sys/net/core does not say how large they may be",
        ),
        Some((receive, send)) if receive.min(send) < wanted => {
            let what = format!(
                "net.core.rmem_max is {receive} and net.core.wmem_max {send}: packets are lost at high rates"
            );
            let advice = format!(
                "set both to {wanted}, as deploy/sysctl/60-kraken.conf does, and restart the agent"
            );
            Finding::warning(check, what, advice)
        }
        Some(_) => Finding::ok(check, format!("{wanted} bytes may be had")),
    }
}

/// The soft limit of open files, of the text in `/proc/self/limits`.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn files(most: Option<u64>) -> Finding {
    let check = "open files";
    let advice = "raise it: LimitNOFILE=65536 in the unit, or ulimit -n";
    match most {
        None => Finding::skipped(
            check,
            "/proc/self/limits does not say how many this process may have",
        ),
        Some(most) if most < FEWEST => {
            Finding::failed(check, format!("this process may have {most} only"), advice)
        }
        Some(most) if most < FILES => {
            Finding::warning(check, format!("this process may have {most} only"), advice)
        }
        Some(u64::MAX) => Finding::ok(check, "no limit"),
        Some(most) => Finding::ok(check, format!("this process may have {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn limits_are_read_and_judged() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max processes             100                  100                  processes\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(
            open_files("Max open files unlimited unlimited files"),
            Some(u64::MAX)
        );
        assert_eq!(open_files(""), None);
        for (most, state) in [
            (Some(100), State::Failed),
            (Some(1024), State::Warning),
            (Some(65_536), State::Ok),
            (None, State::Skipped),
        ] {
            assert_eq!(files(most).state, state);
        }
        assert_eq!(buffers(Some((4 << 20, 4 << 20))).state, State::Ok);
        let small = buffers(Some((212_992, 4 << 20)));
        assert_eq!(small.state, State::Warning);
        assert!(small.what.contains("212992"));
        assert_eq!(buffers(None).state, State::Skipped);
    }
}
