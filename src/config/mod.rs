//! What an operator may set: one table of [`keys`], filled from flags, the environment, a TOML
//! [`file`] and defaults, validated as a whole, with the origin of every value.

pub mod credentials;
pub mod daemon;
pub mod endpoint;
pub mod file;
mod host;
pub mod keys;
mod line;

pub mod origin;
pub mod owner;
pub mod print;
pub mod settings;
pub mod strategy;
mod stray;
pub mod units;
pub mod value;

pub use crate::serve::Listen;
pub use credentials::Credentials;
pub use daemon::{
    ActionLimits, HostConfig, InputStrategy, LogConfig, Patience, Quota, StandaloneConfig,
    WorkerConfig,
};
pub use endpoint::{Endpoint, EndpointError};
pub use line::Line;
pub use origin::{ConfigError, Origin};
pub use owner::Owner;
pub use settings::{Host, Settings};
pub use strategy::{NetworkPolicy, StrategyConfig};
pub use stray::strays;
