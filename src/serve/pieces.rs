//! Answers that come in pieces. The next one is made while the last one is on its way: two are in memory, whatever the client
//! does, and none any more once the answer is dropped.

use futures::Stream;
use futures::stream::unfold;
use tokio::task::JoinHandle;
use tonic::Status;

/// What an answer is made of, with all that it holds until its end.
pub(super) trait Pieces: Send + Sized + 'static {
    /// One of them.
    type Piece: Send + 'static;

    /// The next piece; `None` at the end. Blocks.
    fn next(&mut self) -> Result<Option<Self::Piece>, Status>;

    /// All that are left.
    fn send(self) -> impl Stream<Item = Result<Self::Piece, Status>> + Send + 'static {
        unfold(Some(ahead(self)), |next| async move {
            let made = next?.await.unwrap_or_else(|error| {
                Err(Status::internal(format!(
                    "making the answer broke: {error}"
                )))
            });
            match made {
                Ok((Some(piece), rest)) => Some((Ok(piece), Some(ahead(rest)))),
                Ok((None, _)) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

/// The next piece, and what the ones after it are made of.
type Made<P> = Result<(Option<<P as Pieces>::Piece>, P), Status>;

fn ahead<P: Pieces>(mut pieces: P) -> JoinHandle<Made<P>> {
    tokio::task::spawn_blocking(move || Ok((pieces.next()?, pieces)))
}
