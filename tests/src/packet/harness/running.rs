//! Runs frames through the programs and checks the results.

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    TestRun as _, TestRunOptions, TestRunResult,
    programs::{Program, SchedClassifier, Xdp},
};
use vipgate_abi::{counters::Reason, maps};

use super::{Bench, Hook, Outcome, Scratch, UNSPEC, Verdict, loading::program, network::ifindex};
use crate::packet::Frame;

impl Bench {
    /// From now on, packets at TC are GSO packets of this many segments, each but the last with this many bytes of data.
    pub fn set_segments(&mut self, count: u32, bytes: u32) {
        self.segments = [count, bytes];
    }

    /// Runs the hook's program once on a frame.
    pub fn run(&mut self, frame: &Frame) -> Result<Outcome> {
        self.run_bytes(&frame.bytes())
    }

    /// Runs the egress program once on a frame, as if the stack sent it; returns the frame as it leaves.
    pub fn run_egress(&mut self, frame: &Frame) -> Result<Vec<u8>> {
        let (result, bytes) = self.test_run(Hook::Tc, maps::PROGRAM_EGRESS, &frame.bytes(), 1)?;
        ensure!(result.return_value == UNSPEC, "verdict {}", result.return_value);
        Ok(bytes)
    }

    /// Runs the egress program on a frame that the stack forwards by this device; false if it is dropped.
    pub fn leaves(&mut self, frame: &Frame, device: &str) -> Result<bool> {
        self.came_by = ifindex("priv0")?;
        let leaves = self.leaves_as_own(frame, device);
        self.came_by = 0;
        leaves
    }

    /// Runs the egress program on a frame that the stack has made; false if it is dropped.
    pub fn leaves_as_own(&mut self, frame: &Frame, device: &str) -> Result<bool> {
        let before = std::mem::replace(&mut self.device, ifindex(device)?);
        // A test run takes a frame with another MAC than the device's for another host's.
        let own = self.own.iter().find(|(_, own)| *own == self.device);
        let frame = Frame { dst_mac: own.map_or(frame.dst_mac, |(mac, _)| *mac), ..frame.clone() };
        let run = self.test_run(Hook::Tc, maps::PROGRAM_EGRESS, &frame.bytes(), 1);
        self.device = before;
        match run?.0.return_value {
            UNSPEC => Ok(true),
            2 => Ok(false),
            other => bail!("verdict {other}"),
        }
    }

    /// Runs the hook's program once on these bytes, as if they came in through a device.
    pub fn run_bytes(&mut self, bytes: &[u8]) -> Result<Outcome> {
        let (result, bytes) = self.test_run(self.hook, self.program, bytes, 1)?;
        Ok(Outcome { verdict: self.verdict(result.return_value), bytes })
    }

    /// Runs the hook's program once on a frame; also returns the scratch data that it left with the packet.
    pub fn run_with_scratch(&mut self, frame: &Frame) -> Result<(Outcome, Scratch)> {
        self.run_with(self.hook, self.program, frame, Scratch::Fields { priority: 0, mark: 0 })
    }

    /// Runs the program at a queue's end once on a frame with this scratch data; returns that data afterwards.
    pub fn leave_queue(&mut self, frame: &Frame, scratch: Scratch) -> Result<(Verdict, Scratch)> {
        let (outcome, scratch) = self.run_with(Hook::Tc, maps::PROGRAM_QUEUE, frame, scratch)?;
        Ok((outcome.verdict, scratch))
    }

    /// Runs the TC program behind the XDP one once on a frame that XDP did not hand over.
    pub fn run_behind(&mut self, frame: &Frame) -> Result<Verdict> {
        let (result, _) = self.test_run(Hook::Tc, maps::PROGRAM_BEHIND, &frame.bytes(), 1)?;
        Ok(self.verdict(result.return_value))
    }

