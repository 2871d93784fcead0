//! The command's output: while it is written, where the server streams it, else at the end; every byte once.
//!
//! A live stream ends early when it cannot keep up (those of other workers may leave pieces out), and the result always has all. So
//! whatever was shown is compared, by its hash, with the beginning of the result: what follows is shown then. If it is
//! not the beginning, pieces are gone: that is said, and fails if standard output is a pipe, whose
//! reader would otherwise take what it got for the whole.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::super::exit::{Exit, Failure};
use super::super::progress::Progress;
use crate::cas::{BlobSource, CasError};
use crate::config::Line;
use crate::reapi::digest::Hasher;
use crate::reapi::proto::bytestream::ReadRequest;
use crate::reapi::proto::bytestream::byte_stream_client::ByteStreamClient;
use crate::reapi::proto::re;
use crate::reapi::{Digest, DigestFunction};

/// Both streams.
pub(super) struct Live {
    readable: Option<Line>,
    progress: Progress,
    stop: CancellationToken,
    out: Mutex<Stream>,
    err: Mutex<Stream>,
}

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Out,
    Err,
}

/// One stream that may be followed.
struct Stream {
    which: Which,
    name: String,
    reader: Option<JoinHandle<Shown>>,
}

/// What was shown of a stream.
#[derive(Clone)]
struct Shown {
    hasher: Hasher,
    broken: Option<String>,
}

impl Live {
    /// `readable` is where streams are read; `None` shows everything at the end.
    pub(super) fn new(readable: Option<Line>, progress: Progress) -> Self {
        let stream = |which| {
            Mutex::new(Stream {
                which,
                name: String::new(),
                reader: None,
            })
        };
        Live {
            readable,
            progress,
            stop: CancellationToken::new(),
            out: stream(Which::Out),
            err: stream(Which::Err),
        }
    }

    /// The names under which the server streams, as far as it has told; empty if it does not.
    pub(super) fn follow(&self, out: &str, err: &str) {
        let Some(line) = &self.readable else {
            return;
        };
        for (stream, name) in [(&self.out, out), (&self.err, err)] {
            let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
            // A command that is started again elsewhere has other names: its output is shown at the end, as far as it
            // agrees with what was shown of the first.
            if name.is_empty() || !stream.name.is_empty() || !stream.which.worth_it() {
                continue;
            }
            stream.name = name.to_owned();
            let reader = Reader {
                which: stream.which,
                name: name.to_owned(),
                line: line.clone(),
                progress: self.progress.clone(),
                stop: self.stop.clone(),
                shown: Shown::nothing(),
            };
            stream.reader = Some(tokio::spawn(reader.run()));
        }
    }

    /// Shows what was not shown yet.
    pub(super) async fn finish(
        self,
        cas: &dyn BlobSource,
        function: DigestFunction,
        result: &re::ActionResult,
    ) -> Result<(), Failure> {
        self.stop.cancel();
        let mut failed = Ok(());
        let streams = [
            (self.out, &result.stdout_raw, &result.stdout_digest),
            (self.err, &result.stderr_raw, &result.stderr_digest),
        ];
        for (stream, raw, digest) in streams {
            let mut stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
            let shown = match stream.reader.take() {
                Some(reader) => reader.await.unwrap_or_else(|_| Shown::nothing()),
                None => Shown::nothing(),
            };
            let done = rest(stream.which, shown, cas, function, raw, digest.as_ref()).await;
            failed = failed.and(done);
        }
        failed
    }
}

impl Shown {
    fn nothing() -> Self {
        Shown {
            hasher: DigestFunction::Sha256.hasher(),
            broken: None,
        }
    }
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Which::Out => "standard output",
            Which::Err => "standard error",
        }
    }

    /// Nobody watches a regular file: it gets the whole at the end, without gaps.
    fn worth_it(self) -> bool {
        let kind = match self {
            Which::Out => rustix::fs::fstat(std::io::stdout().as_fd()),
            Which::Err => rustix::fs::fstat(std::io::stderr().as_fd()),
        };
        kind.is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile
        })
    }

    fn write(self, data: &[u8]) -> std::io::Result<()> {
        match self {
            Which::Out => {
                let mut out = std::io::stdout().lock();
                out.write_all(data).and_then(|()| out.flush())
            }
            Which::Err => std::io::stderr().write_all(data),
        }
    }

    fn unwritable(self, error: &str) -> Failure {
        Failure::new(
            Exit::Io,
            format!("cannot write the command's {}: {error}", self.name()),
        )
    }
}

/// Copies a stream to where it belongs.
struct Reader {
    which: Which,
    name: String,
    line: Line,
    progress: Progress,
    stop: CancellationToken,
    shown: Shown,
}

