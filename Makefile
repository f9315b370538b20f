# `make` lists the targets. All except help, images, lock and clean first make the Python environment, or reuse it.
PYTHON ?= python3
# The default inventory is one cluster on an embedded Kubernetes. Only this file knows that the cluster is embedded.
INVENTORY ?= inventories/local
# More arguments for ansible-playbook: make bootstrap INVENTORY=inventories/reference ARGS="--limit prod --check"
ARGS ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Python finds `ansible_collections.nativelink.gitops` there. hack/link makes it, a link to this repository.
export PYTHONPATH := $(CURDIR)/.ansible/collections
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
# No target is a file.
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' Makefile)

MANIFESTS := .testbed/manifests.yml
ifeq ($(patsubst %/,%,$(INVENTORY)),inventories/local)
EMBEDDED := cluster-up manifests
OFFLINE := -e @$(MANIFESTS)
endif

help: ## list the targets
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

venv:
	@hack/venv .venv $(PYTHON)

##@ The main job

bootstrap: venv $(EMBEDDED) ## validate, provision, render and connect every cluster of INVENTORY (default: inventories/local, embedded)
	ansible-playbook -i $(INVENTORY) $(OFFLINE) playbooks/bootstrap.yml $(ARGS)

validate: venv ## report every input error of INVENTORY
	ansible-playbook -i $(INVENTORY) playbooks/validate.yml $(ARGS)

render: venv ## render the committed trees (or those of INVENTORY=…), without a cluster
	for inventory in $(if $(filter file,$(origin INVENTORY)),inventories/local inventories/reference,$(INVENTORY)); do \
	  ansible-playbook -i $$inventory playbooks/render.yml $(ARGS); done

# With the address of this repository the site installs this commit from there.
SOURCE = -e site_collection_source='"$(NATIVELINK_GITOPS)"' \
  -e site_collection_version="$$(git describe --tags --exact-match 2> /dev/null || git rev-parse HEAD)"

site: venv ## make a repository for your own clusters: make site DIR=../my-farm (it installs this collection)
	ansible-playbook playbooks/site.yml -e site_dir='"$(DIR)"' $(if $(NATIVELINK_GITOPS),$(SOURCE)) $(ARGS)

certificates: venv ## make certificates for the edge and a client: make certificates CLIENT=ann INVENTORY=… ARGS="--limit dev"
	ansible-playbook -i $(INVENTORY) playbooks/certificates.yml -e certificates_client=$(or $(CLIENT),client) $(ARGS)

digests: venv ## pin each image by its digest, from its registry or FILE: make digests INVENTORY=… ARGS="--limit dev"
	ansible-playbook -i $(INVENTORY) playbooks/digests.yml $(if $(FILE),-e digests_file='"$(FILE)"') $(ARGS)

verify: venv ## check live farms as their clients see them: make verify INVENTORY=… ARGS="--limit prod"
	ansible-playbook -i $(INVENTORY) playbooks/verify.yml $(ARGS)

images: ## list the images to mirror: those of the committed trees and of the release manifests RELEASES="FILE…"
	@grep -rhoP '^\s*(- )?image: "?\K[^\s"]+' clusters $(RELEASES) | LC_ALL=C sort -u

##@ A farm on this machine

demo: venv ## make a farm, and build examples/bazel on it twice: with Docker on kind, else as root on an embedded node (2 minutes; 25 the first time)
	hack/demo up

demo-down: venv ## remove that farm
	hack/demo down

##@ The embedded Kubernetes

cluster-up: venv ## start it, or reuse it if it runs (NODE=real adds a node that runs pods, and needs root)
	python -m testbed up --name local $(if $(NODE),--node $(NODE))

cluster-load: venv ## give its real node the images of COMPONENTS, such as "flux keda"
	python -m testbed load --name local $(COMPONENTS)

cluster-down: venv ## stop it and remove its state
	python -m testbed down --name local

cluster-status: venv ## list the embedded clusters
	python -m testbed status

manifests: venv
	python -m testbed manifests --variables $(MANIFESTS) keda gateway-api envoy-gateway # those that inventories/local installs

##@ Tests

PARALLEL := --dist loadfile --no-loadscope-reorder --maxfail=5

# Go collects garbage less often: an API server then needs twice the memory, but three quarters of the processor time.
# One with many kinds would take 2.4 GB, and several of them leave too little for the files that the machine reads.
molecule pytest e2e clients bench: export GOGC := 400
molecule pytest e2e clients bench: export GOMEMLIMIT := 1200MiB
# Waiting takes so many times as long as on an idle machine.
molecule pytest: export TESTBED_PATIENCE := 2
e2e clients: export TESTBED_PATIENCE := 4

