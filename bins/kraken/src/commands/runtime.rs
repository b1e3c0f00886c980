//! `kraken runtime`.

use std::process::ExitCode;

use kraken::Failure;
use kraken::runtime::{self, Mirror, Runtime, Said};

use crate::args::outside::RegistryTls;
use crate::args::{RuntimeArgs, RuntimeChoice, RuntimeCommand};
use crate::say;

/// Installs, checks or removes, and says what was done or found.
pub(crate) async fn runtimes(command: RuntimeCommand) -> Result<ExitCode, Failure> {
    let is_well = match command {
        RuntimeCommand::Install(args) => install(args).await?,
        RuntimeCommand::Check { choice, tls } => check(&choice, tls).await?,
        RuntimeCommand::Remove(choice) => {
            let root = choice.root.as_path();
            let is_well = each(&choice, |it| runtime::remove(root, it))?;
            runtime::forget(root)?;
            is_well
        }
    };
    Ok(ExitCode::from(u8::from(!is_well)))
}

async fn install(args: RuntimeArgs) -> Result<bool, Failure> {
    let root = args.choice.root.as_path();
    let mut mirror = Mirror {
        agent: args.agent,
        ca: None,
        docker: args.docker,
        upstreams: args.upstream,
    };
    if let Some(ca) = args.tls.ca.as_ref().filter(|_| mirror.agent.is_secure()) {
        let found = std::path::absolute(ca);
        mirror.ca = Some(found.map_err(Failure::io(format!("find {}", ca.display())))?);
    }
    let caller = args.tls.caller()?;
    let is_well = each(&args.choice, |it| runtime::install(root, it, &mirror))?;
    runtime::note(root, &mirror)?;
    let asked = runtime::ask(&mirror, &caller).await;
    if !tell("agent", &asked)? {
        // It may be started later: this fails no installation.
        eprintln!(
            "kraken: the runtimes are told of the agent at {}, which is not ready for them: see above, mend or start \
             it (or install again with another --agent), and look with kraken runtime check",
            mirror.agent
        );
    }
    Ok(is_well)
}

async fn check(choice: &RuntimeChoice, mut tls: RegistryTls) -> Result<bool, Failure> {
    let root = choice.root.as_path();
    let none = || Failure::Other("nothing is installed: run kraken runtime install".into());
    let mirror = runtime::noted(root)?.ok_or_else(none)?;
    tls.ca = tls.ca.or_else(|| mirror.ca.clone());
    let caller = tls.caller()?;
    let is_well = each(choice, |it| runtime::check(root, it, &mirror))?;
    Ok(is_well & tell("agent", &runtime::ask(&mirror, &caller).await)?)
}

/// Works on each of the runtimes; whether all is well.
fn each(
    choice: &RuntimeChoice,
    work: impl Fn(Runtime) -> Result<Vec<Said>, Failure>,
) -> Result<bool, Failure> {
    let runtimes = match choice.runtime.is_empty() {
        true => runtime::found(&choice.root),
        false => choice.runtime.clone(),
    };
    if runtimes.is_empty() {
        let what = format!(
            "no containerd, Podman, CRI-O or dockerd is configured below {}: name one with --runtime",
            choice.root.display()
        );
        return Err(Failure::Other(what));
    }
    let mut is_well = true;
    for each in runtimes {
        // The others are worth a try.
        let done = work(each).unwrap_or_else(|error| vec![Said::amiss(error.to_string())]);
        is_well &= tell(&each.to_string(), &done)?;
    }
    Ok(is_well)
}

/// Says what was done or found, and whether all of it is well.
fn tell(whose: &str, done: &[Said]) -> Result<bool, Failure> {
    for done in done {
        let mark = if done.is_well { "ok" } else { "AMISS" };
        say(&format!("{whose}: {mark}: {}", done.what))?;
    }
    Ok(done.iter().all(|done| done.is_well))
}
