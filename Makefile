# toroid's build: `make help` lists the targets.
#
# help: targets
# help:   make train_gpt2   the trainer, for the CPU (the default)
# help:   make test_gpt2    the parity test against reference outputs
# help:   make tests        the unit tests, into build/test; make benches: the benchmarks, into build/bench
# help:   make test         everything that scripts/test.sh runs
# help:   make clean
# help: settings
# help:   CC=gcc|clang|aarch64-linux-gnu-gcc   the compiler; its target decides which kernels are built
# help:   BLAS=openblas|blis|mkl    fp32 matmuls by that library instead of our own
# help:   BUILD=folder              where everything is built (build)
# help:   OPT=-O3  SANITIZE=address,undefined|thread  WERROR=0  CFLAGS_EXTRA=...
BUILD    ?= build
CC       := $(if $(filter default,$(origin CC)),gcc,$(CC))
OPT      ?= -O3
WARN     := -Wall -Wextra -Wpedantic -Wshadow -Wconversion $(if $(filter 0,$(WERROR)),,-Werror)
CFLAGS   := -std=c11 $(OPT) -g -ffp-contract=off -fopenmp $(WARN) -Illmc -Idev/test -Idev/bench $(CFLAGS_EXTRA)
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
CPU_SRC  := $(filter-out $(CPU_ONCE),$(wildcard llmc/cpu/*.c))
ISA_DEFS := $(foreach isa,$(CPU_ISAS),-DHAVE_ISA_$(isa))

# --- optional libraries: found by compiling and linking a few lines ---
ifeq ($(filter clean help,$(MAKECMDGOALS)),)
-include $(BUILD)/config.mk
endif
$(BUILD)/config.mk: dev/probe.sh
	@mkdir -p $(@D)
	@dev/probe.sh $(CC) >$@
$(BUILD)/llmc/comm/%.o $(BUILD)/dev/bench/%.o: CFLAGS += $(MPI_CFLAGS)
LDLIBS   += $(MPI_LIBS) -lpthread

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

LIB_SRC  := $(wildcard llmc/base/*.c llmc/model/*.c llmc/data/*.c llmc/comm/*.c llmc/run/*.c) $(wildcard $(CPU_ONCE))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o) $(foreach isa,$(CPU_ISAS),$(CPU_SRC:%.c=$(BUILD)/%.$(isa).o))
LIB      := $(BUILD)/libtoroid.a
TESTS    := $(patsubst dev/test/%.c,$(BUILD)/test/%,$(wildcard dev/test/test_*.c))
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

tests: $(TESTS)
benches: $(BENCHES)
test:
	@scripts/test.sh
help:
	@sed -n 's/^# help: //p' Makefile
clean:
	rm -rf $(BUILD) train_gpt2 test_gpt2
.PHONY: all train_gpt2 test_gpt2 tests benches test help clean
.SECONDARY:
-include $(shell find $(BUILD)/llmc $(BUILD)/dev -name '*.d' 2>/dev/null) $(wildcard $(BUILD)/*.d)
