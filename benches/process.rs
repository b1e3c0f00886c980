//! What the programs share that start themselves as the processes of a cluster.

use std::process::{Child, ExitCode};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// Why something was not done.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What was done, or why it was not.
pub type Outcome<T> = Result<T, Failure>;

/// Does `work` to its end.
///
/// # Errors
/// No thread can be had, or what `work` gives.
pub fn on_runtime<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// 0 when all was well, 1 when it was not or the program `name` failed, which it then says.
#[expect(clippy::print_stderr, reason = "a measuring tool")]
pub fn exit_code(name: &str, ran: Outcome<bool>) -> ExitCode {
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In a child: it ends with its parent, as nobody else would end it.
///
/// # Errors
/// The kernel refuses.
pub fn end_with_parent() -> Outcome<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// SIGSTOP or SIGCONT.
///
/// # Errors
/// There is no such process.
pub fn pause(child: &Child, is_paused: bool) -> Outcome<()> {
    signal(
        child,
        match is_paused {
            true => Signal::STOP,
            false => Signal::CONT,
        },
    )
}

/// Sends a signal.
///
/// # Errors
/// There is no such process.
pub fn signal(child: &Child, signal: Signal) -> Outcome<()> {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(kill_process(id.ok_or("no such process")?, signal)?)
}
