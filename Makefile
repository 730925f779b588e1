# The front door. The build itself is Meson's; `meson setup build && ninja -C build` does as well.
#
#   make         build                        make test     install what is missing, build, run all tests
#   make demo    install, build, show it      make bench    measure beside the peers; FULL=1: all sizes
#   make install PREFIX=/usr/local            make soak     an hour at 10 % local memory (SOAK_SECONDS=3600)
#   make fuzz    FUZZ_SECONDS=60 a parser     make lint     rules of the house
#   make tsan    unit tests that have threads, under the thread sanitizer
#   make clean

BUILD ?= build
BUILD_ASAN ?= build-asan
BUILD_FUZZ ?= build-fuzz
BUILD_TSAN ?= build-tsan
PREFIX ?= /usr/local
SOAK_SECONDS ?= 3600
FUZZ_SECONDS ?= 60
DISTRI_PROC_PREFIX ?= /opt/distri-proc
export DISTRI_PROC_PREFIX
FULL ?=
MESON_FLAGS ?=
MESON_SETUP = meson setup --prefix=$(PREFIX) -Dcriu_prefix=$(DISTRI_PROC_PREFIX) $(MESON_FLAGS)

.PHONY: all setup demo test bench soak fuzz install clean lint tsan build-plain build-asan

all: build-plain

$(BUILD)/build.ninja:
	@command -v meson >/dev/null && command -v ninja >/dev/null || { echo "make: meson or ninja is missing: run scripts/setup" >&2; exit 1; }
	$(MESON_SETUP) $(BUILD) >/dev/null || { $(MESON_SETUP) $(BUILD) | tail -n 3; exit 1; }

build-plain: $(BUILD)/build.ninja
	@ninja -C $(BUILD) --quiet

# -O1 keeps the sanitized tests quick. Under sanitizers gcc warns of truncations that cannot be.
$(BUILD_ASAN)/build.ninja:
	$(MESON_SETUP) $(BUILD_ASAN) -Db_sanitize=address,undefined -Dbuildtype=debug -Doptimization=1 -Dwerror=false -Dc_args=-Wno-format-truncation >/dev/null

build-asan: $(BUILD_ASAN)/build.ninja
	@ninja -C $(BUILD_ASAN) --quiet

$(BUILD_FUZZ)/build.ninja:
	CC=clang $(MESON_SETUP) $(BUILD_FUZZ) -Dfuzz=true -Doptimization=1 -Db_sanitize=address,undefined -Db_lundef=false >/dev/null

setup:
	@scripts/setup

demo: setup
	@$(MAKE) --no-print-directory build-plain
	@DP_BUILD=$(abspath $(BUILD)) scripts/demo

test: setup
	@$(MAKE) --no-print-directory build-plain build-asan $(BUILD_FUZZ)/build.ninja
	@tests/run --build $(BUILD) --asan $(BUILD_ASAN) --fuzz $(BUILD_FUZZ)

bench: setup
	@$(MAKE) --no-print-directory build-plain
	@DP_BUILD=$(abspath $(BUILD)) bench/run $(if $(FULL),--full,--quick)

soak: setup
	@$(MAKE) --no-print-directory build-plain
	@DP_BUILD=$(abspath $(BUILD)) DP_SECONDS=$(SOAK_SECONDS) scripts/soak

# Address-space randomization is off: older thread sanitizers do not know the places that newer kernels choose.
$(BUILD_TSAN)/build.ninja:
	$(MESON_SETUP) $(BUILD_TSAN) -Db_sanitize=thread -Dbuildtype=debug -Doptimization=1 -Dwerror=false -Dc_args=-Wno-format-truncation >/dev/null

tsan: setup
	@$(MAKE) --no-print-directory $(BUILD_TSAN)/build.ninja
	@tests/run --tsan $(BUILD_TSAN)

fuzz: setup
	@$(MAKE) --no-print-directory $(BUILD_FUZZ)/build.ninja
	@tests/run --fuzz $(BUILD_FUZZ) --fuzz-seconds $(FUZZ_SECONDS)

install: build-plain
	@meson configure $(BUILD) --prefix=$(PREFIX)
	@meson install -C $(BUILD) --quiet
	@echo "installed below $(DESTDIR)$(PREFIX)"

lint:
	@scripts/lint

clean:
	rm -rf $(BUILD) $(BUILD_ASAN) $(BUILD_FUZZ) $(BUILD_TSAN)
