//! What the numbers were measured on.

use std::fmt;
use std::fs;
use std::thread::available_parallelism;

use serde::Serialize;

/// As far as the system tells.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    pub(crate) cores: usize,
    memory_gib: u64,
    kernel: String,
    /// Of the last minute: others who used the machine.
    load: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_string())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory
            .split(' ')
            .next()
            .and_then(|it| it.parse::<u64>().ok());
        let load = read("/proc/loadavg");
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: cores(),
            memory_gib: kib.unwrap_or(0).div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            load: load.split(' ').next().unwrap_or_default().to_string(),
        }
    }
}

/// Takes so many bytes of memory, writes to them and gives them back. On a virtual machine, memory that was free for some
/// seconds may belong to the host again: the first write to each page of it then costs up to ten
/// times as much, and whoever runs next would pay.
pub(crate) fn warm_memory(bytes: usize) {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find(|it| it.starts_with("MemAvailable"));
    let kib = available.and_then(|it| it.split_whitespace().nth(1)?.parse::<usize>().ok());
    let most = (kib.unwrap_or(0) << 10) / 4 * 3;
    std::hint::black_box(vec![1_u8; bytes.min(most)]);
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            memory_gib,
            kernel,
            load,
        } = self;
        write!(
            f,
            "{cores} cores ({cpu}), {memory_gib} GiB, Linux {kernel}, load {load}"
        )
    }
}

pub(crate) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}
