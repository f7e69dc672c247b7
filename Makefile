SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Python version managers put shims first in PATH; molecule and ansible-test look for their tools there.
export PATH := $(CURDIR)/.venv/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# molecule and ansible-lint do not read ansible.cfg.
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/build/collections
export ANSIBLE_HOME := $(CURDIR)/build/ansible
export ANSIBLE_SSH_CONTROL_PATH_DIR := ~/.ansible/cp
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/build/cache/hypothesis
export PYTHONDONTWRITEBYTECODE := 1
# Programs' messages are read, and Ansible refuses a locale that is not UTF-8.
export LC_ALL := C.UTF-8
# What the caller has there would be imported in place of the checkout's.
unexport PYTHONPATH
ifndef MAKE_TERMOUT
export NO_COLOR := 1
endif

COLLECTION := build/collections/ansible_collections/lbops/xdp
PYTHON := .venv/bin/python
PLAYBOOK := .venv/bin/ansible-playbook
PYTEST := $(PYTHON) -m pytest
# Kernel headers belong to one kernel.
BCC_STAMP := build/stamps/bcc-$(shell uname -r)
# Prometheus and its tools, from Debian's package; installed it would be a service that runs.
PROMETHEUS := build/cache/prometheus
PROMTOOL := $(PROMETHEUS)/usr/bin/promtool
TESTS := sanity ansible-lint packet nic integration molecule

comma := ,
headline = @printf '\n=== %s ===\n' '$(1)'
need_root = @[ "$$(id -u)" -eq 0 ] || { echo "make $@ needs root: it loads BPF programs or boots containers." >&2; exit 1; }

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# As in pyproject.toml, for programs that pytest does not start.
demo bench test-kernels test-compilers: export PYTHONPATH := $(CURDIR)/build/collections:$(CURDIR)

.PHONY: demo
demo: deps venv collection ## Build the lab, apply site.yml, send traffic: build/demo/report.json
	$(need_root)
	@$(PYTHON) tests/demo/demo.py

.PHONY: bench
bench: deps .venv/bench.stamp collection bcc ## Run all benchmarks: build/bench/*.json and plots
	$(need_root)
	@$(PYTHON) tests/bench/run.py

FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: .venv/test.stamp collection bcc ## Compare program and model on random frames for FUZZ_SECONDS, 60 if not given
	$(need_root)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) -s -k frames_of_other_seeds tests/packet/test_differential.py

.PHONY: lab-up
lab-up: deps venv collection ## Start the lab's hosts
	$(need_root)
	@$(PLAYBOOK) -i inventory/lab playbooks/lab_up.yml

.PHONY: lab-down
lab-down: venv collection ## Stop and remove the lab's hosts
	$(need_root)
	@$(PLAYBOOK) -i inventory/lab playbooks/lab_down.yml

# Cheapest first. What takes long, or root, is a test of its own.
.PHONY: check
check: .venv/test.stamp collection packages $(PROMTOOL) ## Check style, types and documentation, run unit tests: any user, no root
	$(call headline,check)
	@SECONDS=0; \
	.venv/bin/ruff check .; \
	.venv/bin/ruff format --check --quiet .; \
	.venv/bin/mypy; \
	.venv/bin/antsibull-changelog lint; \
	.venv/bin/antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck .; \
	mkdir -p build/cache/coverage; \
	$(PYTEST) -n 2 tests/unit tests/prometheus --cov; \
	echo "check passed in $$SECONDS s"

# The trap takes the lab down whatever happened; an error of its own fails the run too.
.PHONY: test
test: deps ## Run "make check" and all other tests, stopping at the first failure
	$(need_root)
	@trap '$(MAKE) lab-down' EXIT; \
	$(MAKE) check; \
	for part in $(TESTS); do SECONDS=0; $(MAKE) test-$$part; echo "test-$$part passed in $$SECONDS s"; done

.PHONY: test-ansible-lint
test-ansible-lint: .venv/test.stamp collection ## Run ansible-lint on roles and playbooks
	$(call headline,ansible-lint)
	@.venv/bin/ansible-lint

.PHONY: test-sanity
test-sanity: deps .venv/test.stamp ## Run ansible-test sanity, without any ignore file
	$(call headline,sanity)
	@$(PYTHON) tests/tools/sanity.py

.PHONY: test-packet
test-packet: .venv/test.stamp collection bcc ## Run the BPF program on crafted frames
	$(need_root)
	$(call headline,packet)
	@$(PYTEST) -n 2 --dist loadfile tests/packet

.PHONY: test-nic
test-nic: .venv/test.stamp collection bcc ## Run the modules for network devices on virtual ones
	$(need_root)
	$(call headline,nic)
	@$(PYTEST) tests/nic

# Files of tests are dealt out in their order: the last one removes everything.
INTEGRATION_LABS ?= 2

