# Pontoon. `make demo` shows the main job; `make test` proves it. Both need root on Linux.

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CLANG     ?= clang-14
LLVM_STRIP ?= llvm-strip-14
GOFUMPT   := mvdan.cc/gofumpt@v0.9.2
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
export CGO_ENABLED := 0

.PHONY: all build build-faults demo test test-unit test-bpf-1 test-bpf-2 test-routers test-e2e test-labs lint generate check-generate bench bench-datapath bench-lab bench-lab-deps bench-state \
        bench-replication bench-commit bench-failover bench-bgp bench-health test-replication test-upgrade chaos soak test-vm deps clean

all: build

build:
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/pontoon ./cmd/pontoon

# The same with faults that tests can put into its disk.
build-faults:
	$(GO) build -trimpath -ldflags "-s -w" -tags pontoon_faults -o bin/pontoon-faults ./cmd/pontoon

# The product's own demonstration: three nodes on this machine, a thousand
# connections, a master that dies three different deaths.
demo: build
	bin/pontoon demo

# What the tests use beyond Go, from Debian: only what is missing is installed.
DEPS := ca-certificates iproute2 iperf3 socat netcat-openbsd clang-14 llvm-14 libbpf-dev linux-libc-dev chromium frr bird2
deps:
	@missing=; for p in $(DEPS); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

# Packages beside each other first, and beside them the clusters behind BGP routers: both mostly wait. Then the other
# clusters, where those that measure are alone (node/e2e/doc.go), and last the lab itself and the demo, which start
# clusters, too. Every test is in one of these, which internal/arch checks. The BPF file system is mounted before, so that no
# two of them do it at the same moment, one above the other, and is taken away again if it was not there.
LAB_TESTS    := pontoon/internal/lab pontoon/internal/lab/benchtest pontoon/cmd/pontoon
ROUTER_TESTS  := '^Test(BGPKeeps|ActiveActive|FloatingNextHop|AThousandVIPs|RoutesFollow)'
test:
	@mounted=$$(grep -c ' /sys/fs/bpf bpf ' /proc/mounts); \
	[ "$$mounted" -gt 0 ] || mount -t bpf bpf /sys/fs/bpf 2>/dev/null; \
	$(MAKE) --no-print-directory deps lint check-generate && $(MAKE) --no-print-directory -j4 test-unit test-bpf-1 test-bpf-2 test-routers && \
	$(MAKE) --no-print-directory test-e2e test-labs; status=$$?; \
	[ "$$mounted" -gt 0 ] || umount /sys/fs/bpf 2>/dev/null; exit $$status

test-unit: build
	$(GO) test -timeout 20m $$($(GO) list ./... | grep -v -x $(LAB_TESTS:%=-e %) -e pontoon/bpf -e pontoon/node/e2e)

# The data plane's tests mostly wait, too, and are the longest: in two halves.
BPF_HALF := '^(Test[A-M]|Fuzz)'
test-bpf-1: build
	$(GO) test -timeout 20m -run $(BPF_HALF) ./bpf

test-bpf-2: build
	$(GO) test -timeout 20m -skip $(BPF_HALF) ./bpf

test-routers: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -timeout 20m -v -run $(ROUTER_TESTS) ./node/e2e

test-e2e: build build-faults
	PONTOON_BINARY=$(CURDIR)/bin/pontoon PONTOON_FAULTS_BINARY=$(CURDIR)/bin/pontoon-faults \
	  $(GO) test -timeout 30m -v -skip $(ROUTER_TESTS) ./node/e2e

test-labs: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -timeout 20m -p 3 -v $(LAB_TESTS)

# Replication at the size the product is meant for: about three minutes; test-e2e runs it smaller. What it does stands
# at TestReplicasStayEqualThroughEveryTrouble.
test-replication: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon PONTOON_TEST_FLOWS=100000 PONTOON_TEST_CONNECTIONS=1000 PONTOON_TEST_CUTS=20 \
	  $(GO) test -timeout 15m -v -run ReplicasStayEqual ./node/e2e

# Three builds in one cluster replace each other under traffic, one of them with other records; test-e2e runs it, too.
test-upgrade: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -timeout 10m -v -run BuildsReplaceEachOther ./node/e2e

# Clusters that are hurt at random and must keep their promises: docs/failover.md. One seed takes about 20 s. CHAOS_SEEDS is
# how many from CHAOS_FIRST on; CHAOS_SEED=N is that one alone, as a failure prints it.
CHAOS_SEEDS ?= 10
CHAOS_FIRST ?= 1
CHAOS_SEED  ?=
chaos: build build-faults
	PONTOON_BINARY=$(CURDIR)/bin/pontoon PONTOON_FAULTS_BINARY=$(CURDIR)/bin/pontoon-faults CHAOS_SEEDS=$(CHAOS_SEEDS) CHAOS_FIRST=$(CHAOS_FIRST) CHAOS_SEED=$(CHAOS_SEED) \
	  $(GO) test -timeout 3h -v -count=1 -run 'TestChaos$$' ./node/e2e

