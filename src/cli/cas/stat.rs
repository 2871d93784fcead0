//! `boxwright cas stat`.

use std::process::ExitCode;

use clap::Args;

use super::super::Done;
use super::super::blobs;
use super::super::exit::Exit;
use super::{Where, kind};
use crate::reapi::Digest;

/// Say which blobs are there, and what they seem to be; exit code 1 if one is missing
#[derive(Debug, Args)]
pub(super) struct Stat {
    /// The blobs, as HASH/SIZE
    #[arg(required = true)]
    digests: Vec<Digest>,
    #[command(flatten)]
    cas: Where,
}

impl Stat {
    pub(super) async fn run(self) -> Done {
        self.cas
            .with(async |cas| {
                let missing = cas.find_missing(&self.digests).await?;
                for &digest in &self.digests {
                    if missing.contains(&digest) {
                        println!("{digest:?}  missing");
                        continue;
                    }
                    let kind = match digest.size() <= kind::GUESSED {
                        true => {
                            let data = blobs::read(&*cas, digest, kind::GUESSED, "a guess").await?;
                            kind::guess(digest, &data).to_string()
                        }
                        false => "large".to_owned(),
                    };
                    println!("{digest:?}  present  {} bytes  {kind}", digest.size());
                }
                Ok(match missing.is_empty() {
                    true => ExitCode::SUCCESS,
                    false => ExitCode::from(Exit::Failed as u8),
                })
            })
            .await
    }
}
