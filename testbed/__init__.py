"""An embedded Kubernetes for tests: a real control plane on fake nodes, without root and without Docker."""
