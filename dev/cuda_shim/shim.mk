# shim.mk: the CUDA kernels on the CPU, for tests (see shim.h); read by the Makefile. train_gpt2.cu is compiled by a C++
# compiler with this folder in place of CUDA's headers, once for each type that parameters may be stored in.
CXX_SHIM    := $(if $(findstring clang,$(CC)),$(subst clang,clang++,$(CC)),$(subst gcc,g++,$(CC)))
SHIM_ENGINE := train_gpt2.cu dev/test/cuda_test.cu $(wildcard dev/cuda_shim/*.cpp)
# -O2 also where -O3 is asked for: emulation is a thousand times slower than a GPU in any case
CXXFLAGS_SHIM = -std=c++17 $(OPT:-O3=-O2) $(DEBUG) -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas \
            $(if $(filter 0,$(WERROR)),,-Werror) -Illmc -Idev/test -Idev/cuda_shim $(CFLAGS_EXTRA) \
            $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all)
DEF_shim-fp32 :=
DEF_shim-bf16 := -DFLOATX_BF16
# Where the objects of C files that depend on floatX lie: those for fp32 are the CPU program's own.
OUT_shim-fp32 := $(BUILD)
OUT_shim-bf16 := $(BUILD)/shim-bf16

# SHIM_RULES PROFILE: objects, library and programs in BUILD/PROFILE.
define SHIM_RULES
$(BUILD)/$(1)/libtoroid.a: $(SHIM_ENGINE:%=$(BUILD)/$(1)/%.o) $(CUDA_SRC:%.c=$(OUT_$(1))/%.o) $(ANY_SRC:%.c=$(BUILD)/%.o)
	@rm -f $$@
	@$(AR) rcs $$@ $$^
$(BUILD)/$(1)/train_gpt2 $(BUILD)/$(1)/test_gpt2: $(BUILD)/$(1)/%: $(OUT_$(1))/%.o $(BUILD)/$(1)/libtoroid.a
	@echo '  LD   $$@'
	@$(CC) $(LDFLAGS) -o $$@ $$^ $(LDLIBS) -lstdc++
$(BUILD)/$(1)/test_cuda_%: $(BUILD)/$(1)/dev/test/test_cuda_%.cu.o $(BUILD)/$(1)/libtoroid.a
	@echo '  LD   $$@'
	@$(CC) $(LDFLAGS) -o $$@ $$^ $(LDLIBS) -lstdc++
$(BUILD)/$(1)/test_%: $(BUILD)/$(1)/dev/test/test_%.o $(BUILD)/$(1)/libtoroid.a
	@echo '  LD   $$@'
	@$(CC) $(LDFLAGS) -o $$@ $$^ $(LDLIBS) -lstdc++
$(BUILD)/$(1)/%.o: %.c dev/cuda_shim/shim.mk
	@mkdir -p $$(@D)
	@echo '  CC   $$@'
	@$(CC) $(CFLAGS) $(MPI_CFLAGS) $(URING_CFLAGS) $(CURL_CFLAGS) $(DEF_$(1)) -DTEST_CUDA -MMD -MP -c -o $$@ $$<
$(BUILD)/$(1)/%.cu.o: %.cu dev/cuda_shim/shim.mk
	@mkdir -p $$(@D)
	@echo '  CXX  $$@'
	@$(CXX_SHIM) -x c++ $(CXXFLAGS_SHIM) $(DEF_$(1)) -MMD -MP -c -o $$@ $$<
$(BUILD)/$(1)/%.cpp.o: %.cpp dev/cuda_shim/shim.mk
	@mkdir -p $$(@D)
	@echo '  CXX  $$@'
	@$(CXX_SHIM) $(CXXFLAGS_SHIM) $(DEF_$(1)) -MMD -MP -c -o $$@ $$<
endef
$(foreach profile,shim-fp32 shim-bf16,$(eval $(call SHIM_RULES,$(profile))))
$(eval $(call cold,$(BUILD)/shim-bf16))

# --comm=nccl, with a small NCCL of our own: the files of llmc/comm that depend on it are compiled once more.
SHIM_NCCL := $(addprefix $(BUILD)/shim-nccl/,llmc/comm/comm_open.o llmc/comm/comm_nccl.o fake_nccl.o)
$(BUILD)/shim-nccl/llmc/comm/%.o: llmc/comm/%.c dev/cuda_shim/shim.mk
	@mkdir -p $(@D)
	@echo '  CC   $@'
	@$(CC) $(CFLAGS) $(MPI_CFLAGS) -DHAVE_NCCL -isystem dev/cuda_shim/nccl -MMD -MP -c -o $@ $<
$(BUILD)/shim-nccl/fake_nccl.o: dev/cuda_shim/nccl/fake_nccl.cpp dev/cuda_shim/shim.mk
	@mkdir -p $(@D)
	@echo '  CXX  $@'
	@$(CXX_SHIM) $(CXXFLAGS_SHIM) -MMD -MP -c -o $@ $<
$(BUILD)/shim-nccl/train_gpt2: $(BUILD)/train_gpt2.o
$(BUILD)/shim-nccl/test_comm: $(BUILD)/dev/test/test_comm.o
$(BUILD)/shim-nccl/train_gpt2 $(BUILD)/shim-nccl/test_comm: $(SHIM_NCCL) $(BUILD)/shim-fp32/libtoroid.a
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $(filter-out %.a,$^) $(filter %.a,$^) $(LDLIBS) -lstdc++

SHIM_PROGRAMS := $(BUILD)/train_gpt2 \
    $(addprefix $(BUILD)/shim-fp32/,train_gpt2 test_gpt2 test_kernels test_decode test_attention test_exact \
        test_cuda_shim test_cuda_matmul test_cuda_attention) \
    $(addprefix $(BUILD)/shim-bf16/,train_gpt2 test_cuda_bf16 test_cuda_matmul test_cuda_attention) \
    $(addprefix $(BUILD)/shim-nccl/,train_gpt2 test_comm)

build-cuda-shim: $(SHIM_PROGRAMS)
test-cuda-shim: build-cuda-shim
	@dev/cuda_shim/test.sh $(BUILD)
.PHONY: build-cuda-shim test-cuda-shim
-include $(shell find $(BUILD)/shim-fp32 $(BUILD)/shim-bf16 $(BUILD)/shim-nccl -name '*.d' 2>/dev/null)
