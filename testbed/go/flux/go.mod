module testbed/flux

// Read as files, not built: see testbed/manifests.py. The controllers' versions are those in manifests/bases of flux2.

go 1.26.0

require (
	github.com/fluxcd/flux2/v2 v2.9.5
	github.com/fluxcd/helm-controller v1.6.4
	github.com/fluxcd/kustomize-controller v1.9.5
	github.com/fluxcd/source-controller v1.9.5
)
