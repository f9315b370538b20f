module testbed/envoy-gateway

// Read as files, not built: see testbed/manifests.py.

go 1.26.7

require github.com/envoyproxy/gateway v1.9.1
