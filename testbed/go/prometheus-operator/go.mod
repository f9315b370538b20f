module testbed/prometheus-operator

// Read as files, not built: see testbed/manifests.py.

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
