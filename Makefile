# `make` lists the targets. All except help, images, lock and clean first make the Python environment, or reuse it.
PYTHON ?= python3
# The default inventory is one cluster on an embedded Kubernetes. Only this file knows that the cluster is embedded.
INVENTORY ?= inventories/local
# More arguments for ansible-playbook: make bootstrap INVENTORY=inventories/reference ARGS="--limit prod --check"
ARGS ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Python finds `ansible_collections.nativelink.gitops` there. It is a link to this repository.
export PYTHONPATH := $(CURDIR)/playbooks/collections
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

MANIFESTS := .testbed/manifests.yml
ifeq ($(patsubst %/,%,$(INVENTORY)),inventories/local)
EMBEDDED := cluster-up manifests
OFFLINE := -e @$(MANIFESTS)
endif

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: venv
venv:
	@.ci/venv .venv $(PYTHON)

##@ The main job

.PHONY: bootstrap
bootstrap: venv $(EMBEDDED) ## validate, provision, render and connect every cluster of INVENTORY (default: inventories/local, embedded)
	ansible-playbook -i $(INVENTORY) $(OFFLINE) playbooks/bootstrap.yml $(ARGS)

.PHONY: validate
validate: venv ## report every input error of INVENTORY
	ansible-playbook -i $(INVENTORY) playbooks/validate.yml $(ARGS)

.PHONY: render
render: venv ## render the committed trees (or those of INVENTORY=…), without a cluster
	for inventory in $(if $(filter file,$(origin INVENTORY)),inventories/local inventories/reference,$(INVENTORY)); do \
	  ansible-playbook -i $$inventory playbooks/render.yml $(ARGS); done

.PHONY: site
site: venv ## make a repository for your own clusters: make site DIR=../my-farm (it installs this collection)
	ansible-playbook playbooks/site.yml -e site_dir='"$(DIR)"' $(ARGS)

.PHONY: images
images: ## list the images to mirror: those of the committed trees and of the release manifests RELEASES="FILE…"
	@grep -rhoP '^\s*(- )?image: "?\K[^\s"]+' clusters $(RELEASES) | LC_ALL=C sort -u

##@ The embedded Kubernetes

.PHONY: cluster-up
cluster-up: venv ## start it, or reuse it if it runs (NODE=real adds a node that runs pods, and needs root)
	python -m testbed up --name local $(if $(NODE),--node $(NODE))

.PHONY: cluster-load
cluster-load: venv ## give its real node the images of COMPONENTS, such as "flux keda"
	python -m testbed load --name local $(COMPONENTS)

.PHONY: cluster-down
cluster-down: venv ## stop it and remove its state
	python -m testbed down --name local

.PHONY: cluster-status
cluster-status: venv ## list the embedded clusters
	python -m testbed status

.PHONY: manifests
manifests: venv
	python .ci/offline.py $(MANIFESTS) -i $(INVENTORY) $(ARGS)

##@ Tests

PARALLEL := --dist loadfile --no-loadscope-reorder --maxfail=5

# Go collects garbage less often: an API server then needs twice the memory, but three quarters of the processor time.
# One with many kinds would take 2.4 GB, and several of them leave too little for the files that the machine reads.
test molecule pytest e2e bench: export GOGC := 400
test molecule pytest e2e bench: export GOMEMLIMIT := 1200MiB

.PHONY: test
test: lint molecule pytest ## run everything that must pass: lint, molecule, pytest (14 minutes; 23 the first time)

.PHONY: lint
lint: venv docs ## run yamllint, ansible-lint (production profile, offline), ruff, and check the documentation and the chart
	yamllint --strict .
	ansible-lint --offline
	ruff check
	ruff format --check
	pytest -q tests/lint/test_documents.py tests/lint/test_chart.py

.PHONY: molecule
molecule: venv ## test every role on one embedded cluster
	molecule destroy --scenario-name default # the cluster that an interrupted run has left, or only its state
	molecule test --all --exclude bootstrap
	molecule test --scenario-name bootstrap # on its own fresh cluster

.PHONY: pytest
pytest: venv newest ## run the tests in tests/ that need no real node
	TESTBED_PATIENCE=2 pytest -n 6 $(PARALLEL) --ignore tests/e2e

.PHONY: e2e
e2e: venv ## test what needs a real node: both engines, KEDA, scaling, draining, the edge; needs root (30 minutes; 55 the first time)
	[ "$$(id -u)" != 0 ] || python -m testbed build --images # first and all at once; otherwise several tests would build at the same time
	pytest -rs -m alone tests/e2e
	TESTBED_PATIENCE=4 pytest -n 4 $(PARALLEL) -rs --durations=25 -m 'not soak and not alone' tests/e2e

.PHONY: newest
newest: # an environment with a newer Python for the tests on the newest ansible-core, which are skipped without one
	@if python=$$(.ci/newest-python); then .ci/venv .venv-newest "$$python"; fi

.PHONY: soak
soak: venv ## run the long tests: the bootstrap interrupted at 20 random points; with root also those of draining, scaling and alerts (hours)
	pytest tests/bootstrap tests/e2e -m soak -s

.PHONY: bench
bench: venv ## measure rendering and the bootstrap; with root also syncing, the reaction to demand, latency; with NATIVELINK=FILE load
	python -m bench

.PHONY: conformance
conformance: venv ## run the rendered configurations on a real NativeLink: NATIVELINK="FILE…", binaries or tarballs of docker save
	python -m conformance $(NATIVELINK)

##@ Housekeeping

.PHONY: generate
generate: venv ## generate docs/variables.md, the schema and the READMEs' tables from the roles' variables, the dashboards, and the chart
	python docs/generate.py --write
	python -m dashboards
	python -m chart
	"$$(python -m testbed tool helm-docs)" --chart-search-root charts

.PHONY: package
package: venv ## make a release from the commit, in dist/: chart, collection, checksums, provenance (KEY=NAME KEYRING=FILE sign the chart)
	rm -rf dist
	python .ci/package.py dist $(if $(KEY),--key "$(KEY)" --keyring "$(KEYRING)") $(if $(BUILDER),--builder "$(BUILDER)")

.PHONY: docs
docs: venv ## build the documentation site: .site/index.html. A dead link is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build

.PHONY: bpf
bpf: venv ## compile the eBPF programs of role node_agent, whose object files are committed
	python -m testbed bpf

.PHONY: isolation
isolation: venv ## build the program that gives each action a user, which is committed for both architectures
	python -m testbed isolation

.PHONY: lock
lock: ## update requirements.txt from pyproject.toml (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	  --upgrade --group dev pyproject.toml -o requirements.txt

.PHONY: clean
clean: ## remove the Python environments, the site, the release, and the caches of tools in the checkout
	rm -rf .venv .venv-newest .ansible .cache .hypothesis .pytest_cache .ruff_cache .site dist
