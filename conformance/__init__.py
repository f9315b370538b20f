"""What `make conformance` runs: the rendered configurations on a real NativeLink."""
