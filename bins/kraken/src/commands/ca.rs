//! What `kraken ca` does.

use kraken::Failure;
use kraken::ca::{self, Authority, Wanted};

use crate::args::ca::{AuthorityArgs, CaCommand};
use crate::say;

/// Makes an authority, lets it issue, renew and revoke, and shows what certificates say.
pub(crate) fn work_on_certificates(command: CaCommand) -> Result<(), Failure> {
    match command {
        CaCommand::Init {
            dir,
            name,
            days,
            passphrase_file,
        } => {
            Authority::init(&dir, &name, (days, passphrase_file.as_deref()))?;
            let dir = dir.display();
            say(&format!(
                "{dir}/ca.crt goes to all processes; keep {dir}/ca.key where none of them is"
            ))
        }
        CaCommand::Issue {
            authority,
            role,
            name,
            hosts,
            zone,
            days,
            out,
            key_passphrase_file,
        } => {
            let wanted = Wanted {
                role,
                name,
                hosts,
                zone,
                days,
                key_passphrase: key_passphrase_file,
            };
            let cert = open(&authority)?.issue(&wanted, &out)?;
            say(&ca::told(&cert)?)
        }
        CaCommand::Renew {
            authority,
            cert,
            old_ca,
            days,
        } => {
            open(&authority)?.renew(&cert, (old_ca.as_deref(), days))?;
            say(&ca::told(&cert)?)
        }
        CaCommand::Revoke { authority, cert } => {
            let list = open(&authority)?.revoke(&cert)?;
            let (cert, list) = (cert.display(), list.display());
            say(&format!("{cert} is on {list}, which goes to all processes"))
        }
        CaCommand::Show { file } => say(&ca::told(&file)?),
    }
}

fn open(args: &AuthorityArgs) -> Result<Authority, Failure> {
    Authority::open(&args.dir, args.passphrase_file.as_deref())
}
