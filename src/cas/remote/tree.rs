//! GetTree: the Directory messages of a tree in one call, where the server can do it.
//!
//! The directories of a page are left as the bytes that they came as, and named by the digest of those: the generated
//! decoder would make more than a hundred bytes of the two of an empty directory. A server that encodes
//! differently gives names that nobody asks for; the caller then reads those messages one by one, as
//! it does if the call fails.

use std::collections::HashSet;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::retry::is_transient;
use super::{Load, RemoteCas};
use crate::cas::CasError;
use crate::reapi::Digest;
use crate::reapi::proto::re;

const CALL: &str = "GetTree";

/// More than this is not taken from one call; the caller reads the rest itself.
const LARGEST_TREE: usize = 32 << 20;
/// What a directory that came costs beside its bytes.
const EACH: usize = 128;
/// The largest page, gRPC's default.
const LARGEST_PAGE: usize = 4 << 20;
const PATH: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree";

/// A GetTreeResponse whose directories are not decoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Page {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    directories: Vec<Bytes>,
    #[prost(string, tag = "2")]
    next_page_token: String,
}

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
            // A part is of use, too; the caller reads the rest itself.
            None if !so_far.messages.is_empty() => {
                tracing::debug!(%root, remote = %cas.inner.name, %status, "GetTree gave a part");
                return Ok(Some(so_far.messages));
            }
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
    let mut client =
        tonic::client::Grpc::new(loan.line.clone()).max_decoding_message_size(LARGEST_PAGE);
    let call = async {
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<re::GetTreeRequest, Page>::default();
        let path = PathAndQuery::from_static(PATH);
        client
            .server_streaming(cas.request(message), path, codec)
            .await
    };
    let mut stream = cas.in_time("no answer", call).await?.into_inner();
    loop {
        let next = cas.in_time("no data came", stream.message()).await?;
        let Some(page) = next else { break };
        so_far.bytes += EACH;
        so_far.next_page = page.next_page_token;
        for bytes in page.directories {
            // A tree that repeats itself without end is cut off like a large one.
            so_far.bytes += EACH + bytes.len();
            if so_far.bytes > LARGEST_TREE {
                return Ok(());
            }
            let digest = root.function().digest(&bytes);
            if so_far.seen.insert(digest) {
                so_far.messages.push((digest, bytes));
            }
        }
        if so_far.bytes > LARGEST_TREE {
            break;
        }
    }
    Ok(())
}
