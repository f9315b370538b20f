"""The code that the tests, conformance and the benchmarks share."""
