// The instruction sets that kernels are built for, from the plainest to the best, and the choice among them.
//
// A kernel source defines one table of functions a set, in namespace anybit::<set>; AB_KERNELS(Type, table) makes `table_of[isa]` of them. To add a
// set: a line here, its compiler flags in CMakeLists.txt, its lanes in isa.h, and what it needs of the machine in isas.cc.
#pragma once

// avx512vl is the AVX-VNNI source with AVX-512's encoding of the same 256-bit instructions: the one that most machines can run.

#if defined(ANYBIT_FEW)  // emulation and sanitizers: one of each width
#define AB_ISAS(X, ...) X(generic, __VA_ARGS__) X(avx2, __VA_ARGS__) X(avx512vbmi, __VA_ARGS__)
#elif defined(ANYBIT_X86)
#define AB_ISAS(X, ...) \
  X(generic, __VA_ARGS__) X(avx2, __VA_ARGS__) X(avxvnni, __VA_ARGS__) X(avx512vl, __VA_ARGS__) X(avx512, __VA_ARGS__) X(avx512vnni, __VA_ARGS__) X(avx512vbmi, __VA_ARGS__)
#elif defined(ANYBIT_ARM)
#define AB_ISAS(X, ...) X(generic, __VA_ARGS__) X(neondot, __VA_ARGS__)
#else
#define AB_ISAS(X, ...) X(generic, __VA_ARGS__)
#endif

#define AB_ISA_ENUM(isa, ...) isa,
#define AB_ISA_DECLARE(isa, Type, table) namespace isa { extern const Type table; }
#define AB_ISA_ADDRESS(isa, Type, table) &isa::table,
// In namespace anybit: declares the tables and lists their addresses in the order of Isa.
#define AB_KERNELS(Type, table) \
  AB_ISAS(AB_ISA_DECLARE, Type, table) \
  static const Type *const table##_of[] = {AB_ISAS(AB_ISA_ADDRESS, Type, table)};

namespace anybit {

enum class Isa : int { AB_ISAS(AB_ISA_ENUM) count };

Isa isa();                              // in use: the best that the machine has, or what set_isa named
const char *isa_name(Isa);
bool isa_supported(Isa);
const char *set_isa(const char *name);  // nullptr, or what is wrong with the name. Weights made before keep theirs.

}  // namespace anybit
