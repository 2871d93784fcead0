//! Answers that come in pieces. A task makes them: nobody asks for the next one while a client takes nothing, so only a task of its
//! own can give up then what the answer holds.

use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use super::request::blocking;

/// What an answer is made of, with all that it holds until its end.
pub(super) trait Pieces: Send + Sized + 'static {
    /// One of them.
    type Piece: Send + 'static;

    /// What is going on, for the message that it broke.
    const WORK: &'static str;

    /// Whether it is known that there are no more, so that nobody need wait for a place to find that out.
    fn is_over(&self) -> bool {
        false
    }

    /// The next piece; `None` at the end. Blocks.
    fn next(&mut self) -> Result<Option<Self::Piece>, Status>;

    /// What is told of a client that took nothing for this long.
    fn given_up(&self, idle: Duration) -> String;

    /// Makes each piece when there is a place for it, and gives up when there was none for `idle`.
    fn send(
        mut self,
        idle: Duration,
    ) -> impl Stream<Item = Result<Self::Piece, Status>> + Send + 'static {
        let (pieces, taken) = mpsc::channel(1);
        let task: JoinHandle<Result<(), Status>> = tokio::spawn(async move {
            while !self.is_over() {
                let place = match tokio::time::timeout(idle, pieces.reserve()).await {
                    Ok(Ok(place)) => place,
                    // The client is gone.
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(Status::deadline_exceeded(self.given_up(idle))),
                };
                let (piece, rest) = blocking(move || Ok((self.next()?, self))).await?;
                self = rest;
                match piece {
                    Some(piece) => place.send(piece),
                    None => break,
                }
            }
            Ok(())
        });
        unfold(Some((taken, task)), |state| async move {
            let (mut taken, task) = state?;
            if let Some(piece) = taken.recv().await {
                return Some((Ok(piece), Some((taken, task))));
            }
            let end = task.await.unwrap_or_else(|error| {
                Err(Status::internal(format!("{} broke: {error}", Self::WORK)))
            });
            end.err().map(|error| (Err(error), None))
        })
    }
}
