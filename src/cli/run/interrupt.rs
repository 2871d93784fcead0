//! SIGINT and SIGTERM while `run` is at work. They are listened to from the first phase to the last: once a program has
//! asked for a signal it does not die of it any more, and must look at it for as long as it lives.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::exit::{Exit, Failure};

/// Both signals, from now on.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

/// One that came.
#[derive(Clone, Copy, Debug)]
pub(super) enum Interrupt {
    Interrupted,
    Terminated,
}

impl Interrupts {
    /// Within a runtime.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|e| Failure::new(Exit::Software, format!("cannot listen to signals: {e}")))
        };
        Ok(Interrupts {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Interrupted,
            _ = self.terminate.recv() => Interrupt::Terminated,
        }
    }
}

impl Interrupt {
    /// The end of the program; `found` is how far it was.
    pub(super) fn failure(self, found: &str) -> Failure {
        let (exit, what) = match self {
            Interrupt::Interrupted => (Exit::Interrupted, "interrupted"),
            Interrupt::Terminated => (Exit::Terminated, "terminated"),
        };
        Failure::new(exit, format!("{what}; {found}"))
    }
}
