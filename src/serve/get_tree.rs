//! GetTree: the Directory messages of a tree, each once, breadth first, page by page.
//!
//! A page token is the number of directories that were sent before: the order depends on the tree alone, so a later call
//! walks there again. The server keeps nothing between calls, and within one call only the digests that it has seen.
//! REAPI: "If part of the tree is missing from the CAS, the server will return the portion present and omit the rest."

use std::collections::{HashSet, VecDeque};
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::pieces::Pieces;
use super::request::{blocking, failed};
use crate::cas::LocalStore;
use crate::reapi::Digest;
use crate::reapi::proto::re;
use crate::tree::decode;

/// Bytes of Directory messages on a page; one that is larger has a page of its own.
const PAGE_BYTES: usize = 1 << 20;
/// Directories on a page if the client has no wish.
const PAGE: usize = 1000;
/// The largest Directory message, in bytes: it must fit into an answer, and one that does not is omitted like one that is missing.
const MAX_MESSAGE: u64 = (4 << 20) - (64 << 10);
/// The most directories in a tree.
const MAX_DIRECTORIES: usize = 1_000_000;
/// Walks that go on at a time; more wait, but not for long.
const WALKS: usize = 32;
/// Directories from which a tree is large: what a walk has seen of it takes some MiB.
const LARGE: usize = 50_000;
/// Walks over large trees that go on at a time.
const LARGE_WALKS: usize = 4;

/// A walk over a tree, as far as it got.
pub(super) struct Walk {
    waiting: VecDeque<Digest>,
    seen: HashSet<Digest>,
    /// Directories to pass over: the client has them.
    skip: u64,
    passed: u64,
    page: usize,
    /// A directory that did not fit on the last page.
    held: Option<re::Directory>,
    at_root: bool,
    /// For walks over large trees.
    large: Arc<Semaphore>,
    /// One of those places.
    place: Option<OwnedSemaphorePermit>,
}

impl Walk {
    /// Begins a walk where the token says.
    fn new(
        root: Digest,
        page_size: i32,
        token: &str,
        large: Arc<Semaphore>,
    ) -> Result<Self, Status> {
        let page = match usize::try_from(page_size) {
            Err(_) => return Err(Status::invalid_argument("page_size: it is negative")),
            Ok(0) => PAGE,
            Ok(size) => size.min(PAGE),
        };
        let skip = match token {
            "" => 0,
            token => token.parse().map_err(|_| {
                Status::invalid_argument("page_token: it is not one that this server gave")
            })?,
        };
        Ok(Walk {
            waiting: VecDeque::from([root]),
            seen: HashSet::from([root]),
            skip,
            passed: 0,
            page,
            held: None,
            at_root: true,
            large,
            place: None,
        })
    }

    /// The next directory that is there.
    fn next(&mut self, store: &LocalStore) -> Result<Option<re::Directory>, Status> {
        while let Some(digest) = self.waiting.pop_front() {
            let at_root = std::mem::take(&mut self.at_root);
            if digest.size() > MAX_MESSAGE {
                match at_root {
                    true => {
                        return Err(Status::resource_exhausted(format!(
                            "root_digest: directory {digest} is larger than the {MAX_MESSAGE} bytes that fit into an answer; \
                             read it as a blob"
                        )));
                    }
                    false => continue,
                }
            }
            let Some(bytes) = store.read(digest, MAX_MESSAGE).map_err(failed)? else {
                if at_root {
                    return Err(Status::not_found(format!(
                        "root_digest: directory {digest} is not in the CAS"
                    )));
                }
                continue;
            };
            let bad = |why: &dyn Display| {
                Status::invalid_argument(format!("blob {digest} is not a Directory: {why}"))
            };
            // First, for it allocates no more than what is in the message: the generated decoder turns two bytes of an empty node
            // into more than a hundred.
            let checked = decode(digest, &bytes).map_err(|error| bad(&error))?;
            for child in &checked.directories {
                if self.seen.insert(child.digest) {
                    self.waiting.push_back(child.digest);
                }
            }
            let directory = re::Directory::decode(bytes).map_err(|error| bad(&error))?;
            if self.seen.len() > LARGE && self.place.is_none() {
                let place = self.large.clone().try_acquire_owned();
                self.place = Some(place.map_err(|_| {
                    Status::unavailable(
                        "as many large trees are being read as may be at a time; try again later",
                    )
                })?);
            }
            if self.seen.len() > MAX_DIRECTORIES {
                return Err(Status::resource_exhausted(format!(
                    "the tree has more than {MAX_DIRECTORIES} directories; read them one by one"
                )));
            }
            return Ok(Some(directory));
        }
        Ok(None)
    }

