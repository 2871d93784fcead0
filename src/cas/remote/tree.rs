//! GetTree: the Directory messages of a tree in one call, where the server can do it.
//!
//! The messages come decoded, so each is encoded again and named by the digest of that. A server or client that
//! encodes differently gives names that nobody asks for; the caller then reads those messages one by one.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use super::retry::is_transient;
use super::{Load, RemoteCas, cas_client};
use crate::cas::CasError;
use crate::reapi::Digest;
use crate::reapi::proto::re;

const CALL: &str = "GetTree";

/// More than this is not taken from one call; the caller reads the rest itself.
const LARGEST_TREE: usize = 32 << 20;

/// See [`crate::cas::BlobSource::get_tree`].
pub(super) async fn get_tree(
    cas: &RemoteCas,
    root: Digest,
) -> Result<Option<Vec<(Digest, Bytes)>>, CasError> {
    let limits = cas.limits().await?;
    cas.check_functions(CALL, &limits, std::iter::once(root))?;
    let mut so_far = Received::default();
    let mut retry = cas.retry();
    loop {
        let known = so_far.messages.len();
        let status = match one_try(cas, root, &mut so_far).await {
            Ok(()) => return Ok(Some(so_far.messages)),
            Err(status) => status,
        };
        cas.note(&status);
        match status.code() {
            Code::Unimplemented => return Ok(None),
            // Some part of the tree is not there; which one, the caller finds out.
            Code::NotFound => return Ok(Some(so_far.messages)),
            _ => {}
        }
        if so_far.messages.len() > known {
            retry.progressed();
        }
        match is_transient(&status).then(|| retry.next(&status)).flatten() {
            Some(pause) => tokio::time::sleep(pause).await,
            None => {
                let message = format!("tree {root}: {}", status.message());
                return Err(cas.error(CALL, Status::new(status.code(), message)));
            }
        }
    }
}

#[derive(Default)]
struct Received {
    messages: Vec<(Digest, Bytes)>,
    seen: HashSet<Digest>,
    bytes: usize,
    next_page: String,
}

async fn one_try(cas: &RemoteCas, root: Digest, so_far: &mut Received) -> Result<(), Status> {
    let message = re::GetTreeRequest {
        instance_name: cas.inner.config.instance.clone(),
        root_digest: Some(root.to_proto()),
        page_size: 0,
        page_token: so_far.next_page.clone(),
        digest_function: root.function().to_proto() as i32,
    };
    let loan = cas.inner.channels.borrow(Load::Down);
    let mut client = cas_client(loan.channel.clone());
    let mut stream = cas
        .in_time("no answer", client.get_tree(cas.request(message)))
        .await?
        .into_inner();
    // A tree that repeats itself without end is cut off like a large one.
    while so_far.bytes < LARGEST_TREE {
        let next = cas.in_time("no data came", stream.message()).await?;
        let Some(page) = next else { break };
        so_far.bytes += 64 + page.encoded_len();
        so_far.next_page = page.next_page_token;
        for directory in page.directories {
            let bytes = Bytes::from(directory.encode_to_vec());
            let digest = root.function().digest(&bytes);
            if so_far.seen.insert(digest) {
                so_far.messages.push((digest, bytes));
            }
        }
    }
    Ok(())
}
