//! One output stream of a command: read from a pipe as it comes, kept in memory while it is short, in a file once it
//! is not. Of one that is longer than the cap the beginning and the end are kept, half of the cap each, with a line between
//! them that says how much is not there. The command never waits for us longer than a disk write takes.
//!
//! Reading ends at the end of file or, once the launcher has said that the command is over, with what is in the
//! pipe then: a write end that found its way to some other process must not hold the worker up.

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use tokio_util::sync::CancellationToken;

use super::spill::{Ends, Spill};
use super::sys;
use crate::sandbox::{Captured, StreamSpec};

/// Most that is read at once: what a pipe holds.
const READ_MOST: usize = 64 * 1024;
/// Least room for a read.
const READ_LEAST: usize = 4 * 1024;
/// Written to the file at once.
const WRITE_SIZE: usize = 256 * 1024;

/// The end of a stream.
#[derive(Debug)]
pub(in crate::sandbox) struct Stream {
    pub(in crate::sandbox) captured: Captured,
    /// Bytes beyond the cap, which are missing in the middle.
    pub(in crate::sandbox) dropped: u64,
}

/// Reads a pipe until its end, or until `over` and nothing more is in it.
pub(in crate::sandbox) async fn capture(
    pipe: OwnedFd,
    spec: StreamSpec,
    over: &CancellationToken,
) -> io::Result<Stream> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let pipe = sys::watch(pipe)?;
    let mut keeper = Keeper {
        ends: Ends::of(spec.keep),
        spec,
        buffer: Vec::new(),
        spill: None,
        total: 0,
    };
    loop {
        let readable = tokio::select! {
            biased;
            () = over.cancelled() => None,
            ready = pipe.readable() => Some(ready?),
        };
        let Some(mut ready) = readable else {
            // Not through `pipe`: its readiness may lag behind what is in the pipe.
            let mut left = rustix::io::ioctl_fionread(pipe.get_ref())?;
            while left > 0 {
                match keeper.read(pipe.get_ref(), left.min(READ_MOST as u64) as usize) {
                    Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                    got => left = left.saturating_sub(got? as u64),
                }
                keeper.write_when_full().await?;
            }
            return keeper.finish().await;
        };
        match ready.try_io(|pipe| Ok(keeper.read(pipe.get_ref(), READ_MOST)?)) {
            Err(_not_ready) => continue,
            Ok(Ok(0)) => return keeper.finish().await,
            Ok(got) => got?,
        };
        keeper.write_when_full().await?;
    }
}

struct Keeper {
    spec: StreamSpec,
    ends: Ends,
    /// What was read and is not in the file.
    buffer: Vec<u8>,
    spill: Option<Spill>,
    /// Bytes read so far.
    total: u64,
}

impl Keeper {
    /// One read, of at most `most` bytes; 0 at the end of file.
    fn read(&mut self, pipe: &OwnedFd, most: usize) -> rustix::io::Result<usize> {
        let before = self.buffer.len();
        // Doubling, so that the short outputs of most commands take little.
        self.buffer
            .reserve(before.clamp(READ_LEAST, READ_MOST).min(most));
        let got =
            rustix::io::retry_on_intr(|| rustix::io::read(pipe, spare_capacity(&mut self.buffer)))?;
        let piece = &self.buffer[before..];
        if let Some(live) = &mut self.spec.live
            && got > 0
            // What was shown stays the beginning of the whole: readers go on from there in the result.
            && !live.piece(piece)
        {
            self.spec.live = None;
        }
        self.total += got as u64;
        Ok(got)
    }

    /// Moves what is too much for memory to the file.
    async fn write_when_full(&mut self) -> io::Result<()> {
        let full = match self.spill {
            None => self.buffer.len() > self.spec.memory,
            Some(_) => self.buffer.len() >= WRITE_SIZE,
        };
        if full { self.write().await } else { Ok(()) }
    }

    async fn write(&mut self) -> io::Result<()> {
        let spill = self.spill.take();
        let dir = self.spec.spill_dir.clone();
        let ends = self.ends;
        let mut buffer = std::mem::take(&mut self.buffer);
        let (spill, buffer) = blocking(move || {
            let mut spill = match spill {
                Some(spill) => spill,
                None => Spill::create(&dir, ends)?,
            };
            spill.write(&buffer)?;
            buffer.clear();
            Ok((spill, buffer))
        })
        .await?;
        self.spill = Some(spill);
        self.buffer = buffer;
        Ok(())
    }

