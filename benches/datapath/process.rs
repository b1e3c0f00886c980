//! Children, what they say, and what they use.
//!
//! A side that sends says `ready …` and then, when its input ends, `cpu SECONDS`. One that receives
//! says `ready`, waits for a line, and says `done WALL CPU` or `stalled`. Both count from the moment
//! at which they are ready.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use rustix::time::{ClockId, clock_gettime};

use crate::Outcome;
use crate::measure::Sample;

/// A side of a transfer. Dropping it ends it.
pub(crate) struct Child {
    child: std::process::Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// This program in another role.
    pub(crate) fn role<I, S>(arguments: I) -> Outcome<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Self::spawn(Command::new(std::env::current_exe()?).args(arguments))
    }

    /// Any program.
    pub(crate) fn spawn(command: &mut Command) -> Outcome<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("a child without its output")?;
        Ok(Self {
            child,
            input,
            lines: BufReader::new(output).lines(),
        })
    }

    /// What the child says next: the words behind `expected`.
    pub(crate) fn hear(&mut self, expected: &str) -> Outcome<Vec<String>> {
        let line = self.lines.next().ok_or("a child ended early")??;
        let mut words = line.split(' ').map(str::to_string);
        if words.next().as_deref() == Some(expected) {
            return Ok(words.collect());
        }
        Err(format!("a child says {line:?} and not {expected:?}").into())
    }

    /// Lets one that receives begin.
    pub(crate) fn go(&mut self) -> Outcome<()> {
        self.tell("go")
    }

    /// Says a line to the child.
    pub(crate) fn tell(&mut self, line: &str) -> Outcome<()> {
        let input = self.input.as_mut().ok_or("the child's input has ended")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// The most memory that the child has had, in bytes.
    pub(crate) fn peak_memory(&self) -> Outcome<u64> {
        peak_memory(self.child.id())
    }

    /// What the child has read from files so far, in bytes; what comes over sockets is not counted.
    pub(crate) fn file_bytes_read(&self) -> Outcome<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let line = io.lines().find_map(|line| line.strip_prefix("rchar:"));
        Ok(line.ok_or("no rchar")?.trim().parse()?)
    }

    /// Wall and processor seconds of one that has received everything.
    pub(crate) fn done(&mut self) -> Outcome<(f64, f64)> {
        match self.hear("done")?.as_slice() {
            [wall, cpu] => Ok((wall.parse()?, cpu.parse()?)),
            other => Err(format!("done, but {other:?}").into()),
        }
    }

    /// Ends one that sends, and says what it has used.
    pub(crate) fn end(mut self) -> Outcome<f64> {
        drop(self.input.take());
        let words = self.hear("cpu")?;
        Ok(words.first().ok_or("no number")?.parse()?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs one side that sends and one that receives.
pub(crate) fn pair(
    mut seed: Child,
    leech: impl FnOnce(&[String]) -> Outcome<Child>,
) -> Outcome<Sample> {
    let words = seed.hear("ready")?;
    let mut leech = leech(&words)?;
    leech.hear("ready")?;
    leech.go()?;
    let (wall, cpu) = leech.done()?;
    Ok(Sample {
        wall,
        seed: seed.end()?,
        leech: cpu,
    })
}

/// In a child: runs one side on a runtime as the daemons have it, with threads of that name for
/// whoever looks at a profile.
pub(crate) fn run(side: &str, work: impl Future<Output = Outcome<()>>) -> Outcome<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().thread_name(side);
    runtime.build()?.block_on(work)
}

/// In a child: waits for a line, or for the end of the input.
pub(crate) async fn next_line() -> Outcome<Option<String>> {
    let read = || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line)?;
        Ok((read > 0).then(|| line.trim_end().to_string()))
    };
    tokio::task::spawn_blocking(read).await?
}

/// What this process has used so far, all its threads and the kernel on its behalf, in seconds.
pub(crate) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most memory that a process has had, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmHWM")?.parse::<u64>()? << 10)
}

/// A directory for one run's files, gone afterwards.
pub(crate) fn scratch(dir: &Path) -> Outcome<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("run-").tempdir_in(dir)?)
}