.PHONY: test-integration
test-integration: .venv/test.stamp collection bcc $(PROMTOOL) ## Run modules and roles in a lab of their own
	$(need_root)
	$(call headline,integration)
	@tests/tools/install-packages tests/integration/debian-packages.txt
	@$(PYTEST) -n $(INTEGRATION_LABS) --dist loadfile --no-loadscope-reorder tests/integration

# molecule runs from the checkout itself and finds the collection by ANSIBLE_COLLECTIONS_PATH. A scenario needs
# "prerun: false", or molecule installs a copy of the collection.
.PHONY: test-molecule
test-molecule: deps .venv/test.stamp collection ## Run molecule's default scenario
	$(need_root)
	$(call headline,molecule)
	@.venv/bin/molecule test -s default

.PHONY: test-kernels
test-kernels: .venv/test.stamp collection bcc ## Load the program on Debian's kernels, in virtual machines
	$(need_root)
	@tests/tools/install-packages tests/kernels/debian-packages.txt
	@$(PYTHON) -m tests.kernels

# Mitogen keeps Python running on the guests: starting it for every module is most of the time under emulation.
.PHONY: test-vm
VM_GUESTS ?= bookworm,trixie
test-vm test-compilers: export VM_GUESTS := $(VM_GUESTS)
test-vm: export ANSIBLE_STRATEGY := mitogen_linear
test-vm: deps .venv/vm.stamp collection ## Run molecule's vm scenario, in real virtual machines: VM_GUESTS=bookworm for one
	$(need_root)
	$(call headline,molecule vm)
	@tests/tools/install-packages tests/vm/debian-packages.txt
	@ANSIBLE_STRATEGY_PLUGINS=$$(echo $(CURDIR)/.venv/lib/python3*/site-packages/ansible_mitogen/plugins/strategy) \
		.venv/bin/molecule test -s vm

.PHONY: test-compilers
test-compilers: deps .venv/vm.stamp collection ## Compile and load the program with the compilers and kernels of virtual machines
	$(need_root)
	@tests/tools/install-packages tests/vm/debian-packages.txt
	@trap '$(PYTHON) -m tests.vm.guest stop' EXIT; \
	$(PYTHON) -m tests.vm.guest start $(subst $(comma), ,$(VM_GUESTS)); \
	$(PYTEST) -s tests/guests/test_compiler.py

$(PROMTOOL): tests/tools/unpack-package
	@tests/tools/unpack-package prometheus $(PROMETHEUS)
	@touch $@

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@tests/tools/install-packages tests/tools/check-packages.txt tests/tools/debian-packages.txt

# For other users than root: says what is missing, if anything is.
.PHONY: check-deps
check-deps:
	@tests/tools/install-packages tests/tools/check-packages.txt

.PHONY: venv
venv: .venv/runtime.stamp ## Make .venv with ansible-core

# System packages stay visible for python3-bpfcc, which is not on PyPI.
# Scripts in a virtual environment name its path, so one that came along with a moved checkout is made anew.
ifneq ($(shell cat .venv/path 2>/dev/null),$(CURDIR))
.PHONY: .venv/path
endif
.venv/path: | check-deps
	@/usr/bin/python3 -m venv --clear --system-site-packages .venv
	@echo '$(CURDIR)' >$@

pip_install = @$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $< && touch $@

.venv/runtime.stamp: requirements.txt .venv/path
	$(pip_install)

.venv/test.stamp: requirements-test.txt .venv/runtime.stamp
	$(pip_install)

.venv/vm.stamp: requirements-vm.txt .venv/test.stamp
	$(pip_install)

.venv/bench.stamp: requirements-bench.txt .venv/runtime.stamp
	$(pip_install)

.PHONY: collection
collection: $(COLLECTION) ## Link the checkout below build/collections, where Ansible finds it

$(COLLECTION):
	@mkdir -p $(@D)
	@ln -sfn ../../../.. $@

.PHONY: packages
packages: ## Link Python packages below build/packages by the names they have on a host, for mypy
	@mkdir -p build/packages
	@ln -sfn ../../plugins/module_utils build/packages/engine
	@ln -sfn ../../roles/health/files build/packages/health
	@ln -sfn ../../roles/balancer/files/lbops_top build/packages/lbops_top
	@ln -sfn ../../roles/exporter/files/lbops_exporter build/packages/lbops_exporter

.PHONY: bcc
bcc: $(BCC_STAMP) ## Install BCC and kernel headers on this machine

$(BCC_STAMP): tests/controller.yml $(wildcard roles/bcc/*/*) | deps venv collection
	$(need_root)
	@$(PLAYBOOK) -i localhost, tests/controller.yml
	@mkdir -p $(@D) && touch $@

.PHONY: clean
clean: ## Take the lab and the virtual machines down and remove build/ except its cache
	@[ ! -x $(PLAYBOOK) ] || [ ! -e $(COLLECTION) ] || $(MAKE) lab-down
	@[ ! -d build/vm ] || python3 -m tests.vm.guest stop
	@rm -rf .ansible
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove everything made here
	@rm -rf build .venv
