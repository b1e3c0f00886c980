//! `kraken blob`.

use kraken::client::Registry;
use kraken::demo::Bars;
use kraken::layout::{self, Source};
use kraken::{Failure, link, place};

use crate::args::BlobCommand;
use crate::{or_stopped, say};

/// Pushes a file, or fetches one.
pub(crate) async fn put_or_get(command: BlobCommand) -> Result<(), Failure> {
    match command {
        BlobCommand::Put {
            file,
            digest,
            proxy,
            namespace,
            tls,
        } => {
            place::readable(&file)?;
            let registry = Registry::of(&proxy, &tls.caller()?)?;
            let bars = Bars::new(true);
            let file = (file.as_path(), digest, true);
            let pushed = layout::push_file(&registry, namespace.as_str(), file, &bars);
            let digest = pushed.await?;
            say(&format!("{digest}"))?;
        }
        BlobCommand::Get {
            digest,
            output,
            agent,
            namespace,
            link,
            tls,
        } => {
            let source = Source::of(&agent, link, &tls.caller()?)?;
            let path = output.unwrap_or_else(|| digest.hex().into());
            place::for_file(&path, &digest.hex())?;
            let bars = Bars::new(true);
            let saving = source.save_blob(namespace.as_str(), digest, &path, &bars);
            let saved = or_stopped(saving).await?;
            let how = saved
                .linked
                .map(|linked| format!(", which {}", link::said(linked)));
            let (bytes, how) = (saved.bytes, how.unwrap_or_default());
            say(&format!("{bytes} bytes in {}{how}", path.display()))?;
        }
    }
    Ok(())
}
