//! A client's calls, with what every test checks of their answers.

use std::collections::HashMap;
use std::io::Write;

use boxwright::cas::{BlobSource, CasError, RemoteCas};
use boxwright::reapi::Digest;
use bytes::Bytes;
use tonic::Code;

use super::{FaultyCas, SHA256, blob};

pub async fn read_batch(
    client: &RemoteCas,
    digests: &[Digest],
) -> Result<(HashMap<Digest, Bytes>, Vec<Digest>), CasError> {
    let mut came = HashMap::new();
    let missing = client
        .read_batch(digests, &mut |digest, bytes| {
            assert_eq!(
                SHA256.digest(&bytes),
                digest,
                "unverified bytes came through"
            );
            assert!(came.insert(digest, bytes).is_none(), "{digest} came twice");
        })
        .await?;
    Ok((came, missing))
}

pub async fn read_stream(client: &RemoteCas, digest: Digest) -> Result<Vec<u8>, CasError> {
    let mut whole = Vec::new();
    client
        .read_stream(digest, &mut |chunk| {
            whole.extend_from_slice(&chunk);
            assert!(
                whole.len() as u64 <= digest.size(),
                "too many bytes came through"
            );
            Ok(())
        })
        .await?;
    Ok(whole)
}

pub fn file(data: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

pub fn blobs(server: &FaultyCas, count: usize, size: usize) -> Vec<Digest> {
    (0..count).map(|n| server.put(blob(n, size).1)).collect()
}

/// The code and the whole text of a remote error.
pub fn remote(error: CasError) -> (Code, String) {
    let text = error.to_string();
    match error {
        CasError::Remote { status, .. } => (status.code(), text),
        other => panic!("not a remote error: {other:?}"),
    }
}
