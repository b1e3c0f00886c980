//! A switch with hosts in network namespaces, and what can go wrong between them.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Outcome;

/// The hosts' addresses are 10.77.0.1 and on; they exist in their namespaces only.
const NET: &str = "10.77.0";

/// Namespaces and the links between them; gone when this is dropped.
pub(crate) struct Net {
    prefix: String,
    hosts: usize,
}

/// What is wrong with a host's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Nothing gets through.
    Cut,
    /// Nothing from this other host arrives, and everything that is sent leaves.
    Deaf(usize),
    /// So many hundredths of what arrives are lost.
    Loss(u8),
    /// So many megabits per second leave.
    Slow(u32),
    /// What arrives waits for whoever takes it in from queue 1: see [`crate::delay`].
    Late,
    /// Nothing passes between it and these others.
    Apart(Vec<usize>),
}

impl Net {
    /// So many hosts at one switch. Needs root, `ip`, `tc` and `iptables`.
    pub(crate) fn new(hosts: usize) -> Outcome<Self> {
        let prefix = format!("kc{}", std::process::id());
        let net = Self { prefix, hosts };
        let switch = net.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for host in 1..=hosts {
            let (name, port) = (net.host(host), format!("p{host}"));
            ip(&["netns", "add", &name])?;
            let veth = ["type", "veth", "peer", "name", "e0", "netns", &name];
            ip(&[&["-n", &switch, "link", "add", &port][..], &veth[..]].concat())?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            let addr = format!("{}/24", addr(host));
            ip(&["-n", &name, "addr", "add", &addr, "dev", "e0"])?;
            ip(&["-n", &name, "link", "set", "e0", "up"])?;
        }
        Ok(net)
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.prefix)
    }

    fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// A command that runs at a host.
    pub(crate) fn at(&self, host: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let net = PathBuf::from("/run/netns").join(self.host(host));
        command.arg(format!("--net={}", net.display())).arg(program);
        command
    }

    /// Moves this thread to a host, and with it all that it starts from now on.
    pub(crate) fn enter(&self, host: usize) -> Outcome<()> {
        let net = File::open(PathBuf::from("/run/netns").join(self.host(host)))?;
        Ok(move_into_link_name_space(
            net.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// Breaks a host's link, or mends it.
    pub(crate) fn set(&self, host: usize, wrong: &Wrong, is_wrong: bool) -> Outcome<()> {
        let rule = if is_wrong { "-A" } else { "-D" };
        match wrong {
            Wrong::Cut => {
                let state = if is_wrong { "down" } else { "up" };
                ip(&[
                    "-n",
                    &self.switch(),
                    "link",
                    "set",
                    &format!("p{host}"),
                    state,
                ])
            }
            Wrong::Deaf(other) => {
                let from = addr(*other);
                run(self
                    .at(host, "iptables")
                    .args([rule, "INPUT", "-s", &from, "-j", "DROP"]))
            }
            Wrong::Loss(percent) => {
                let share = format!("0.{percent:02}");
                let random = [
                    "-m",
                    "statistic",
                    "--mode",
                    "random",
                    "--probability",
                    &share,
                ];
                let mut command = self.at(host, "iptables");
                run(command
                    .args([rule, "INPUT"])
                    .args(random)
                    .args(["-j", "DROP"]))
            }
            Wrong::Late => {
                let mut command = self.at(host, "iptables");
                let queue = ["-j", "NFQUEUE", "--queue-num", "1", "--queue-bypass"];
                run(command
                    .args(["-t", "mangle", rule, "PREROUTING", "-i", "e0"])
                    .args(queue))
            }
            Wrong::Apart(others) => {
                let others: Vec<_> = others.iter().copied().map(addr).collect();
                let others = others.join(",");
                for (chain, side) in [("INPUT", "-s"), ("OUTPUT", "-d")] {
                    let mut command = self.at(host, "iptables");
                    run(command.args([rule, chain, side, &others, "-j", "DROP"]))?;
                }
                Ok(())
            }
            Wrong::Slow(megabits) => {
                let mut command = self.at(host, "tc");
                command.args([
                    "qdisc",
                    if is_wrong { "add" } else { "del" },
                    "dev",
                    "e0",
                    "root",
                ]);
                if is_wrong {
                    let rate = format!("{megabits}mbit");
                    command.args(["tbf", "rate", &rate, "burst", "64kb", "latency", "100ms"]);
                }
                run(&mut command)
            }
        }
    }
}

/// The address of a host.
pub(crate) fn addr(host: usize) -> String {
    format!("{NET}.{host}")
}

fn ip(arguments: &[&str]) -> Outcome<()> {
    run(Command::new("ip").args(arguments))
}

fn run(command: &mut Command) -> Outcome<()> {
    let ran = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let ran = ran.map_err(|error| format!("{command:?}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    Err(format!(
        "{command:?}: {} (this needs root, iproute2 and iptables)",
        said.trim()
    )
    .into())
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in (1..=self.hosts)
            .map(|host| self.host(host))
            .chain([self.switch()])
        {
            let _ = Command::new("ip")
                .args(["netns", "del", &name])
                .stderr(Stdio::null())
                .status();
        }
    }
}
