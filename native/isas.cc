#include "isas.h"

#include <atomic>
#include <string_view>
#if defined(ANYBIT_ARM)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace anybit {

namespace {

std::atomic<int> chosen{-1};
constexpr int kCount = static_cast<int>(Isa::count);

#define AB_ISA_NAME(isa, ...) #isa,
const char *const kNames[] = {AB_ISAS(AB_ISA_NAME)};

#if defined(ANYBIT_SIMDE)
bool emulated(Isa isa) { return isa == Isa::avx512vbmi; }
#else
bool emulated(Isa) { return false; }
#endif

}  // namespace

bool isa_supported(Isa isa) {
  if (isa == Isa::generic || emulated(isa)) return true;
#if defined(ANYBIT_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  [[maybe_unused]] const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  [[maybe_unused]] const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx2) return avx2;
#if defined(ANYBIT_FEW) && !defined(ANYBIT_SIMDE)
  if (isa == Isa::avx512vbmi) return vnni && __builtin_cpu_supports("avx512vbmi");
#elif !defined(ANYBIT_FEW)
  if (isa == Isa::avxvnni) return avx2 && __builtin_cpu_supports("avxvnni");
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512vl || isa == Isa::avx512vnni) return vnni;
  if (isa == Isa::avx512vbmi) return vnni && __builtin_cpu_supports("avx512vbmi");
#endif
#endif
#if defined(ANYBIT_ARM)
  if (isa == Isa::neondot) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
  return false;
}

const char *isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa isa() {
  int now = chosen.load(std::memory_order_relaxed);
  if (now < 0) {
    now = kCount - 1;
    while (!isa_supported(static_cast<Isa>(now)) || emulated(static_cast<Isa>(now))) now--;  // emulation is for tests that ask for it
    chosen.store(now);
  }
  return static_cast<Isa>(now);
}

const char *set_isa(const char *name) {
  for (int i = 0; i < kCount; i++) {
    if (std::string_view(kNames[i]) != name) continue;
    if (!isa_supported(static_cast<Isa>(i))) return "this machine does not have it";
    chosen.store(i);
    return nullptr;
  }
  static const char unknown[] = "not one of"
#define AB_ISA_LISTED(isa, ...) " " #isa
      AB_ISAS(AB_ISA_LISTED);
  return unknown;
}

}  // namespace anybit