test: venv newest ## run everything that must pass: lint, molecule, pytest (12 minutes; 25 the first time)
	$(MAKE) --jobs=2 pytest lint molecule # lint and molecule leave processors idle

lint: venv docs ## run yamllint, ansible-lint (production profile, offline), ansible-test sanity, ruff, gitleaks, and check the documentation and the chart
	yamllint --strict .
	ansible-lint --offline
	hack/sanity
	ruff check
	ruff format --check
	"$$(python -m testbed tool gitleaks)" git --no-banner --redact # no secret in the history
	helm="$$(python -m testbed tool helm)"; for size in dev staging prod; do \
	  "$$helm" lint --quiet --strict --namespace nativelink charts/nativelink --values charts/nativelink/values-$$size.yaml; done
	pytest -q tests/lint

molecule: venv ## test every role on one embedded cluster
	molecule destroy --scenario-name default # the cluster that an interrupted run has left, or only its state
	molecule test --all

pytest: venv newest ## run the tests in tests/ that need no real node
	pytest -n 6 $(PARALLEL) --ignore tests/e2e --ignore tests/lint

e2e: venv ## test what needs a real node: both engines, KEDA, scaling, draining, the edge; needs root (25 minutes; 45 the first time)
	[ "$$(id -u)" != 0 ] || python -m testbed build --images # first and all at once; otherwise several tests would build at the same time
	pytest -rs -m alone tests/e2e
	pytest -n 4 $(PARALLEL) -rs --durations=25 -m 'not soak and not bench and not alone and not clients' tests/e2e

newest: # an environment with a newer Python for the tests on the newest ansible-core, which are skipped without one
	@if python=$$(hack/newest-python); then hack/venv .venv-newest "$$python"; fi

clients: venv ## build with all real clients through the edge, also the large ones; needs root, for Pants also python3.9
	pytest -rs --durations=0 -m '' tests/e2e/edge/test_clients.py

soak: venv ## run the long tests: the bootstrap interrupted at 20 random points; with root also those of draining, scaling and alerts (hours)
	pytest tests/bootstrap $$([ "$$(id -u)" != 0 ] || echo tests/e2e) -m soak -s

bench: venv ## measure rendering and the bootstrap; with root also syncing, the reaction to demand, latency; with NATIVELINK=FILE load, stores and transfers
	pytest -m bench -s tests
	[ -z "$(NATIVELINK)" ] || python -m conformance $(NATIVELINK) --part load --part stores --part transfer

conformance: venv ## run the rendered configurations on a real NativeLink: NATIVELINK="FILE…", binaries or tarballs of docker save
	python -m conformance $(NATIVELINK)

##@ Housekeeping

size: ## count the lines by hand of each folder: all files but those that .gitattributes calls generated or vendored
	@git ls-files -z ':(attr:!linguist-generated !linguist-vendored)' | xargs -0 wc -l | \
	  awk '$$2 != "total" { split($$2, part, "/"); lines[part[2] ? part[1] : "top level"] += $$1; all += $$1 } \
	    END { for (room in lines) print lines[room], room; print all, "all" }' | sort -rn

generate: venv ## generate the changelog, docs/variables.md and the schema from the roles' variables, the dashboards, and the chart
	antsibull-changelog generate
	python -m hack.generate
	"$$(python -m testbed tool helm-docs)" --chart-search-root charts

package: venv ## make a release from the commit, in dist/: chart, collection, checksums, provenance (KEY=NAME KEYRING=FILE sign the chart)
	rm -rf dist
	python -m hack.package dist $(if $(KEY),--key "$(KEY)" --keyring "$(KEYRING)") $(if $(BUILDER),--builder "$(BUILDER)")

docs: venv ## build the documentation site: .site/index.html. A dead link is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build

bpf: venv ## compile the eBPF programs of role node_agent, whose object files are committed
	python -m testbed bpf

isolation: venv ## build the program that gives each action a user, which is committed for both architectures
	python -m testbed isolation

LOCK := uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
  --python-version 3.11 --upgrade

lock: ## update requirements.txt and testbed/checkov-requirements.txt from pyproject.toml (needs uv)
	$(LOCK) --group dev pyproject.toml -o requirements.txt
	$(LOCK) --group checkov -o testbed/checkov-requirements.txt
	$(LOCK) --group bgd -o testbed/bgd-requirements.txt

clean: ## remove the Python environments, the site, the release, and the caches of tools in the checkout
	rm -rf .venv .venv-newest .ansible .cache .hypothesis .pytest_cache .ruff_cache .site dist