    fn run_with(&mut self, hook: Hook, name: &str, frame: &Frame, scratch: Scratch) -> Result<(Outcome, Scratch)> {
        const MARK: usize = 8;
        const PRIORITY: usize = 32;
        let bytes = frame.bytes();
        let mut context = self.context(hook, &bytes, self.way_in(name, &bytes));
        if let (Hook::Tc, Scratch::Fields { priority, mark }) = (hook, scratch) {
            context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
            context[PRIORITY..PRIORITY + 4].copy_from_slice(&priority.to_ne_bytes());
        }
        let (mut out, mut context_out) = (vec![0; bytes.len() + 64], vec![0; context.len()]);
        let options = TestRunOptions {
            data_in: Some(&bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        };
        let result = match hook {
            Hook::Xdp => program::<Xdp>(&mut self.ebpf, name)?.test_run(options),
            Hook::Tc => program::<SchedClassifier>(&mut self.ebpf, name)?.test_run(options),
        }
        .context("the test run failed")?;
        out.truncate(result.data_size_out as usize);
        let number = |at: usize| u32::from_ne_bytes(context_out[at..at + 4].try_into().unwrap_or_default());
        let scratch = match hook {
            // The metadata, then the frame.
            Hook::Xdp => {
                let length = out.len() - bytes.len().min(out.len());
                Scratch::Metadata(out.drain(..length).collect())
            }
            Hook::Tc => Scratch::Fields { priority: number(PRIORITY), mark: number(MARK) },
        };
        Ok((Outcome { verdict: self.verdict(result.return_value), bytes: out }, scratch))
    }

    /// [`Self::run`] from several threads at once.
    pub fn run_shared(&self, frame: &Frame) -> Result<Outcome> {
        let program = self.ebpf.program(self.program).with_context(|| format!("no program {}", self.program))?;
        let bytes = frame.bytes();
        let mut out = vec![0; bytes.len() + 64];
        let context = self.context(self.hook, &bytes, self.way_in(self.program, &bytes));
        let options = TestRunOptions {
            data_in: Some(&bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = match program {
            Program::Xdp(xdp) => xdp.test_run(options),
            Program::SchedClassifier(tc) => tc.test_run(options),
            _ => bail!("{} is of another kind", self.program),
        }
        .context("the test run failed")?;
        out.truncate(result.data_size_out as usize);
        Ok(Outcome { verdict: self.verdict(result.return_value), bytes: out })
    }

    pub(super) fn verdict(&self, value: u32) -> Verdict {
        match (self.hook, value) {
            (Hook::Xdp, 1) | (Hook::Tc, 2) => Verdict::Drop,
            (Hook::Xdp, 2) | (Hook::Tc, UNSPEC) => Verdict::Pass,
            (Hook::Xdp, 4) | (Hook::Tc, 7) => Verdict::Redirect,
            (_, other) => Verdict::Other(other),
        }
    }

    pub(super) fn test_run(
        &mut self,
        hook: Hook,
        name: &str,
        bytes: &[u8],
        repeat: u32,
    ) -> Result<(TestRunResult, Vec<u8>)> {
        let mut out = vec![0; bytes.len() + 64];
        let mut options = TestRunOptions { data_in: Some(bytes), data_out: Some(&mut out), ..TestRunOptions::new() };
        let device = self.way_in(name, bytes);
        let context = self.context(hook, bytes, device);
        if device != 0 || self.segments != [0; 2] {
            options.ctx_in = Some(&context);
        }
        options.repeat = repeat;
        let result = match hook {
            Hook::Xdp => program::<Xdp>(&mut self.ebpf, name)?.test_run(options),
            Hook::Tc => program::<SchedClassifier>(&mut self.ebpf, name)?.test_run(options),
        }
        .context("the test run failed")?;
        out.truncate(result.data_size_out as usize);
        Ok((result, out))
    }

    /// The device that a frame comes in by; 0 if none, as for frames of the stack.
    fn way_in(&self, program: &str, bytes: &[u8]) -> u32 {
        if self.device != 0 || program == maps::PROGRAM_EGRESS {
            return self.device;
        }
        self.own.iter().find(|(mac, _)| bytes.starts_with(mac)).map_or(0, |(_, device)| *device)
    }

    /// The program's context for a packet that comes in by this device.
    pub(super) fn context(&self, hook: Hook, bytes: &[u8], device: u32) -> Vec<u8> {
        let fields = match hook {
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            Hook::Xdp => vec![0, bytes.len() as u32, 0, device, 0, 0],
            // struct __sk_buff, 48 words.
            Hook::Tc => {
                const INGRESS_IFINDEX: usize = 9;
                const IFINDEX: usize = 10;
                const GSO_SEGMENTS: usize = 41;
                const GSO_SIZE: usize = 44;
                let mut fields = vec![0; 48];
                fields[INGRESS_IFINDEX] = self.came_by;
                fields[IFINDEX] = device;
                [fields[GSO_SEGMENTS], fields[GSO_SIZE]] = self.segments;
                fields
            }
        };
        fields.iter().flat_map(|field: &u32| field.to_ne_bytes()).collect()
    }

    /// From now on, packets come in by this device, whatever their destination MAC.
    pub fn arrive_by(&mut self, device: &str) -> Result<()> {
        self.device = ifindex(device)?;
        Ok(())
    }

    /// Runs `frame` and checks that it is sent as `expected`, byte by byte.
    pub fn expect_sent(&mut self, frame: &Frame, expected: &Frame) -> Result<()> {
        let outcome = self.run(frame)?;
        ensure!(outcome.verdict == Verdict::Redirect, "verdict {:?} for {frame:?}", outcome.verdict);
        ensure!(
            outcome.bytes == expected.bytes(),
            "sent      {:02x?}\nexpected  {:02x?}",
            outcome.bytes,
            expected.bytes()
        );
        Ok(())
    }

    /// Runs `frame` and checks that it is passed up or dropped, unchanged, and counted once under `reason`.
    pub fn expect_refused(&mut self, frame: &Frame, reason: Reason) -> Result<()> {
        let before = self.reason(reason)?;
        let outcome = self.run(frame)?;
        let verdict = if reason.is_drop() { Verdict::Drop } else { Verdict::Pass };
        ensure!(outcome.verdict == verdict, "verdict {:?} instead of {verdict:?} for {frame:?}", outcome.verdict);
        ensure!(outcome.bytes == frame.bytes(), "the frame was changed: {:02x?}", outcome.bytes);
        let counted = self.reason(reason)? - before;
        ensure!(counted == 1, "{} was counted {counted} times", reason.name());
        Ok(())
    }
}
