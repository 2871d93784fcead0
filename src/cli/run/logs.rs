//! The server's logs of an execution: the report of inputs as a file if it is wished for, the others by their digests.

use std::io::{Seek, Write};
use std::path::Path;

use super::super::exit::{Exit, Failure, printable};
use crate::action::INPUT_REPORT_LOG;
use crate::cas::{BlobSource, CasError};
use crate::config::units::rough_size;
use crate::reapi::any::unpack;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// Bytes of a report, which is in memory until all of it is here.
const MOST: u64 = 256 << 20;

/// Says which logs there are, but for the report that has a `place`.
pub(super) fn tell(response: &re::ExecuteResponse, place: Option<&Path>) {
    let mut logs: Vec<_> = response.server_logs.iter().collect();
    logs.sort_unstable_by_key(|(name, _)| *name);
    for (name, log) in logs {
        if place.is_some() && name == INPUT_REPORT_LOG {
            continue;
        }
        if let Some(digest) = &log.digest {
            let (name, hash) = (printable(name), printable(&digest.hash));
            eprintln!("boxwright: server log {name}: {hash}/{}", digest.size_bytes);
        }
    }
}

/// Writes the report to `place`.
pub(super) async fn write(
    cas: &dyn BlobSource,
    function: DigestFunction,
    response: &re::ExecuteResponse,
    place: &Path,
) -> Result<(), Failure> {
    let Some(log) = find(response) else {
        // Without a result there is more to be said than that.
        if response.result.is_some() {
            eprintln!("boxwright: the server has made no report of inputs");
        }
        return Ok(());
    };
    let digest = Digest::from_proto(function, log.digest.as_ref())
        .map_err(|e| Failure::new(Exit::Data, format!("the report of inputs: {e}")))?;
    if digest.size() > MOST {
        let text = format!(
            "the report of inputs has {}, and is not fetched: no report of a boxwright is larger than {}",
            rough_size(digest.size()),
            rough_size(MOST)
        );
        return Err(Failure::new(Exit::Data, text));
    }
    let failed = |error: std::io::Error| {
        let text = format!(
            "cannot write the report of inputs to {}: {error}",
            place.display()
        );
        Failure::new(Exit::CannotCreate, text)
    };
    // Into memory first: `place` may be a pipe or a device, and is not touched before all is here.
    let report = rustix::fs::memfd_create("boxwright", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    let mut report = std::fs::File::from(report);
    let mut unwritten = None;
    let mut sink = |piece: bytes::Bytes| {
        report.write_all(&piece).map_err(|error| {
            unwritten = Some(error);
            CasError::Missing(vec![digest])
        })
    };
    let streamed = cas.read_stream(digest, &mut sink).await;
    if let Some(error) = unwritten {
        return Err(failed(error));
    }
    streamed?;
    let copied = tokio::task::block_in_place(|| {
        report.rewind()?;
        std::io::copy(&mut report, &mut std::fs::File::create(place)?)
    });
    copied.map(drop).map_err(failed)
}

/// The report: among the logs, or in the result where a scheduler has no place for logs.
fn find(response: &re::ExecuteResponse) -> Option<re::LogFile> {
    if let Some(log) = response.server_logs.get(INPUT_REPORT_LOG) {
        return Some(log.clone());
    }
    let metadata = response.result.as_ref()?.execution_metadata.as_ref()?;
    let messages = metadata.auxiliary_metadata.iter();
    { messages }.find_map(|any| unpack::<re::LogFile>(any)?.ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reapi::any::pack;

    fn log(n: u8) -> re::LogFile {
        re::LogFile {
            digest: Some(DigestFunction::Sha256.digest(&[n]).to_proto()),
            human_readable: true,
        }
    }

    #[test]
    fn the_report_is_found_wherever_the_scheduler_put_it() {
        let in_result = re::ExecuteResponse {
            result: Some(re::ActionResult {
                execution_metadata: Some(re::ExecutedActionMetadata {
                    auxiliary_metadata: vec![pack(&re::Digest::default()), pack(&log(1))],
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(find(&in_result), Some(log(1)));
        let server_logs = [
            ("other".to_owned(), log(2)),
            (INPUT_REPORT_LOG.to_owned(), log(3)),
        ];
        let in_logs = re::ExecuteResponse {
            server_logs: server_logs.into(),
            ..in_result
        };
        assert_eq!(find(&in_logs), Some(log(3)));
        assert_eq!(find(&re::ExecuteResponse::default()), None);
    }
}
