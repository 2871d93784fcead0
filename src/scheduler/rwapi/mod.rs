//! Leases over the Remote Workers API, as BuildGrid speaks it.
