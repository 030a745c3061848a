/* Lets a program see an Intel CPU that ends with AVX2: no AVX-512, no VNNI, no AMX.
 *
 *     cc -O2 -shared -fPIC -o hide_avx512.so hide_avx512.c
 *     LD_PRELOAD=./hide_avx512.so HIDE_CPUINFO=cpuinfo.txt program
 *
 * The kernel can make the CPUID instruction fault (arch_prctl(2), ARCH_SET_CPUID; the CPU needs
 * "cpuid_fault" in /proc/cpuinfo). The fault arrives here, is answered with what the CPU says, less
 * the bits of those extensions, and the program goes on behind the instruction. Bits are named in
 * Intel's Software Developer's Manual, volume 2A, CPUID, leaf 7. Programs that read /proc/cpuinfo
 * instead are given the file that HIDE_CPUINFO names.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { SET_CPUID = 0x1012, FAULTS = 0, ANSWERS = 1 };

/* AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL */
static const uint32_t EBX = 1u << 16 | 1u << 17 | 1u << 21 | 7u << 26 | 3u << 30;
/* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
static const uint32_t ECX = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
/* AVX512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX BF16, TILE, INT8 */
static const uint32_t EDX = 1u << 2 | 1u << 3 | 1u << 8 | 7u << 22 | 1u << 25;

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
    uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
    (void)number, (void)info;
    if (instruction[0] != 0x0f || instruction[1] != 0xa2)
        abort(); /* not CPUID: the program's own fault */
    syscall(SYS_arch_prctl, SET_CPUID, ANSWERS);
    __cpuid_count(leaf, part, a, b, c, d);
    syscall(SYS_arch_prctl, SET_CPUID, FAULTS);
    if (leaf == 7 && part == 0) {
        b &= ~EBX;
        c &= ~ECX;
        d &= ~EDX;
    } else if (leaf == 7) {
        a = b = c = d = 0; /* AVX-VNNI, AVX512 BF16, AMX FP16 and what came after */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

/* Programs that report their own crashes would take the signal away: they may not have it. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    return next(number, number == SIGSEGV ? NULL : action, old);
}

FILE *fopen64(const char *path, const char *mode) {
    FILE *(*next)(const char *, const char *) = dlsym(RTLD_NEXT, "fopen64");
    const char *shown = getenv("HIDE_CPUINFO");
    return next(shown && !strcmp(path, "/proc/cpuinfo") ? shown : path, mode);
}

__attribute__((constructor)) static void start(void) {
    int (*install)(int, const struct sigaction *, struct sigaction *) =
        dlsym(RTLD_NEXT, "sigaction");
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (install(SIGSEGV, &action, NULL) || syscall(SYS_arch_prctl, SET_CPUID, FAULTS)) {
        perror("this CPU or kernel cannot hide instructions (cpuid_fault)");
        exit(1);
    }
}
