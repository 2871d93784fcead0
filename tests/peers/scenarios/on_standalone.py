"""Bazel 7, recc, trexe and the CAS tools of a Debian sid root on `boxwright standalone`."""
SCENARIOS = []
