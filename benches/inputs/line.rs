//! A long line: connections to another address, on which each byte arrives some time after it was sent.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// It ends when this is dropped.
pub(crate) struct Line {
    /// Its near end.
    pub(crate) near: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Line {
    /// A line to `far`, on which everything takes `delay` in each direction.
    pub(crate) async fn to(far: SocketAddr, delay: Duration) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let near = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((here, _)) = listener.accept().await {
                let there = TcpStream::connect(far).await.expect("the far end");
                connections.spawn(join(here, there, delay));
            }
        });
        Line {
            near,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

async fn join(here: TcpStream, there: TcpStream, delay: Duration) {
    for stream in [&here, &there] {
        stream.set_nodelay(true).expect("an option");
    }
    let (from_here, to_here) = here.into_split();
    let (from_there, to_there) = there.into_split();
    tokio::join!(
        carry(from_here, to_there, delay),
        carry(from_there, to_here, delay)
    );
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    delay: Duration,
) {
    // As much as is on its way; its length sets no bound to how much that is.
    let (send, mut receive) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let arrives = Instant::now() + delay;
            if send.send((arrives, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((arrives, bytes)) = receive.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
