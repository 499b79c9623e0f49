# toroid's build: `make help` lists the targets.
#
# help: targets
# help:   make train_gpt2   the trainer, for the CPU (the default)
# help:   make test_gpt2    the parity test against reference outputs
# help:   make train_gpt2cu test_gpt2cu   the same for NVIDIA GPUs; make cuda_registers: what ptxas says of each kernel
# help:   make cuda_tests cuda_benches    tests and benchmarks for a GPU (scripts/gpu_check.sh runs them)
# help:   make test-cuda-shim   the CUDA kernels, run on the CPU
# help:   make tests        the unit tests, into build/test; make benches: the benchmarks, into build/bench
# help:   make test         everything that scripts/test.sh runs
# help:   make clean
# help: settings
# help:   CC=gcc|clang|aarch64-linux-gnu-gcc   the compiler; its target decides which kernels are built
# help:   BLAS=openblas|blis|mkl    fp32 matmuls by that library instead of our own
# help:   BUILD=folder              where everything is built (build)
# help:   PRECISION=bf16|fp32       what GPU kernels store (bf16)
# help:   ARCHS="80 90 100"         the GPU architectures with code of their own; newer ones compile at the first start
# help:   ARCH=native|90|...        only that one
# help:   NVCC=... CUDA_HOME=... NCCL_HOME=...   where they are, if not where dev/probe.sh looks
# help:   OPT=-O3  SANITIZE=address,undefined|thread  WERROR=0  CFLAGS_EXTRA=...
BUILD    ?= build
CC       := $(if $(filter default,$(origin CC)),gcc,$(CC))
OPT      ?= -O3
WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wconversion $(if $(filter 0,$(WERROR)),,-Werror)
# Lines are enough for the backtraces of optimised code; variables would take a third of the time of compiling it.
DEBUG    := $(if $(filter -O0 -Og,$(OPT)),-g,-g1)
CFLAGS   := -std=c11 $(OPT) $(DEBUG) -ffp-contract=off -fopenmp $(WARN) -Illmc -Idev/test -Idev/bench $(CFLAGS_EXTRA)
LDFLAGS  := -fopenmp
LDLIBS   := -lm
ifdef SANITIZE
CFLAGS   += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all
LDFLAGS  += -fsanitize=$(SANITIZE)
endif

.DEFAULT_GOAL := all

# --- the CPU kernels are compiled once per instruction set; dispatch.c chooses at run time ---
TARGET   := $(shell $(CC) -dumpmachine)
ifneq ($(filter x86_64%,$(TARGET)),)
CPU_ISAS := portable avx2 avx512 avx512bf16
else ifneq ($(filter aarch64% arm64%,$(TARGET)),)
CPU_ISAS := portable neon
else
CPU_ISAS := portable
endif
FLAGS_portable   := -DISA_PORTABLE
FLAGS_neon       :=
FLAGS_avx2       := -mavx2 -mfma -mf16c
FLAGS_avx512     := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
FLAGS_avx512bf16 := $(FLAGS_avx512) -mavx512bf16 -mavx512vnni
CPU_ONCE := llmc/cpu/device.c llmc/cpu/dispatch.c llmc/cpu/blas.c
CPU_SRC  := $(addprefix llmc/cpu/,attention.c decode.c gemm.c matmul.c memory_bound.c peak.c)
# avx512bf16 differs from avx512 in products of bf16 alone; the other kernels are avx512's (dispatch.c).
SRC_avx512bf16   := $(addprefix llmc/cpu/,attention.c gemm.c matmul.c peak.c)
ISA_DEFS := $(foreach isa,$(CPU_ISAS),-DHAVE_ISA_$(isa))

# --- optional libraries: found by compiling and linking a few lines ---
ifeq ($(filter clean help,$(MAKECMDGOALS)),)
-include $(BUILD)/config.mk
endif
$(BUILD)/config.mk: dev/probe.sh
	@mkdir -p $(@D)
	@dev/probe.sh $(CC) >$@
