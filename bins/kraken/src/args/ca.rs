//! What `kraken ca` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kraken::ca::Days;
use kraken_core::Zone;
use kraken_core::net::Role;

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Makes a new authority: DIR/ca.crt, which all processes get, and DIR/ca.key, which none does.
    Init {
        /// Where its files are.
        #[arg(long)]
        dir: PathBuf,
        /// The name of the cluster.
        #[arg(long, default_value = "Kraken")]
        name: String,
        /// How many days it is valid.
        #[arg(long, default_value = "3650")]
        days: Days,
        /// A file whose first line encrypts the key, and is needed for all that follows.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Issues a certificate: OUTDIR/NAME.crt, OUTDIR/NAME.key and OUTDIR/ca.crt.
    Issue {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// agent, origin, tracker, proxy, build-index, or operator for people and their tools.
        #[arg(long)]
        role: Role,
        /// Whose it is, such as origin-1.
        #[arg(long)]
        name: String,
        /// A DNS name or an address under which others reach it, several with several of these; the name
        /// alone when left out.
        #[arg(long = "host", value_name = "NAME-OR-IP")]
        hosts: Vec<String>,
        /// Where it stands: an agent or an origin can then announce no other zone.
        #[arg(long)]
        zone: Option<Zone>,
        /// How many days it is valid, at most as long as the authority.
        #[arg(long, default_value = "365")]
        days: Days,
        /// Where the files go.
        #[arg(long, value_name = "OUTDIR")]
        out: PathBuf,
        /// A file whose first line encrypts the key; tls.key_password of the process names it.
        #[arg(long, value_name = "FILE")]
        key_passphrase_file: Option<PathBuf>,
    },
    /// Puts a certificate that is valid from now on in the place of one, with the same key and names.
    Renew {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// The certificate.
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// The certificate of the authority that issued it, when that is another, which this one follows.
        #[arg(long, value_name = "FILE")]
        old_ca: Option<PathBuf>,
        /// How many days it is valid, at most as long as the authority.
        #[arg(long, default_value = "365")]
        days: Days,
    },
    /// Puts a certificate on DIR/ca.crl, which goes to all processes as tls.crl.
    Revoke {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// The certificate.
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
    },
    /// Says in words what a certificate is for, and until when, or what is on a list of revoked ones.
    Show {
        /// The certificate, or the list, such as DIR/ca.crl.
        file: PathBuf,
    },
}

/// Which authority.
#[derive(Debug, Args)]
pub(crate) struct AuthorityArgs {
    /// Where its files are.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// A file whose first line opens its key, if that is encrypted.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}
