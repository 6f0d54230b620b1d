//! Measures what a packet costs: the benchmark's object, by test run and on devices.

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRun as _, TestRunAttrs, TestRunOptions,
    maps::PerCpuArray,
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode},
};

use super::{
    Attached, Bench, Hook, Packets, Verdict,
    loading::{BENCHMARK, PROGRAMS, program},
    network::{ifindex, make_network},
};
use crate::packet::Frame;

impl Bench {
    /// The benchmark's programs, which run `packets` in turn, with this number of flow buckets.
    pub fn benchmark(hook: Hook, buckets: u32, packets: &Packets) -> Result<Self> {
        let mut bench = Self::open(hook, BENCHMARK, buckets)?;
        let (program, empty) = match hook {
            Hook::Xdp => ("bench_xdp", "bench_empty_xdp"),
            Hook::Tc => ("bench_tc", "bench_empty_tc"),
        };
        bench.program = program;
        bench.load_measured(empty, packets)?;
        Ok(bench)
    }

    /// The kernel's LRU hash table for this many flows, instead of our flow table.
    pub fn lru(entries: u32, packets: &Packets) -> Result<Self> {
        let network = make_network()?;
        let mut bench = Self::load_sized(Hook::Xdp, BENCHMARK, 8, Some(("BENCH_LRU", entries)))?;
        bench._network = Some(network);
        bench.program = "bench_lru";
        bench.load_measured("bench_empty_xdp", packets)?;
        Ok(bench)
    }

    fn load_measured(&mut self, empty: &'static str, packets: &Packets) -> Result<()> {
        self.load_program(self.hook, self.program)?;
        self.load_program(self.hook, empty)?;
        self.empty = empty;
        self.set_packets(packets)
    }

    /// From now on measures only the flow table's lookup.
    pub fn measure_lookups(&mut self) -> Result<()> {
        self.program = "bench_table";
        self.load_program(self.hook, self.program)
    }

    /// Changes the packets that the benchmark's programs run.
    pub fn set_packets(&mut self, packets: &Packets) -> Result<()> {
        ensure!(packets.count.is_power_of_two(), "the number of packets, {}, is not a power of two", packets.count);
        self.array::<[u16; 32]>("BENCH_TEMPLATE")?.set(0, packets.first.header_words(), 0)?;
        let port_bits = packets.port_bits | if packets.to_others { 1 << 4 } else { 0 };
        let factor = if packets.scattered { 0x9e37_79b1 } else { 1 };
        Ok(self.array::<[u32; 4]>("BENCH_TURN")?.set(0, [0, packets.count - 1, port_bits, factor], 0)?)
    }

    /// Runs the benchmark's program `repeat` times; returns nanoseconds a run, and the last run's verdict.
    pub fn time(&mut self, repeat: u32) -> Result<(f64, Verdict)> {
        self.time_program(self.program, repeat)
    }

    /// [`Self::time`] for the prologue alone.
    pub fn time_empty(&mut self, repeat: u32) -> Result<f64> {
        Ok(self.time_program(self.empty, repeat)?.0)
    }

    fn time_program(&mut self, name: &str, repeat: u32) -> Result<(f64, Verdict)> {
        // Packets come in by the device that has their destination MAC.
        let template = self.array::<[u16; 32]>("BENCH_TEMPLATE")?.get(&0, 0)?;
        let frame = template.map(u16::to_ne_bytes);
        // The kernel reports whole nanoseconds of wall time. The thread's processor time is finer and excludes other processes.
        // The one system call around all runs adds little.
        let start = processor_time()?;
        let (result, _) = self.test_run(self.hook, name, frame.as_flattened(), repeat)?;
        let nanoseconds = (processor_time()? - start) * 1e9 / f64::from(repeat);
        Ok((nanoseconds, self.verdict(result.return_value)))
    }

    /// The programs that the controller loads, in the calling thread's namespace as it is, without interfaces.
    pub fn in_namespace(hook: Hook, buckets: u32) -> Result<Self> {
        let mut bench = Self::load_object(hook, &PROGRAMS, buckets)?;
        bench.program = hook.program();
        bench.load_program(hook, bench.program)?;
        Ok(bench)
    }

    /// Attaches the program to a device of the calling thread's namespace until the bench is dropped; XDP natively.
    pub fn attach(&mut self, device: &str) -> Result<()> {
        let name = self.program;
        let failed = || format!("cannot attach {name} to {device}");
        match self.hook {
            Hook::Xdp => {
                let program = program::<Xdp>(&mut self.ebpf, name)?;
                let link = program.attach(device, XdpMode::Driver).with_context(failed)?;
                self.attached.push(Attached::Xdp(program.take_link(link)?));
            }
            Hook::Tc => {
                let program = program::<SchedClassifier>(&mut self.ebpf, name)?;
                let link = program.attach(device, TcAttachType::Ingress).with_context(failed)?;
                self.attached.push(Attached::Tc(program.take_link(link)?));
            }
        }
        Ok(())
    }

    /// The least that a program of this hook can do to forward packets, without tables: a lower bound.
    pub fn bare(hook: Hook) -> Result<Self> {
        let mut bench = Self::load_object(hook, BENCHMARK, 8)?;
        bench.program = match hook {
            Hook::Xdp => "bench_bare_xdp",
            Hook::Tc => "bench_bare_tc",
        };
        bench.load_program(hook, bench.program)?;
        Ok(bench)
    }

    /// The benchmark's sink, attached to a device of the calling thread's namespace.
    pub fn sink(device: &str) -> Result<Self> {
        let mut bench = Self::load_object(Hook::Xdp, BENCHMARK, 8)?;
        bench.program = "bench_sink";
        bench.load_program(Hook::Xdp, bench.program)?;
        bench.attach(device)?;
        Ok(bench)
    }

    /// Number of frames that reached the sink.
    pub fn sunk(&self) -> Result<u64> {
        let map = self.ebpf.map("BENCH_SUNK").context("the object has no map BENCH_SUNK")?;
        Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
    }

    /// The benchmark's generator, which sends these packets in turn by a device of the calling thread's namespace.
    pub fn generator(device: &str, packets: &Packets) -> Result<Self> {
        let mut bench = Self::load_object(Hook::Xdp, BENCHMARK, 8)?;
        bench.program = "bench_send";
        bench.load_program(Hook::Xdp, bench.program)?;
        // Whatever their source, they are sent from outside.
        let first = Frame { dst_mac: Self::PUBLIC_MAC, src_mac: Self::GATEWAY_MAC, ..packets.first.clone() };
        bench.set_packets(&Packets { first, ..packets.clone() })?;
        bench.device = ifindex(device)?;
        Ok(bench)
    }

    /// Sends this many frames; returns the seconds of processor time used, including the receiver's part.
    pub fn send(&mut self, frames: u32, batch: u32) -> Result<f64> {
        // The program makes a frame of these bytes; the kernel only needs the length.
        let frame = [0; 60];
        let context = self.context(Hook::Xdp, &frame, self.device);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        };
        let start = processor_time()?;
        let name = self.program;
        program::<Xdp>(&mut self.ebpf, name)?.test_run(options).context("the live test run failed")?;
        Ok(processor_time()? - start)
    }
}

/// Seconds of processor time that the calling thread has used.
fn processor_time() -> Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}
