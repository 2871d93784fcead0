//! One connection to the server: it counts towards how many there may be, and must soon say that it speaks HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::taken::Taken;

/// One connection, of either kind.
pub(super) struct Connection {
    wire: Wire,
    /// Until the client has said that it is one.
    greeting: Option<Greeting>,
    taken: Taken,
    _permit: OwnedSemaphorePermit,
}

/// The socket of a connection.
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The first bytes of a connection, which must come soon: one that stays silent would keep its permit from others for as long as
/// it likes, as it is asked for a sign of life only later.
struct Greeting {
    missing: usize,
    until: Pin<Box<Sleep>>,
}

/// The preface of HTTP/2 and the head of the frame that must follow, in bytes.
const GREETING: usize = 24 + 9;

impl Greeting {
    fn within(time: Duration) -> Self {
        Greeting {
            missing: GREETING,
            until: Box::pin(tokio::time::sleep(time)),
        }
    }
}

impl Connection {
    /// A connection that has just come in, and has `greeting` to say what it is.
    pub(super) fn new(wire: Wire, permit: OwnedSemaphorePermit, greeting: Duration) -> Self {
        Connection {
            wire,
            greeting: Some(Greeting::within(greeting)),
            taken: Taken::default(),
            _permit: permit,
        }
    }

    /// Once answers have given it up.
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        match self.taken.is_closed(context) {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.taken.add(bytes);
        }
        written
    }
}

impl Connected for Connection {
    /// With each request that comes in here.
    type ConnectInfo = Taken;

    fn connect_info(&self) -> Taken {
        self.taken.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        let read = match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Wire::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        let Some(greeting) = &mut self.greeting else {
            return read;
        };
        greeting.missing = (greeting.missing).saturating_sub(buffer.filled().len() - before);
        if greeting.missing == 0 {
            self.greeting = None;
        } else if greeting.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(context, data),
            Wire::Unix(stream) => Pin::new(stream).poll_write(context, data),
        };
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, data),
            Wire::Unix(stream) => Pin::new(stream).poll_write_vectored(context, data),
        };
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Wire::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Wire::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