$(BUILD)/llmc/comm/%.o $(BUILD)/dev/bench/%.o: CFLAGS += $(MPI_CFLAGS)
$(BUILD)/llmc/ckpt/%.o: CFLAGS += $(URING_CFLAGS) $(CURL_CFLAGS)
LDLIBS   += $(MPI_LIBS) $(URING_LIBS) $(CURL_LIBS) -lpthread

ifneq ($(filter %cu cuda_% %.cu.o,$(MAKECMDGOALS)),)
-include $(BUILD)/cuda.mk
endif
$(BUILD)/cuda.mk: dev/probe.sh
	@mkdir -p $(@D)
	@dev/probe.sh $(CC) cuda >$@

BLAS_openblas := -lopenblas
BLAS_blis     := -lblis
BLAS_mkl      := -lmkl_rt
ifdef BLAS
ifeq ($(BLAS_$(BLAS)),)
$(error BLAS=$(BLAS): not one of openblas, blis, mkl)
endif
CFLAGS   += -DUSE_BLAS='"$(BLAS)"'
LDLIBS   += $(BLAS_$(BLAS))
endif

LIB_SRC  := $(wildcard llmc/base/*.c llmc/model/*.c llmc/data/*.c llmc/comm/*.c llmc/ckpt/*.c llmc/run/*.c) $(wildcard $(CPU_ONCE))
ISA_OBJ  := $(foreach isa,$(CPU_ISAS),$(patsubst %.c,$(BUILD)/%.$(isa).o,$(or $(SRC_$(isa)),$(CPU_SRC))))
# Those that take longest first: the last jobs of a build end together.
LIB_OBJ  := $(foreach k,gemm attention decode,$(filter $(BUILD)/llmc/cpu/$(k).%,$(ISA_OBJ)))
LIB_OBJ  += $(filter-out $(LIB_OBJ),$(ISA_OBJ)) $(LIB_SRC:%.c=$(BUILD)/%.o)
# Code without loops over data: at -O1 it takes half the time to compile.
COLD_SRC := $(addprefix llmc/base/,error.c file.c json.c log.c machine.c options.c options_show.c) $(wildcard llmc/ckpt/*.c) \
            $(addprefix llmc/comm/,comm_mpi.c comm_open.c control.c fault.c mpi_start.c probe.c rendezvous.c topology.c \
                topology_file.c world.c) \
            $(filter-out $(addprefix llmc/run/,exact_sum.c model_file.c safetensors_write.c tensor_io.c),$(wildcard llmc/run/*.c))
cold      = $(COLD_SRC:%.c=$(1)/%.o): CFLAGS += $(if $(filter -O3,$(OPT)),-O1)
$(eval $(call cold,$(BUILD)))
LIB      := $(BUILD)/libtoroid.a
TESTS    := $(patsubst dev/test/%.c,$(BUILD)/test/%,$(wildcard dev/test/test_*.c))
CKPT_LAB := $(addprefix $(BUILD)/ckpt_lab/,driver images $(if $(FUSE_LIBS),write_log))
BENCHES  := $(patsubst dev/bench/%.c,$(BUILD)/bench/%,$(wildcard dev/bench/bench_*.c))

all: train_gpt2

train_gpt2: $(BUILD)/train_gpt2
	@ln -sf $< $@
test_gpt2: $(BUILD)/test_gpt2
	@ln -sf $< $@
$(BUILD)/train_gpt2 $(BUILD)/test_gpt2: $(BUILD)/%: $(BUILD)/%.o $(LIB)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/test/%: $(BUILD)/dev/test/%.o $(LIB)
	@mkdir -p $(@D)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/test/test_ckpt_io $(BUILD)/test/test_ckpt_crash: \
    $(BUILD)/dev/test/ckpt_io_sim.o $(BUILD)/dev/test/ckpt_sim_disk.o
$(BUILD)/ckpt_lab/%: $(BUILD)/dev/ckpt_lab/%.o $(LIB)
	@mkdir -p $(@D)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/ckpt_lab/write_log: $(BUILD)/dev/ckpt_lab/write_log.o
	@mkdir -p $(@D)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(FUSE_LIBS)
$(BUILD)/dev/ckpt_lab/write_log.o: CFLAGS += $(FUSE_CFLAGS)
$(BUILD)/bench/%: $(BUILD)/dev/bench/%.o $(LIB)
	@mkdir -p $(@D)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(LIB): $(LIB_OBJ)
	@rm -f $@
	@$(AR) rcs $@ $^

$(BUILD)/llmc/cpu/dispatch.o: CFLAGS += $(ISA_DEFS)
$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	@echo '  CC   $@'
	@$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
define ISA_RULE
$(BUILD)/%.$(1).o: %.c Makefile
	@mkdir -p $$(@D)
	@echo '  CC   $$@'
	@$(CC) $(CFLAGS) $(FLAGS_$(1)) -DISA=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach isa,$(CPU_ISAS),$(eval $(call ISA_RULE,$(isa))))

# --- for GPUs: train_gpt2.cu is all of llmc/cuda in one unit ---
PRECISION ?= bf16
ARCHS    ?= 80 90 100
ifdef ARCH
ifneq ($(ARCH),native)
ARCHS    := $(ARCH)
endif
endif
NEWEST    = $(lastword $(ARCHS))
GENCODE   = $(if $(filter native,$(ARCH)),-arch=native,$(foreach a,$(filter-out $(NEWEST),$(ARCHS)),-gencode \
            arch=compute_$(a),code=sm_$(a)) -gencode arch=compute_$(NEWEST),code=[sm_$(NEWEST),compute_$(NEWEST)])
CUDA_OUT := $(BUILD)/cuda-$(PRECISION)$(ARCH:%=-%)
CUDA_DEF := $(if $(filter bf16,$(PRECISION)),-DFLOATX_BF16,$(if $(filter-out fp32,$(PRECISION)),$(error PRECISION=$(PRECISION): bf16 or fp32)))
# The C files that depend on floatX or on NCCL are compiled for the GPU; the others are those of the CPU program.
CUDA_SRC := $(wildcard llmc/model/*.c llmc/run/*.c) llmc/comm/comm_open.c llmc/comm/comm_nccl.c
ANY_SRC  := $(filter-out $(CUDA_SRC) llmc/cpu/%,$(LIB_SRC))
CUDA_OBJ := $(CUDA_OUT)/train_gpt2.cu.o $(CUDA_SRC:%.c=$(CUDA_OUT)/%.o) $(ANY_SRC:%.c=$(BUILD)/%.o)
$(eval $(call cold,$(CUDA_OUT)))
, := ,
NVFLAGS   = -std=c++17 -O3 --threads 0 $(GENCODE) -Illmc -Idev/test -Idev/bench $(CUDA_DEF) $(if $(filter 0,$(WERROR)),-Xptxas -v$(,)-warn-spills,-Werror all-warnings -Xptxas -v$(,)-warn-spills$(,)-Werror) \
            -Xcompiler -Wall,-Wextra,-Wshadow,-g $(if $(filter 0,$(WERROR)),,-Xcompiler -Werror) -compress-mode=size \
            $(CUBLASLT_CFLAGS) $(NVFLAGS_EXTRA)
CUDA_LIBS = $(CUBLASLT_LIBS) $(NCCL_LIBS) $(CUDART) -lstdc++

train_gpt2cu: $(BUILD)/train_gpt2cu
	@ln -sf $< $@
test_gpt2cu: $(BUILD)/test_gpt2cu
	@ln -sf $< $@
$(BUILD)/train_gpt2cu $(BUILD)/test_gpt2cu: $(BUILD)/%cu: $(CUDA_OUT)/%.o $(CUDA_OBJ)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) $(LDLIBS)
$(CUDA_OUT)/llmc/comm/%.o: CFLAGS += $(MPI_CFLAGS) $(NCCL_CFLAGS) $(CUDA_CFLAGS)
$(CUDA_OUT)/%.o: %.c Makefile
	@mkdir -p $(@D)
	@echo '  CC   $@'
	@$(CC) $(CFLAGS) $(CUDA_DEF) -MMD -MP -c -o $@ $<
# What ptxas says goes to a file; compiler errors are shown.
$(CUDA_OUT)/%.cu.o: %.cu Makefile
	$(if $(and $(NVCC),$(CUBLASLT_LIBS)),,$(error the GPU programs need nvcc and cuBLASLt; dev/probe.sh $(CC) cuda says what is there))
	@mkdir -p $(@D)
	@echo '  NVCC $@'
	@$(NVCC) $(NVFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $< 2>$(@:.o=.log) || { grep -v '^ptxas info\|^    0 bytes' $(@:.o=.log); exit 1; }
	@grep -v '^ptxas info\|^    0 bytes' $(@:.o=.log) || true
# Tests and benchmarks for a GPU; those that define kernels themselves take them from there, not from the archive.
CUDA_TESTS_fp32 := test_kernels test_decode test_attention test_exact test_cuda_matmul test_cuda_attention
CUDA_TESTS_bf16 := test_cuda_bf16 test_cuda_matmul test_cuda_attention
cuda_tests: $(CUDA_TESTS_$(PRECISION):%=$(CUDA_OUT)/test/%)
cuda_benches: $(addprefix $(CUDA_OUT)/bench/bench_,cuda step decode walk)
$(CUDA_OUT)/dev/test/%.o: CFLAGS += -DTEST_CUDA
define CUDA_PROGRAM
	@mkdir -p $(@D)
	@echo '  LD   $@'
	@$(CC) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) $(LDLIBS)
endef
$(CUDA_OUT)/libtoroid.a: $(CUDA_OBJ)
	@rm -f $@
	@$(AR) rcs $@ $^
$(CUDA_OUT)/test/%: $(CUDA_OUT)/dev/test/%.cu.o $(CUDA_OUT)/dev/test/cuda_test.cu.o $(CUDA_OUT)/libtoroid.a
	$(CUDA_PROGRAM)
$(CUDA_OUT)/test/%: $(CUDA_OUT)/dev/test/%.o $(CUDA_OUT)/dev/test/cuda_test.cu.o $(CUDA_OUT)/libtoroid.a
	$(CUDA_PROGRAM)
$(CUDA_OUT)/bench/%: $(CUDA_OUT)/dev/bench/%.cu.o $(CUDA_OUT)/libtoroid.a
	$(CUDA_PROGRAM)
$(CUDA_OUT)/bench/%: $(CUDA_OUT)/dev/bench/%.o $(CUDA_OUT)/libtoroid.a
	$(CUDA_PROGRAM)
# The committed table is of the default ARCHS and PRECISION.
cuda_registers cuda_registers_write: $(CUDA_OUT)/train_gpt2.cu.o
	@dev/cuda_registers.sh $(<:.o=.log) dev/cuda_registers.txt $(if $(findstring write,$@),--write)

include dev/cuda_shim/shim.mk

tests: $(TESTS) $(CKPT_LAB)
benches: $(BENCHES)
test:
	@scripts/test.sh
help:
	@sed -n 's/^# help: //p' Makefile
clean:
	rm -rf $(BUILD) train_gpt2 test_gpt2 train_gpt2cu test_gpt2cu
.PHONY: all train_gpt2 test_gpt2 train_gpt2cu test_gpt2cu cuda_registers cuda_registers_write cuda_tests cuda_benches tests benches test help clean
.SECONDARY:
-include $(shell find $(BUILD)/llmc $(BUILD)/dev $(CUDA_OUT) -name '*.d' 2>/dev/null) $(wildcard $(BUILD)/*.d)
