# The test VM: `make vm` is a shell in it, `make vm CMD='...'` runs a command, VM_FLAGS='--kernel own' adds flags.
VM := $(dir $(lastword $(MAKEFILE_LIST)))

.PHONY: vm
vm: private export FAKEBINDER_VM_CMD = $(CMD)
vm:
	@$(VM)run $(VM_FLAGS) $(if $(CMD),-- sh -c "$$FAKEBINDER_VM_CMD")
