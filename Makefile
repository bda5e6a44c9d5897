# The commands of this project. `make` alone lists them.

GO          ?= go
BIN         := bin/orchestrator
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
REVIVE      := $(GO) run github.com/mgechev/revive@v1.13.0
MISSPELL    := $(GO) run github.com/golangci/misspell/cmd/misspell@v0.8.0
# The race detector needs a C compiler.
RACE        := $(shell command -v $$($(GO) env CC) >/dev/null 2>&1 && echo -race)

.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## compile to bin/orchestrator
	$(GO) build -buildvcs=false -ldflags="-s -w" -o $(BIN) ./cmd/orchestrator

run: build ## run the program in the foreground; edit a module and save
	@exec $(BIN) run

test: ## run all tests
	$(GO) test $(RACE) -shuffle=on -timeout 15m ./...

crash: ## make every step of a reload fail in every way, and print the table
	CRASH=all CRASH_TABLE=1 $(GO) test $(RACE) -count=1 -timeout 30m -run TestCrashMatrix -v ./app/e2e/failures

soak: ## reload 1,000 times under load, every second time to a bad candidate
	SOAK=1000 $(GO) test -count=1 -timeout 60m -run TestSoak -v ./app/e2e/soak
	SOAK=1000 $(GO) test -count=1 -timeout 60m -run TestDescriptorsStayFlat -v ./app/e2e/connections

CHAOS ?= 1h
chaos: ## make everything fail at once: every two setbacks, random kills for an hour (CHAOS=1h), random builds
	FAULTS=all $(GO) test -count=1 -timeout 30m -run TestInterleaved -v ./handoff
	FAULTS=all $(GO) test -count=1 -timeout 30m -run TestActors -v ./app/internal/supervisor
	WALK=3000 $(GO) test -count=1 -timeout 60m -run TestRandomWalk -v ./app/e2e/upgrade
	BUSY=all $(GO) test -count=1 -timeout 30m -run TestBusyServices -v ./app/e2e/upgrade
	CHAOS=$(CHAOS) $(GO) test -count=1 -timeout 120m -run TestChaos -v ./app/e2e/chaos

bench: ## measure: from save to serving beside the peers, pauses, throughput, large states
	$(GO) run ./cmd/bench save
	$(GO) run ./cmd/bench failure
	$(GO) run ./cmd/bench cost
	$(GO) test -run XXX -bench Pause -benchtime 200x -timeout 30m ./app/e2e/upgrade
	$(GO) test -run XXX -bench Throughput -benchtime 3x ./app/internal/worker
	$(GO) test -run XXX -bench 1GiB -benchtime 5x -timeout 30m ./app/e2e/upgrade

bench-heavy: ## measure from save to serving with all of Caddy linked in
	$(GO) run ./cmd/bench heavy

edits: ## edit a program at random, 500 times, and compare the direct build with go build
	EDITS=500 $(GO) test -count=1 -run TestRandomEdits -timeout 60m -v ./app/internal/build

fuzz: ## look for inputs that break the decoders, ten minutes each
	$(GO) test -run XXX -fuzz FuzzLink -fuzztime 10m ./handoff
	$(GO) test -run XXX -fuzz FuzzStates -fuzztime 10m ./handoff
	$(GO) test -run XXX -fuzz FuzzConfig -fuzztime 10m ./config

lint: ## formatting, vet, staticcheck, the house rules, tidy, and that the other platforms compile
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./...
	$(STATICCHECK) ./...
	$(GO) build -C .ci/lint -o ../../bin/lint . && $(GO) vet -vettool=$(CURDIR)/bin/lint ./...
	$(REVIVE) -config .revive.toml ./...
	@git ls-files '*.go' '*.md' | xargs $(MISSPELL) -error
	$(GO) mod tidy -diff
	GOOS=darwin $(GO) vet ./...
	GOOS=windows $(GO) build -o /dev/null ./...

check: lint test ## everything a commit must pass

fmt: ## format the code
	gofmt -w .

rename: ## give the module another path: make rename MODULE=github.com/you/orchestrator
	@printf '%s' '$(MODULE)' | grep -qE '^[a-z0-9.-]+\.[a-z0-9.-]+(/[A-Za-z0-9._~-]+)+$$' || { echo "make rename MODULE=github.com/you/orchestrator: a path without spaces, whose first part has a dot"; exit 2; }
	@old=$$($(GO) list -m) && git ls-files ':!CHANGELOG.md' ':!docs/decisions.md' | xargs grep -IlF "$$old" | xargs sed -i.bak "s#$$old#$(MODULE)#g" && git ls-files | sed 's/$$/.bak/' | xargs rm -f
	gofmt -w . && $(GO) build ./...

.PHONY: help build run test crash soak chaos bench bench-heavy edits fuzz lint check fmt rename
