"""The conformance run of `make conformance`: the rendered configurations on a real NativeLink."""
