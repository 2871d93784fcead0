//! The generated message and service types, in the module tree that their packages name.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// What has no place in the standards.
pub mod boxwright {
    tonic::include_proto!("boxwright");
}

/// `build.*`: the Remote Execution API and BuildBox's usage statistics.
pub mod build {
    pub mod bazel {
        pub mod remote {
            pub mod execution {
                pub mod v2 {
                    tonic::include_proto!("build.bazel.remote.execution.v2");
                }
            }
            pub mod logstream {
                pub mod v1 {
                    tonic::include_proto!("build.bazel.remote.logstream.v1");
                }
            }
        }
        pub mod semver {
            tonic::include_proto!("build.bazel.semver");
        }
    }
    pub mod buildbox {
        tonic::include_proto!("build.buildbox");
    }
}

/// `google.*`: the Remote Workers API, ByteStream, long-running operations and statuses.
pub mod google {
    pub mod bytestream {
        tonic::include_proto!("google.bytestream");
    }
    pub mod devtools {
        pub mod remoteworkers {
            pub mod v1test2 {
                tonic::include_proto!("google.devtools.remoteworkers.v1test2");
            }
        }
    }
    pub mod longrunning {
        tonic::include_proto!("google.longrunning");
    }
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub use build::bazel::remote::execution::v2 as re;
pub use build::bazel::remote::logstream::v1 as logstream;
pub use build::bazel::semver;
pub use build::buildbox;
pub use google::bytestream;
pub use google::devtools::remoteworkers::v1test2 as rw;
pub use google::longrunning;
pub use google::rpc;
