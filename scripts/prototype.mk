# `make prototype`: what a change of the engine does, as clients see it, and to the latency (PROTOTYPE_FLAGS='--base main').
# `make wrong-rules`: ten rules are broken on purpose, one at a time, in a copy of the tree; who notices?
# `make planted-model`: the same for the rules of the page protocol and the model check (tests/alloc_model.rs).
.PHONY: prototype wrong-rules planted-model
prototype: build
	@scripts/prototype $(PROTOTYPE_FLAGS)

wrong-rules: deps
	@scripts/planted rules

planted-model: deps
	@scripts/planted model
