# `make prototype`: what a change of the engine does, as clients see it, and to the latency (PROTOTYPE_FLAGS='--base main').
# `make wrong-rules`: ten rules are broken on purpose, one at a time, in a build of its own; who notices?
.PHONY: prototype wrong-rules
prototype: build
	@scripts/prototype $(PROTOTYPE_FLAGS)

wrong-rules: deps
	CARGO_TARGET_DIR=target/wrong-rules cargo test --release --features wrong-rules --test wrong_rules -- --nocapture
