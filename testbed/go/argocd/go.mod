module testbed/argocd

// Read as files, not built: see testbed/manifests.py.

go 1.27.0

require github.com/argoproj/argo-cd/v3 v3.6.1
