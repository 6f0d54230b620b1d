//! What a refusal says about the kernel.

use super::*;

fn able() -> Kernel {
    Kernel { release: "5.10.0-46-amd64".to_owned(), bpf: true, atomics: true, tables: Vec::new(), helpers: Vec::new() }
}

fn refused(name: &'static str) -> LoadError {
    LoadError::Program { name, reason: "invalid argument; BPF_STX uses reserved fields".to_owned(), passing: false }
}

#[test]
fn a_kernel_without_atomic_operations_is_named_with_what_it_lacks() {
    let error = judge(&Kernel { atomics: false, ..able() }, refused(maps::PROGRAM_TC));
    assert_eq!(
        error.to_string(),
        "Linux 5.10.0-46-amd64 cannot run vipgate: its BPF lacks atomic operations (BPF_CMPXCHG, Linux 5.12)"
    );
}

#[test]
fn what_only_xdp_lacks_is_told_of_xdp_programs_only() {
    let kernel = Kernel { helpers: vec![HELPERS[1].2, HELPERS[7].2], ..able() };
    assert!(judge(&kernel, refused(maps::PROGRAM_TC)).to_string().ends_with("lacks bpf_fib_lookup (Linux 4.18)"));
    let xdp = judge(&kernel, refused(maps::PROGRAM_XDP)).to_string();
    assert!(xdp.ends_with("(Linux 4.18) and XDP on frames in several buffers (Linux 5.18)"), "{xdp}");
}

#[test]
fn a_program_that_is_refused_for_another_reason_is_told_with_it() {
    let error = judge(&able(), refused(maps::PROGRAM_XDP));
    assert!(matches!(error, LoadError::Unsupported { .. }));
    assert!(error.to_string().contains("refuses the program vipgate_xdp: invalid argument"), "{error}");
}

#[test]
fn a_program_for_which_there_was_no_memory_is_no_lack_of_the_kernel() {
    let source = |error| aya::programs::ProgramError::IOError(io::Error::from_raw_os_error(error));
    for (error, heals) in [(libc::ENOMEM, true), (libc::EAGAIN, true), (libc::EINVAL, false), (libc::E2BIG, false)] {
        let judged = judge(&able(), LoadError::program(maps::PROGRAM_TC, &source(error)));
        assert_eq!(matches!(judged, LoadError::Program { .. }), heals, "{judged}");
    }
}

#[test]
fn a_kernel_without_bpf_is_told_so() {
    let error = judge(&Kernel { bpf: false, ..able() }, refused(maps::PROGRAM_TC));
    assert!(error.to_string().ends_with("it has no BPF system call (CONFIG_BPF_SYSCALL)"), "{error}");
}

#[test]
fn a_table_that_cannot_be_made_is_no_lack_of_a_kernel_that_lacks_nothing() {
    let full = || {
        LoadError::object(aya::EbpfError::FileError {
            path: "none".into(),
            error: io::Error::from_raw_os_error(libc::ENOMEM),
        })
    };
    assert!(matches!(judge(&able(), full()), LoadError::Object { .. }));
    let kernel = Kernel { tables: vec![TABLES[4].1], ..able() };
    assert!(judge(&kernel, full()).to_string().ends_with("lacks longest-prefix tries (Linux 4.11)"));
}

#[test]
fn this_kernel_knows_atomic_operations_and_file_systems_of_bpf() {
    assert!(knows_bpffs());
    // Without privileges nothing is known, and nothing is taken for missing.
    assert!(Kernel::ask().atomics && Kernel::ask().bpf);
}
