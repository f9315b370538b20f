module testbed/gateway-api

// Read as files, not built: see testbed/manifests.py.

go 1.26.0

require sigs.k8s.io/gateway-api v1.6.3
