//! Products by the tiles of Intel's AMX.

use super::Operands;
use std::{arch::asm, arch::x86_64::__cpuid_count, sync::OnceLock};

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    columns: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles are whole: 16 rows of 64 bytes.
static SHAPES: Shapes = {
    let (mut columns, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (columns[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Shapes { palette: 1, start_row: 0, reserved: [0; 14], columns, rows }
};

/// Whether the CPU has AMX with bf16, and Linux lets this process use it. Asks once.
pub(super) fn are_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        /// Linux, arch/x86/include/uapi/asm/prctl.h.
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        /// The component of the state that has the tiles.
        const XTILEDATA: libc::c_ulong = 18;
        let features = __cpuid_count(7, 0).edx;
        features & BF16 != 0
            && features & TILE != 0
            // SAFETY: this call takes two numbers and writes no memory of the process.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    })
}

/// Gives this thread's tiles their shapes.
///
/// # Safety
/// They are there.
pub(super) unsafe fn give_shapes() {
    // SAFETY: `SHAPES` is the 64 bytes that LDTILECFG reads. Nothing but this module uses tile registers.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags)) };
}

/// Empties this thread's tiles, which have no shapes any more.
///
/// # Safety
/// They are there.
pub(super) unsafe fn release() {
    // SAFETY: passed on to the caller.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// 32 rows and 32 columns.
///
/// # Safety
/// As `Session::multiply` says.
pub(super) unsafe fn multiply_2x2(at: Operands) {
    // SAFETY: passed on to the caller. Rows of tiles are 64 bytes apart, those of the block 128, its halves 2048.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {from}, [{offsets}]",
            "lea {from}, [{columns} + {from}*4]",
            "tileloadd tmm4, [{upper} + {line}*1]",
            "tileloadd tmm6, [{from} + {stride}*1]",
            "add {from}, {apart}",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{lower} + {line}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{from} + {stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {offsets}, 8",
            "dec {steps}",
            "jnz 2b",
            "add {line}, {line}",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 64], tmm1",
            "tilestored [{out} + {line}*1 + 2048], tmm2",
            "tilestored [{out} + {line}*1 + 2112], tmm3",
            upper = inout(reg) at.upper => _,
            lower = inout(reg) at.lower => _,
            columns = in(reg) at.columns,
            offsets = inout(reg) at.offsets => _,
            steps = inout(reg) at.steps => _,
            stride = in(reg) at.stride * 4,
            apart = in(reg) at.apart * 4,
            line = inout(reg) 64usize => _,
            out = in(reg) at.out,
            from = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows and 32 columns.
///
/// # Safety
/// As `Session::multiply` says.
pub(super) unsafe fn multiply_1x2(at: Operands) {
    // SAFETY: passed on to the caller. Rows of tiles are 64 bytes apart, those of the block 128.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "mov {from}, [{offsets}]",
            "lea {from}, [{columns} + {from}*4]",
            "tileloadd tmm4, [{upper} + {line}*1]",
            "tileloadd tmm6, [{from} + {stride}*1]",
            "add {from}, {apart}",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{from} + {stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {upper}, 1024",
            "add {offsets}, 8",
            "dec {steps}",
            "jnz 2b",
            "add {line}, {line}",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 64], tmm1",
            upper = inout(reg) at.upper => _,
            columns = in(reg) at.columns,
            offsets = inout(reg) at.offsets => _,
            steps = inout(reg) at.steps => _,
            stride = in(reg) at.stride * 4,
            apart = in(reg) at.apart * 4,
            line = inout(reg) 64usize => _,
            out = in(reg) at.out,
            from = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
