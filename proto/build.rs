//! Compiles the interfaces in `proto/` without an installed `protoc`. Every `bytes` field becomes
//! `bytes::Bytes`, so that blob content is not copied on its way from the wire to the disk.

use std::path::PathBuf;

const FILES: &[&str] = &[
    "boxwright/usage.proto",
    "build/bazel/remote/execution/v2/remote_execution.proto",
    "build/bazel/remote/logstream/v1/remote_logstream.proto",
    "build/bazel/semver/semver.proto",
    "build/buildbox/execution_stats.proto",
    "google/bytestream/bytestream.proto",
    "google/devtools/remoteworkers/v1test2/bots.proto",
    "google/devtools/remoteworkers/v1test2/worker.proto",
    "google/longrunning/operations.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let set = protox::compile(FILES.iter().map(|f| root.join(f)), [&root])?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::reapi::codec::Checked")
        .emit_rerun_if_changed(false)
        .compile_fds(set)?;
    Ok(())
}
