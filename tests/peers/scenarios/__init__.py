"""The real-peer scenarios, one module per kind of peer, and the laboratory that they are run in."""
