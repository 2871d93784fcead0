//! The scheduler inside `boxwright standalone`: a queue in memory, and the Execution service in front of it.
