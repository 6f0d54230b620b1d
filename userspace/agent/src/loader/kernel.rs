//! What a kernel that cannot run vipgate lacks, in one sentence. Asked only when something was refused: tiny
//! programs and tables show what the kernel supports, whatever its version is.

use std::{fs, io};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use nix::sys::utsname::uname;
use vipgate_abi::maps;

use super::{LoadError, syscall::bpf_fd};

/// Kinds of tables, and the first kernel with them.
const TABLES: [(MapType, &str); 6] = [
    (MapType::Array, "arrays (Linux 3.19)"),
    (MapType::Hash, "hash tables (Linux 3.19)"),
    (MapType::PerCpuArray, "arrays for each CPU (Linux 4.6)"),
    (MapType::LruHash, "LRU hash tables (Linux 4.10)"),
    (MapType::LpmTrie, "longest-prefix tries (Linux 4.11)"),
    (MapType::DevMap, "device maps (Linux 4.14)"),
];

/// Functions of the kernel that the programs call, and the first kernel with them.
const HELPERS: [(ProgramType, BpfHelper, &str); 8] = [
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_jiffies64, "bpf_jiffies64 (Linux 5.5)"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup (Linux 4.18)"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_sk_lookup_udp, "bpf_sk_lookup_udp (Linux 4.20)"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp (Linux 5.2)"),
    (ProgramType::Xdp, BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup in XDP (Linux 4.18)"),
    (ProgramType::Xdp, BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp in XDP (Linux 5.2)"),
    (ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_adjust_meta, "metadata of XDP (Linux 4.15)"),
    (ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_get_buff_len, "XDP on frames in several buffers (Linux 5.18)"),
];

/// The kernel's own description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) bpf: bool,
    /// Compare-and-swap and its like.
    pub(super) atomics: bool,
    /// Kinds of tables that it does not have.
    pub(super) tables: Vec<&'static str>,
    /// The same of its functions.
    pub(super) helpers: Vec<&'static str>,
}

impl Kernel {
    pub(super) fn ask() -> Self {
        // What cannot be asked is taken for there: something else was refused, and that is told.
        let has_table = |kind| is_map_supported(kind).unwrap_or(true);
        let has_helper = |program, helper| is_helper_supported(program, helper).unwrap_or(true);
        let bpf = !matches!(probe(&[MOV_R0_0, EXIT]), Err(error) if error.raw_os_error() == Some(libc::ENOSYS));
        let filtered = |missing: bool, name: &'static str| missing.then_some(name);
        Self {
            release: release(),
            bpf,
            atomics: !matches!(probe(&ATOMICS), Err(error) if error.raw_os_error() == Some(libc::EINVAL)),
            tables: TABLES.into_iter().filter_map(|(kind, name)| filtered(!has_table(kind), name)).collect(),
            helpers: HELPERS
                .into_iter()
                .filter_map(|(program, helper, name)| filtered(!has_helper(program, helper), name))
                .collect(),
        }
    }

    /// All that it lacks, for the middle of a sentence; `None` if it lacks nothing that was asked for. `program`: the one that it refused.
    fn lacks(&self, program: Option<&str>) -> Option<String> {
        if !self.bpf {
            return Some("it has no BPF system call (CONFIG_BPF_SYSCALL)".to_owned());
        }
        let mut all: Vec<&str> = self.tables.clone();
        if !self.atomics {
            all.push("atomic operations (BPF_CMPXCHG, Linux 5.12)");
        }
        // What only XDP lacks does not keep a TC program off.
        let is_xdp = matches!(program, Some(maps::PROGRAM_XDP | maps::PROGRAM_GENERIC | maps::PROGRAM_CLOCK));
        all.extend(self.helpers.iter().filter(|name| is_xdp || !name.contains("XDP")));
        let (last, before) = all.split_last()?;
        let list = if before.is_empty() { (*last).to_owned() } else { format!("{} and {last}", before.join(", ")) };
        Some(format!("its BPF lacks {list}"))
    }
}

/// An error of bringing tables and programs into the kernel, or what the kernel lacks if that is why.
pub(super) fn explain(error: LoadError) -> LoadError {
    match &error {
        LoadError::Object { .. } | LoadError::Program { .. } => judge(&Kernel::ask(), error),
        _ => error,
    }
}

fn judge(kernel: &Kernel, error: LoadError) -> LoadError {
    let release = kernel.release.clone();
    match &error {
        LoadError::Program { name, reason, passing: false } => {
            let lacks = kernel.lacks(Some(name));
            let why = lacks.unwrap_or_else(|| format!("it refuses the program {name}: {reason}"));
            LoadError::Unsupported { release, why }
        }
        LoadError::Object { .. } => match kernel.lacks(None) {
            Some(why) => LoadError::Unsupported { release, why },
            None => error,
        },
        _ => error,
    }
}

/// Whether the kernel knows this kind of file system.
pub(super) fn knows_bpffs() -> bool {
    // What cannot be read proves nothing.
    fs::read_to_string("/proc/filesystems").map_or(true, |text| text.lines().any(|line| line.ends_with("\tbpf")))
}

/// That of the kernel, such as `6.12.3`.
pub fn release() -> String {
    uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// An instruction as the kernel reads it: code, registers, offset and number in one word (linux/bpf.h).
type Instruction = u64;

const MOV_R0_0: Instruction = 0xb7;
const EXIT: Instruction = 0x95;
/// `*(u64 *)(r10 - 8) = 0; r0 = 0; r1 = 0; lock r0 = cmpxchg64(r10 - 8, r0, r1); r0 = 0; exit`
const ATOMICS: [Instruction; 6] =
    [0x0000_0000_fff8_0a7a, MOV_R0_0, 0x0000_0000_0000_01b7, 0x0000_00f1_fff8_1adb, MOV_R0_0, EXIT];

/// `BPF_PROG_LOAD` of linux/bpf.h, and the kind of program that needs no more than being well formed.
const PROG_LOAD: libc::c_long = 5;
const SOCKET_FILTER: u32 = 1;

/// Arguments of it: the start of `union bpf_attr`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Loads a program of these instructions, and lets go of it.
fn probe(instructions: &[Instruction]) -> io::Result<()> {
    let mut attr = ProgLoad {
        prog_type: SOCKET_FILTER,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: the kernel reads `attr` of the size given, the instructions and the C string, all alive during the call.
    unsafe { bpf_fd(PROG_LOAD, &mut attr) }.map(drop)
}

#[cfg(test)]
mod tests;
