# What is done often. `make help` lists it.

IMAGE ?= kraken
TAG ?= latest
# For several, and for a registry: make images PLATFORMS=linux/amd64,linux/arm64 OUTPUT=--push IMAGE=registry.example.com/kraken
PLATFORMS ?=
OUTPUT ?= --load
ROLES = agent origin tracker proxy build-index
PACKAGES = -p kraken $(ROLES:%=-p kraken-%)
COMPOSE ?= docker compose
BUILD = docker buildx build -f deploy/images/Dockerfile $(PLATFORMS:%=--platform %) $(OUTPUT)

.PHONY: help release images devcluster demo compose compose-down test lint deploy-check bench docs fmt

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

release: ## all programs, in target/release
	cargo build --release --locked $(PACKAGES)

images: $(ROLES:%=image-%) ## an image for each process, and one with all
	$(BUILD) --target all -t $(IMAGE):$(TAG) .

.PHONY: $(ROLES:%=image-%)
$(ROLES:%=image-%): image-%:
	$(BUILD) --target $* -t $(IMAGE)-$*:$(TAG) .

devcluster: ## a whole cluster in one process, until Ctrl-C
	cargo run --release --bin kraken -- dev

demo: ## pushes an image and pulls it through every agent at once
	cargo run --release --bin kraken -- demo

compose: ## three origins and three agents in containers
	$(COMPOSE) -f deploy/compose/compose.yaml up -d --wait

compose-down: ## stops them; what they keep stays
	$(COMPOSE) -f deploy/compose/compose.yaml down

test: ## all tests
	cargo test --workspace

lint: ## formatting, licences, lints, borders between crates
	cargo fmt --all --check
	.ci/licences
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	.ci/borders

deploy-check: ## the chart, the units and the alerts, with the tools that they are for
	.ci/deploy

bench: ## the data path beside its peers
	cargo run --release -p kraken-benches --bin datapath

docs: ## the reference of all crates, in target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features

fmt: ## formats
	cargo fmt --all