lint:
	@fmt=$$($(GO) run $(GOFUMPT) -l $$(git ls-files '*.go' | grep -v '_bpfel\.go$$')); \
	if [ -n "$$fmt" ]; then echo "gofumpt would change:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags pontoon_faults ./node
	$(GO) vet -tags pontoon_vm ./node/e2e
	$(GO) run $(STATICCHECK) ./...
	@if command -v vagrant >/dev/null; then vagrant validate --ignore-provider; else echo "vagrant is not installed: Vagrantfile not validated"; fi
	@for f in packaging/vagrant/*.sh; do sh -n $$f || exit 1; done

# The compiled data plane is committed, so that building needs no clang.
generate:
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(LLVM_STRIP) $(GO) generate ./bpf

check-generate: generate
	@git diff --exit-code --stat -- bpf || { echo "bpf: the committed objects differ from their sources: run make generate and commit"; exit 1; }

# Figures, not tests: docs/benchmarks.md says what they were, where and how.
bench: bench-datapath bench-state bench-replication bench-commit bench-failover

bench-datapath:
	GODEBUG=asyncpreemptoff=1 $(GO) test -run '^$$' -bench . -benchtime 2x ./bpf

# Whole packets through whole machines, beside plain routing, nftables and HAProxy: about ten minutes. BENCH_ROUNDS,
# BENCH_WINDOW, BENCH_CONTENDERS and BENCH_WORKLOADS are described at BenchmarkLabDatapath.
bench-lab: bench-lab-deps build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon GODEBUG=asyncpreemptoff=1 \
	  $(GO) test -run '^$$' -bench LabDatapath -benchtime 1x -timeout 60m ./node/e2e

# The peers it compares with, from Debian.
BENCH_DEPS := nftables haproxy keepalived
bench-lab-deps:
	@$(MAKE) --no-print-directory deps DEPS="$(BENCH_DEPS)"

bench-state:
	$(GO) test -run '^$$' -bench . -skip ReplicationPipeline ./fsm ./node

bench-replication: build
	$(GO) test -run '^$$' -bench 'ReplicationThroughput|ReplicationAtRate' ./transport
	GODEBUG=asyncpreemptoff=1 $(GO) test -run '^$$' -bench ReplicationPipeline -benchtime 1x -timeout 20m ./node
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -run '^$$' -bench Replication -benchtime 1x -timeout 20m ./node/e2e

bench-commit: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -run '^$$' -bench Commit -benchtime 1x -timeout 10m ./node/e2e

# What clients feel of each way to fail, beside keepalived in the same lab: about an hour and a half on a quiet machine.
# BENCH_FAILOVERS, BENCH_FAILURES, BENCH_CONNECTIONS and BENCH_ANCHORS are described at BenchmarkFailover(Anchors).
bench-failover: bench-lab-deps build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -run '^$$' -v -bench Failover -benchtime 1x -timeout 180m ./node/e2e
	$(GO) test -run '^$$' -bench TakeUp -benchtime 100x ./node

# How soon routers follow, behind BIRD and FRR: about forty minutes on a quiet machine. BENCH_MOVES, BENCH_SESSIONS, BENCH_FAILOVERS and
# BGP_ROUTERS are described at BenchmarkBGP….
bench-bgp: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -run '^$$' -v -bench 'BGP' -benchtime 1x -timeout 90m ./node/e2e

# How soon clients are sent to a dead endpoint no more, and what probing 10 000 endpoints takes: about five minutes. BENCH_HEALTH_ROUNDS,
# BENCH_HEALTH_DEATHS and BENCH_HEALTH_PROBES are described at BenchmarkHealth….
bench-health: build
	PONTOON_BINARY=$(CURDIR)/bin/pontoon $(GO) test -v -run '^$$' -bench Health -benchtime 1x -timeout 20m ./node/e2e
	$(GO) test -run '^$$' -bench . ./node/health

# The tests on another kernel, in a virtual machine; docs/testing-vm.md. SUITES
# picks some (programs: does the verifier take the data plane?), RUN some tests.
KERNEL ?= 6.1
SUITES ?=
RUN    ?=
test-vm: build
	$(GO) build -o bin/vmtest ./internal/vmtest
	bin/vmtest -kernel "$(KERNEL)" -suites "$(SUITES)" -run "$(RUN)" $(VMTEST_FLAGS)

# Longer than CI has time for: the demo again and again, and replication in full size.
SOAK_ROUNDS ?= 10
SOAK_CALM   ?= 10m
soak: build test-replication
	PONTOON_BINARY=$(CURDIR)/bin/pontoon PONTOON_TEST_CALM=$(SOAK_CALM) $(GO) test -timeout 30m -v -run BusyMachine ./node/e2e
	PONTOON_BINARY=$(CURDIR)/bin/pontoon BGP_CONNECTIONS=500 $(GO) test -timeout 30m -v -run ActiveActive ./node/e2e
	for i in $$(seq $(SOAK_ROUNDS)); do bin/pontoon demo && bin/pontoon demo --bgp || exit 1; done

clean:
	rm -rf bin
