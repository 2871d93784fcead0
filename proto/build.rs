//! Compiles the interfaces in `proto/` without an installed `protoc`. Every `bytes` field becomes
//! `bytes::Bytes`, so that blob content is not copied on its way from the wire to the disk. What of a message can be many
//! is written down beside the code, for messages are counted before they are decoded.

use std::path::PathBuf;

use protox::prost_reflect::{
    Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor,
};
use tonic_prost_build::Config;

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

/// More than messages are nested in each other.
const DEEP: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut compiler = protox::Compiler::new([&root])?;
    { compiler.include_source_info(true).include_imports(true) }
        .open_files(FILES.iter().map(|file| root.join(file)))?;
    let lists = PathBuf::from(std::env::var("OUT_DIR")?).join("lists.rs");
    std::fs::write(lists, table(&compiler.descriptor_pool()))?;
    // The names are what the table is asked for.
    let mut config = Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::reapi::codec::Checked")
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

/// The messages that have lists, or other messages inside that have: of each, the fields that are one or the other.
fn table(pool: &DescriptorPool) -> String {
    let messages = pool.all_messages();
    let messages: Vec<_> = messages
        .filter(|message| has_lists(message, DEEP))
        .collect();
    let part = |field: FieldDescriptor| {
        let (number, list) = (field.number(), is_list(&field));
        let inside = match field.kind() {
            Kind::Message(inside) => messages.iter().position(|message| *message == inside),
            _ => None,
        };
        (list || inside.is_some())
            .then(|| format!("Part {{ number: {number}, list: {list}, inside: {inside:?} }}, "))
    };
    let row = |message: &MessageDescriptor| {
        let parts: String = message.fields().filter_map(part).collect();
        format!("    ({:?}, &[{parts}]),\n", message.full_name())
    };
    let rows: String = messages.iter().map(row).collect();
    format!("&[\n{rows}]\n")
}

fn has_lists(message: &MessageDescriptor, deep: usize) -> bool {
    assert!(
        deep > 0,
        "{} is in itself, and endless",
        message.full_name()
    );
    message.fields().any(|field| {
        let inside = |inside: &MessageDescriptor| has_lists(inside, deep - 1);
        is_list(&field) || matches!(field.kind(), Kind::Message(kind) if inside(&kind))
    })
}

/// Whether each entry takes more than a number does, which grows little when it is decoded.
fn is_list(field: &FieldDescriptor) -> bool {
    field.cardinality() == Cardinality::Repeated
        && matches!(field.kind(), Kind::Message(_) | Kind::String | Kind::Bytes)
}