    /// The next page; its token is empty on the last one.
    fn next_page(&mut self, store: &LocalStore) -> Result<re::GetTreeResponse, Status> {
        let mut directories = Vec::new();
        let mut bytes = 0;
        loop {
            let directory = match self.held.take() {
                Some(held) => held,
                None => match self.next(store)? {
                    Some(_) if self.passed < self.skip => {
                        self.passed += 1;
                        continue;
                    }
                    Some(directory) => directory,
                    None => {
                        return Ok(re::GetTreeResponse {
                            directories,
                            next_page_token: String::new(),
                        });
                    }
                },
            };
            let size = directory.encoded_len();
            let full = directories.len() >= self.page || bytes + size > PAGE_BYTES;
            if full && !directories.is_empty() {
                self.held = Some(directory);
                return Ok(re::GetTreeResponse {
                    directories,
                    next_page_token: self.passed.to_string(),
                });
            }
            bytes += size;
            self.passed += 1;
            directories.push(directory);
        }
    }
}

/// The walks that go on: each holds pages and digests in memory, so that they are bounded.
pub(super) struct Trees {
    walks: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// How long one waits for a place.
    patience: Duration,
}

/// Pages on their way.
pub(super) type Pages = Pin<Box<dyn Stream<Item = Result<re::GetTreeResponse, Status>> + Send>>;

impl Trees {
    pub(super) fn new(patience: Duration) -> Self {
        Trees {
            walks: Arc::new(Semaphore::new(WALKS)),
            large: Arc::new(Semaphore::new(LARGE_WALKS)),
            patience,
        }
    }

    /// All pages from where the token says. A failure on the first one ends the call.
    pub(super) async fn pages(
        &self,
        store: Arc<LocalStore>,
        root: Digest,
        page_size: i32,
        token: &str,
    ) -> Result<Pages, Status> {
        let walk = Walk::new(root, page_size, token, self.large.clone())?;
        let place = tokio::time::timeout(self.patience, self.walks.clone().acquire_owned());
        let place = place.await.map_err(|_| {
            Status::unavailable("as many trees are being read as may be at a time; try again later")
        })?;
        let mut pages = Paging {
            store,
            walk,
            first: None,
            ended: false,
            // The semaphore is never closed.
            _place: place.ok(),
        };
        let pages = blocking(move || {
            pages.first = pages.next()?;
            Ok(pages)
        });
        Ok(Box::pin(pages.await?.send()))
    }
}

/// A tree on its way out.
struct Paging {
    store: Arc<LocalStore>,
    walk: Walk,
    /// It was read before the answer began.
    first: Option<re::GetTreeResponse>,
    /// The last page was read.
    ended: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Pieces for Paging {
    type Piece = re::GetTreeResponse;

    fn next(&mut self) -> Result<Option<re::GetTreeResponse>, Status> {
        if self.first.is_some() {
            return Ok(self.first.take());
        }
        if self.ended {
            return Ok(None);
        }
        let page = self.walk.next_page(&self.store)?;
        self.ended = page.next_page_token.is_empty();
        Ok(Some(page))
    }
}
