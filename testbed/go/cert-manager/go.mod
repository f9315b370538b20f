module testbed/cert-manager

// Read as files, not built: see testbed/manifests.py.

go 1.26.0

require github.com/cert-manager/cert-manager v1.21.2
