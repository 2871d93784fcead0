//! Live output of running actions: written by the worker, followed by any number of readers.
//!
//! A stream keeps its last [`WINDOW`] bytes. A reader that follows closely loses nothing; one that comes later than that
//! is told where the stream begins now. A finished stream is kept for a moment, so that a reader who has just learned its
//! name still gets the rest; the whole output is in the action's result.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::sandbox::LiveSink;

/// Bytes of a stream that are kept for readers.
pub const WINDOW: usize = 1 << 20;
/// Bytes that a reader gets at a time.
const PIECE: usize = 64 << 10;
/// How long a finished stream can still be read.
const KEPT: Duration = Duration::from_secs(30);
/// How many finished streams, and how many bytes of them, are kept.
const KEPT_STREAMS: usize = 256;
const KEPT_BYTES: usize = 4 << 20;

/// All streams, by name.
#[derive(Default)]
pub struct LiveStreams {
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    streams: HashMap<String, Arc<Stream>>,
    finished: VecDeque<(Instant, String, usize)>,
    finished_bytes: usize,
}

struct Stream {
    buffer: Mutex<Buffer>,
    /// Changes whenever a reader may find more.
    news: watch::Sender<()>,
}

#[derive(Default)]
struct Buffer {
    data: VecDeque<u8>,
    /// The stream's offset of the first byte of `data`.
    start: u64,
    complete: bool,
}

impl Buffer {
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }
}

impl LiveStreams {
    /// Begins a stream.
    pub(super) fn open(&self, name: &str) {
        let stream = Arc::new(Stream {
            buffer: Mutex::default(),
            news: watch::Sender::new(()),
        });
        self.registry.lock().streams.insert(name.to_owned(), stream);
    }

    /// The writing end of a stream that was opened and has not ended.
    pub fn sink(&self, name: &str) -> Option<StreamSink> {
        let stream = self.registry.lock().streams.get(name)?.clone();
        let complete = stream.buffer.lock().complete;
        (!complete).then_some(StreamSink { stream })
    }

    /// Reads a stream from `offset` on; `None` if there is no such stream.
    pub fn follow(&self, name: &str, offset: u64) -> Option<Follower> {
        let stream = self.registry.lock().streams.get(name)?.clone();
        Some(Follower {
            news: stream.news.subscribe(),
            stream,
            offset,
        })
    }

    /// Forgets a stream that nobody was told of.
    pub(super) fn discard(&self, name: &str) {
        self.registry.lock().streams.remove(name);
    }

    /// Ends a stream; it can be read for a moment more.
    pub(super) fn finish(&self, name: &str) {
        let mut registry = self.registry.lock();
        let Some(stream) = registry.streams.get(name) else {
            return;
        };
        stream.end();
        let bytes = stream.buffer.lock().data.len();
        registry
            .finished
            .push_back((Instant::now(), name.to_owned(), bytes));
        registry.finished_bytes += bytes;
        while let Some((since, name, bytes)) = registry.finished.front() {
            if since.elapsed() < KEPT
                && registry.finished.len() <= KEPT_STREAMS
                && registry.finished_bytes <= KEPT_BYTES
            {
                break;
            }
            let (name, bytes) = (name.clone(), *bytes);
            registry.streams.remove(&name);
            registry.finished_bytes -= bytes;
            registry.finished.pop_front();
        }
    }
}

impl Stream {
    fn end(&self) {
        let mut buffer = self.buffer.lock();
        buffer.complete = true;
        buffer.data.shrink_to_fit();
        drop(buffer);
        self.news.send_replace(());
    }
}

/// The end of a live stream that is written to. Never waits: what nobody reads in time is forgotten.
/// Dropping it ends the stream.
pub struct StreamSink {
    stream: Arc<Stream>,
}

