//! What this process takes.

/// The memory that is resident and its own, without the files that are mapped, in bytes.
///
/// # Errors
/// The system does not say it.
pub fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| std::io::Error::other("there is no RssAnon in /proc/self/status"))
}