    async fn finish(mut self) -> io::Result<Stream> {
        if self.spill.is_some() && !self.buffer.is_empty() {
            self.write().await?;
        }
        let captured = match self.spill.take() {
            Some(spill) => {
                let (dir, memory) = (self.spec.spill_dir, self.spec.memory);
                blocking(move || spill.finish(&dir, memory)).await?
            }
            None => {
                let mut buffer = std::mem::take(&mut self.buffer);
                self.ends.cut(&mut buffer);
                if buffer.capacity() > 2 * buffer.len() {
                    buffer.shrink_to_fit();
                }
                Captured::Memory(Bytes::from(buffer))
            }
        };
        Ok(Stream {
            captured,
            dropped: self.ends.left_out(self.total),
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;
    use tokio::sync::mpsc;

    fn spec(memory: usize, keep: u64, dir: &Path) -> StreamSpec {
        StreamSpec {
            memory,
            keep,
            spill_dir: dir.to_owned(),
            live: None,
        }
    }

    /// Writes `data` from a thread while it is captured.
    async fn captured(data: Vec<u8>, spec: StreamSpec) -> Stream {
        let (read, mut write) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || write.write_all(&data).unwrap());
        let stream = capture(read.into(), spec, &CancellationToken::new())
            .await
            .unwrap();
        writer.join().unwrap();
        stream
    }

    fn content(captured: Captured) -> Vec<u8> {
        match captured {
            Captured::Memory(bytes) => bytes.to_vec(),
            Captured::File { path, size } => {
                let content = std::fs::read(path).unwrap();
                assert_eq!(content.len() as u64, size);
                content
            }
        }
    }

    #[tokio::test]
    async fn short_stays_in_memory_and_long_goes_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        for (len, in_file) in [(0, false), (1000, false), (1001, true), (1_000_000, true)] {
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let stream = captured(data.clone(), spec(1000, u64::MAX, dir.path())).await;
            assert_eq!(matches!(stream.captured, Captured::File { .. }), in_file);
            assert_eq!(stream.dropped, 0);
            assert!(content(stream.captured) == data, "{len} bytes");
        }
    }

    #[tokio::test]
    async fn of_what_is_beyond_the_cap_both_ends_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..700_001).map(|i| (i % 251) as u8).collect();
        for (memory, keep) in [
            (10, 300_001),
            (1_000_000, 300_000),
            (400_000, 300_000),
            (10, 699_999),
            (10, 70),
            (10, 0),
            (0, 1),
            (0, 5),
        ] {
            let stream = captured(data.clone(), spec(memory, keep, dir.path())).await;
            let left_out = 700_001 - keep;
            assert_eq!(stream.dropped, left_out);
            let tail = (keep / 2) as usize;
            let head = keep as usize - tail;
            let line = format!("\n[boxwright: {left_out} bytes are left out here]\n");
            let expected = [&data[..head], line.as_bytes(), &data[data.len() - tail..]].concat();
            assert!(content(stream.captured) == expected, "{memory}, {keep}");
        }
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "files");
    }

    #[tokio::test]
    async fn what_just_fits_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..300_001).map(|i| (i % 251) as u8).collect();
        for memory in [10, 1_000_000] {
            let stream = captured(data.clone(), spec(memory, 300_001, dir.path())).await;
            assert_eq!(stream.dropped, 0);
            assert!(content(stream.captured) == data);
        }
    }

    #[tokio::test]
    async fn live_gets_the_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let (send, mut receive) = mpsc::channel(1000);
        let mut spec = spec(1 << 20, 10, dir.path());
        spec.live = Some(Box::new(send));
        let data = vec![7; 300_000];
        captured(data.clone(), spec).await;
        let mut live = Vec::new();
        while let Some(piece) = receive.recv().await {
            live.extend_from_slice(&piece);
        }
        assert!(live == data);
    }

    #[tokio::test]
    async fn what_is_shown_is_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let (send, mut receive) = mpsc::channel(1);
        let mut spec = spec(1 << 20, u64::MAX, dir.path());
        spec.live = Some(Box::new(send));
        let (read, mut write) = io::pipe().unwrap();
        let over = CancellationToken::new();
        let mut capture = std::pin::pin!(capture(read.into(), spec, &over));
        write.write_all(b"first").unwrap();
        while receive.is_empty() {
            assert!(futures::poll!(&mut capture).is_pending());
            tokio::task::yield_now().await;
        }
        // There is no place for this one.
        write.write_all(b"second").unwrap();
        while !receive.is_closed() && receive.sender_strong_count() > 0 {
            assert!(futures::poll!(&mut capture).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(receive.recv().await.unwrap(), "first");
        write.write_all(b"third").unwrap();
        drop(write);
        let stream = capture.await.unwrap();
        assert!(receive.recv().await.is_none());
        assert_eq!(content(stream.captured), b"firstsecondthird");
    }

    #[tokio::test]
    async fn a_write_end_elsewhere_does_not_hold_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(b"said before the end").unwrap();
        let over = CancellationToken::new();
        over.cancel();
        let stream = capture(read.into(), spec(100, 100, dir.path()), &over)
            .await
            .unwrap();
        assert_eq!(content(stream.captured), b"said before the end");
        drop(write);
    }

    #[tokio::test]
    async fn an_abandoned_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(&[1; 1000]).unwrap();
        let over = CancellationToken::new();
        let (send, mut receive) = mpsc::channel(1);
        let mut spec = spec(10, 100_000, dir.path());
        spec.live = Some(Box::new(send));
        let mut capture = Box::pin(capture(read.into(), spec, &over));
        // The piece is announced before it is written; the file is there once there is an entry in the directory.
        tokio::select! {
            _ = &mut capture => panic!("the pipe is open"),
            _ = async {
                receive.recv().await;
                while std::fs::read_dir(dir.path()).unwrap().next().is_none() {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        drop(capture);
        while std::fs::read_dir(dir.path()).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    }
}
