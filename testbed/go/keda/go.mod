module testbed/keda

// Read as files, not built: see testbed/manifests.py.

go 1.26.0

require github.com/kedacore/keda/v2 v2.21.0
