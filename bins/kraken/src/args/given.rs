//! What was given, and what was not: variables that are empty, and addresses that are those of `kraken dev`.

use std::ffi::OsStr;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use kraken::Failure;

/// The arguments that say where something answers: how they are given, and what answers there.
const ADDRESSES: [(&str, &str, &str); 5] = [
    ("agent", "--agent or KRAKEN_AGENT", "an agent"),
    ("proxy", "--proxy or KRAKEN_PROXY", "the proxy"),
    ("origin", "--origin or KRAKEN_ORIGIN", "an origin"),
    (
        "build_index",
        "--build-index or KRAKEN_BUILD_INDEX",
        "the build-index",
    ),
    ("process", "--process or KRAKEN_PROCESS", "an agent"),
];

/// The same command, to which a variable that is empty is one that is not set.
pub(crate) fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(without_empty_variables)
}

/// What to say of a failure: where nobody answered, also which address was asked by default.
pub(crate) fn told(error: &Failure, matches: &ArgMatches) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    if let Failure::Away(_) = error {
        lines.extend(by_default(matches));
    }
    lines
}

/// An address that nobody named, and how to name another; nothing when all were named.
fn by_default(matches: &ArgMatches) -> Option<String> {
    let (_, matches) = matches.subcommand()?;
    if let Some(said) = by_default(matches) {
        return Some(said);
    }
    let is_there = |id: &str| matches.ids().any(|it| it == id);
    // All that is asked is then where the cluster in that directory has it.
    if is_there("dir") {
        return None;
    }
    ADDRESSES.into_iter().find_map(|(id, how, what)| {
        if !is_there(id) || matches.value_source(id) != Some(ValueSource::DefaultValue) {
            return None;
        }
        let asked = matches.get_raw(id)?.next()?.to_string_lossy();
        Some(format!(
            "no address was given: {asked} is where `kraken dev` has {what}; name another by {how}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Failure;
    use crate::args::Cli;

    #[test]
    fn every_address_that_has_a_default_is_told_with_how_to_name_another() {
        for (line, said) in [
            (
                "blob put f",
                "127.0.0.1:7602 is where `kraken dev` has the proxy",
            ),
            (
                "pull a:b d",
                "127.0.0.1:7610 is where `kraken dev` has an agent",
            ),
            (
                "tag ls a",
                "name another by --build-index or KRAKEN_BUILD_INDEX",
            ),
            ("gc", "https://127.0.0.1:7601 is where"),
            ("queue ls", "name another by --origin"),
            ("drain", "https://127.0.0.1:7900 is where"),
            ("store ls", "name another by --process"),
            ("top", "name another by --agent"),
            ("top --dir d", ""),
            ("tag ls a --build-index https://b", ""),
            ("tag --build-index https://b ls a", ""),
            ("sim p", ""),
            ("health http://a", ""),
        ] {
            let words = ["kraken"].into_iter().chain(line.split(' '));
            let matches = Cli::command().try_get_matches_from(words).unwrap();
            let told = super::told(&Failure::Away("silence".into()), &matches);
            assert_eq!((&*told[0], told.len() > 1), ("silence", !said.is_empty()));
            assert!(
                told[told.len() - 1].contains(said) || said.is_empty(),
                "{line}: {told:?}"
            );
            let refused = super::told(&Failure::Other("no".into()), &matches);
            assert_eq!(refused, ["no"]);
        }
    }
}