impl Reader {
    async fn run(mut self) -> Shown {
        // A stream may be announced before it exists, and its connection may break.
        for _ in 0..20 {
            match self.read().await {
                Ok(()) => break,
                Err(Code::NotFound | Code::Unavailable | Code::Unknown | Code::Internal) => {}
                // The server streams elsewhere or not at all: the result has everything.
                Err(_) => break,
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
        self.shown
    }

    /// Until the stream ends, or the command does.
    async fn read(&mut self) -> Result<(), Code> {
        let mut client = ByteStreamClient::new(self.line.clone());
        let request = ReadRequest {
            resource_name: self.name.clone(),
            read_offset: self.shown.hasher.size() as i64,
            read_limit: 0,
        };
        let stop = self.stop.clone();
        let reply = tokio::select! {
            reply = client.read(request) => reply,
            () = stop.cancelled() => return Ok(()),
        };
        let mut stream = reply.map_err(|status| status.code())?.into_inner();
        loop {
            let piece = tokio::select! {
                piece = stream.message() => piece.map_err(|status| status.code())?,
                () = stop.cancelled() => return Ok(()),
            };
            let Some(piece) = piece else {
                return Ok(());
            };
            if piece.data.is_empty() {
                continue;
            }
            self.progress.clear();
            let which = self.which;
            let data = piece.data.clone();
            let written = tokio::task::spawn_blocking(move || which.write(&data)).await;
            match written {
                Ok(Ok(())) => self.shown.hasher.update(&piece.data),
                Ok(Err(error)) => {
                    self.shown.broken = Some(error.to_string());
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Shows what follows what was shown.
async fn rest(
    which: Which,
    shown: Shown,
    cas: &dyn BlobSource,
    function: DigestFunction,
    raw: &Bytes,
    digest: Option<&re::Digest>,
) -> Result<(), Failure> {
    if let Some(error) = shown.broken {
        return Err(which.unwritable(&error));
    }
    let digest = match digest {
        Some(digest) if raw.is_empty() => {
            Digest::from_proto(function, Some(digest)).map_err(|e| {
                Failure::new(
                    Exit::Data,
                    format!("the {} of the command: {e}", which.name()),
                )
            })?
        }
        _ => {
            let mut rest = Rest::new(which, shown);
            rest.take(raw)?;
            return rest.end(None);
        }
    };
    let mut rest = Rest::new(which, shown);
    let mut failed = None;
    if !digest.is_empty() {
        let mut sink = |piece: Bytes| {
            rest.take(&piece).map_err(|failure| {
                failed = Some(failure);
                CasError::Missing(vec![digest])
            })
        };
        let streamed = cas.read_stream(digest, &mut sink).await;
        if let Some(failure) = failed {
            return Err(failure);
        }
        streamed?;
    }
    rest.end(Some(digest))
}

/// Takes the whole stream, and writes what is not known to be shown.
struct Rest {
    which: Which,
    shown: u64,
    expected: Digest,
    taken: Hasher,
    gap: bool,
}

impl Rest {
    fn new(which: Which, shown: Shown) -> Self {
        Rest {
            which,
            shown: shown.hasher.size(),
            expected: shown.hasher.finish(),
            taken: DigestFunction::Sha256.hasher(),
            gap: false,
        }
    }

    fn take(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let known = (self.shown - self.taken.size()).min(piece.len() as u64) as usize;
        let (known, new) = piece.split_at(known);
        self.taken.update(known);
        if new.is_empty() || self.gap {
            return Ok(());
        }
        if self.shown > 0 && self.taken.clone().finish() != self.expected {
            self.gap = true;
            return Ok(());
        }
        // The reader of a pipe takes its time; other tasks go on meanwhile.
        tokio::task::block_in_place(|| self.which.write(new))
            .map_err(|e| self.which.unwritable(&e.to_string()))
    }

    fn end(self, digest: Option<Digest>) -> Result<(), Failure> {
        // If as much or more was shown than was kept, nothing is left to show.
        let lost =
            self.gap || (self.taken.size() == self.shown && self.taken.finish() != self.expected);
        if !lost {
            return Ok(());
        }
        let how = match digest {
            Some(digest) => format!("boxwright cas get {digest} - has all of it"),
            None => "run it again with --no-live to have all of it".to_owned(),
        };
        let text = format!(
            "the command wrote its {} faster than the server streamed it, so parts of it are not shown; {how}",
            self.which.name()
        );
        if self.which == Which::Out && !std::io::stdout().is_terminal() {
            return Err(Failure::new(Exit::Io, text));
        }
        eprintln!("boxwright: {text}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Shown {
        let mut shown = Shown::nothing();
        shown.hasher.update(text.as_bytes());
        shown
    }

    #[test]
    fn only_what_is_the_beginning_is_left_out() {
        for (seen, pieces, gap) in [
            ("", ["", ""], false),
            ("ab", ["a", "b"], false),
            ("ax", ["ab", ""], true),
            ("ax", ["a", "bc"], true),
            // The stream ended where it did not keep up.
            ("ab", ["abc", "d"], false),
            // More was streamed than the worker kept.
            ("abc", ["ab", ""], false),
        ] {
            let mut rest = Rest::new(Which::Err, shown(seen));
            for piece in pieces {
                rest.take(piece.as_bytes()).unwrap();
            }
            let lost = rest.gap
                || (rest.taken.size() == rest.shown
                    && rest.taken.clone().finish() != rest.expected);
            assert_eq!(lost, gap, "{seen:?} {pieces:?}");
        }
    }
}
