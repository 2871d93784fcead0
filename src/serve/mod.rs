//! The REAPI services over a local store.