impl StreamSink {
    /// Appends output; ignored once the stream has ended.
    pub fn write(&self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut buffer = self.stream.buffer.lock();
        if buffer.complete {
            return;
        }
        let kept = &data[data.len().saturating_sub(WINDOW)..];
        let over = (buffer.data.len() + kept.len()).saturating_sub(WINDOW);
        buffer.data.drain(..over);
        buffer.start += (over + data.len() - kept.len()) as u64;
        buffer.data.extend(kept);
        drop(buffer);
        self.stream.news.send_replace(());
    }
}

impl LiveSink for StreamSink {
    fn piece(&mut self, piece: &[u8]) -> bool {
        self.write(piece);
        true
    }
}

impl Drop for StreamSink {
    fn drop(&mut self) {
        self.stream.end();
    }
}

/// A reader's place in a stream.
pub struct Follower {
    stream: Arc<Stream>,
    news: watch::Receiver<()>,
    offset: u64,
}

/// The bytes at a reader's place are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// They are forgotten.
    #[error("the live output before offset {first} is no longer kept; read from offset {first} on")]
    Forgotten {
        /// The first offset that can be read.
        first: u64,
    },
    /// The stream ended before them.
    #[error("the live output ended at offset {end}")]
    BeyondEnd {
        /// How long the stream is.
        end: u64,
    },
}

impl Follower {
    /// The next bytes, waiting for them as long as the action runs; `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        loop {
            self.news.borrow_and_update();
            {
                let buffer = self.stream.buffer.lock();
                if self.offset < buffer.start {
                    return Err(StreamError::Forgotten {
                        first: buffer.start,
                    });
                }
                if self.offset < buffer.end() {
                    let at = (self.offset - buffer.start) as usize;
                    let upto = buffer.data.len().min(at + PIECE);
                    let piece: Bytes = buffer.data.range(at..upto).copied().collect();
                    self.offset += piece.len() as u64;
                    return Ok(Some(piece));
                }
                if buffer.complete {
                    return match self.offset == buffer.end() {
                        true => Ok(None),
                        false => Err(StreamError::BeyondEnd { end: buffer.end() }),
                    };
                }
            }
            if self.news.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_sees_what_is_written_until_the_end() {
        let streams = LiveStreams::default();
        streams.open("s");
        let mut follower = streams.follow("s", 0).unwrap();
        let sink = streams.sink("s").unwrap();
        sink.write(b"one");
        assert_eq!(&follower.next().await.unwrap().unwrap()[..], b"one");
        let (more, ()) = tokio::join!(follower.next(), async { sink.write(b"two") });
        assert_eq!(&more.unwrap().unwrap()[..], b"two");
        drop(sink);
        assert_eq!(follower.next().await, Ok(None));
        let mut late = streams.follow("s", 4).unwrap();
        assert_eq!(&late.next().await.unwrap().unwrap()[..], b"wo");
        assert!(streams.sink("s").is_none());
    }

    #[tokio::test]
    async fn what_is_forgotten_is_said() {
        let streams = LiveStreams::default();
        streams.open("s");
        let sink = streams.sink("s").unwrap();
        sink.write(&vec![1; WINDOW]);
        sink.write(b"abc");
        assert_eq!(
            streams.follow("s", 0).unwrap().next().await,
            Err(StreamError::Forgotten { first: 3 })
        );
        sink.write(&vec![2; 3 * WINDOW]);
        assert_eq!(
            streams.follow("s", 0).unwrap().next().await,
            Err(StreamError::Forgotten {
                first: 3 * WINDOW as u64 + 3
            })
        );
        drop(sink);
        let end = 4 * WINDOW as u64 + 3;
        assert_eq!(
            streams.follow("s", end + 1).unwrap().next().await,
            Err(StreamError::BeyondEnd { end })
        );
    }

    #[test]
    fn finished_streams_are_bounded() {
        let streams = LiveStreams::default();
        for i in 0..2 * KEPT_STREAMS {
            let name = i.to_string();
            streams.open(&name);
            streams.sink(&name).unwrap().write(&[0; 100]);
            streams.finish(&name);
        }
        assert_eq!(streams.registry.lock().streams.len(), KEPT_STREAMS);
        assert!(streams.follow("0", 0).is_none());
    }
}
