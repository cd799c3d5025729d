//! The tracers side by side: lkst, an instance of ftrace, `perf record`, `bpftrace`, and an empty program.
//!
//! Each is attached and taken off again in every round, and each proves that it has seen the hits.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lkst::kernel::bpf_syscall::{self, ProgramType, instruction};
use lkst::kernel::btf::Kind;
use lkst::kernel::generation::load;
use lkst::kernel::link::attach_typed;
use lkst::kernel::loaded::Loaded;
use lkst::trace::read::Traces;
use lkst_rules::plan::Plan;
use lkst_tests::ftrace::Instance;
use lkst_tests::lab::Lab;

use crate::rounds::Attached;

/// What a contestant must have counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Must {
    /// Every hit is recorded.
    Record,
    /// None is.
    Reject,
}

/// lkst, as `lkst run` loads it.
pub(crate) struct Lkst {
    loaded: Loaded,
    event: &'static str,
    must: Must,
}

impl Lkst {
    /// Loads and starts these packs.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(lab: &Lab, plans: &[Arc<Plan>], event: &'static str, must: Must) -> Result<Lkst> {
        let env = lab.environment()?;
        let mut loaded = load(plans, &env)?;
        loaded.keep_names(&env, true);
        loaded.start();
        Ok(Lkst { loaded, event, must })
    }
}

impl Attached for Lkst {
    fn finish(self: Box<Self>, hits: u64) -> Result<()> {
        for pack in &self.loaded.image.packs {
            let event = pack.events.iter().find(|event| event.name == self.event);
            let event = event.context("the pack names the event")?;
            let counts = self.loaded.event_total(event.counters);
            ensure!(counts.lost == 0, "{counts:?}");
            match self.must {
                Must::Record => ensure!(counts.recorded >= hits, "{hits} hits, and {counts:?}"),
                Must::Reject => ensure!(counts.recorded == 0, "{counts:?}"),
            }
        }
        Ok(())
    }
}

/// An instance of ftrace.
pub(crate) struct Ftrace {
    instance: Instance,
    must: Must,
}

impl Ftrace {
    /// Records this event where its filter holds.
    ///
    /// # Errors
    /// What tracefs says.
    pub(crate) fn new(lab: &Lab, event: &str, filter: &str, must: Must) -> Result<Ftrace> {
        let (system, name) = event.split_once(':').context("SYSTEM:EVENT")?;
        Ok(Ftrace {
            instance: Instance::new(lab, system, name, filter)?,
            must,
        })
    }

    /// Does not record the event, but has so many triggers on it, each of which would enable another event.
    ///
    /// # Errors
    /// What tracefs says.
    pub(crate) fn with_triggers(lab: &Lab, event: &str, field: &str, count: usize) -> Result<Ftrace> {
        let (system, name) = event.split_once(':').context("SYSTEM:EVENT")?;
        let instance = Instance::idle(lab, system, name)?;
        let others = lab.schema.tracefs().events()?;
        let others = others.iter().filter(|(system, _)| system == "syscalls");
        for ((system, name), value) in others.take(count).zip(1..) {
            instance.trigger(&format!("enable_event:{system}:{name} if {field} == {value}"))?;
        }
        Ok(Ftrace {
            instance,
            must: Must::Reject,
        })
    }
}

impl Attached for Ftrace {
    fn finish(self: Box<Self>, hits: u64) -> Result<()> {
        let counted = self.instance.counted()?;
        match self.must {
            Must::Record => ensure!(counted >= hits, "{hits} hits, and {counted} are counted"),
            Must::Reject => ensure!(counted == 0, "{counted} are counted"),
        }
        Ok(())
    }
}

/// A program by BTF that returns at once: what any program on the event costs at least.
pub(crate) struct Empty {
    _link: OwnedFd,
}

impl Empty {
    /// Attaches it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(lab: &Lab, tracepoint: &str) -> Result<Empty> {
        let btf = lab.schema.btf().context("the kernel has types")?;
        let ty = btf.find(Kind::Typedef, &format!("btf_trace_{tracepoint}"));
        let ty = ty.context("the tracepoint has a type")?;
        // r0 = 0; exit
        let code = [instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)];
        let program = bpf_syscall::load(ProgramType::RawTracepointBtf(ty.id), &code, None, "l_empty")
            .map_err(|refused| refused.error)?;
        Ok(Empty {
            _link: attach_typed(program.as_fd())?,
        })
    }
}

impl Attached for Empty {
    fn finish(self: Box<Self>, _hits: u64) -> Result<()> {
        Ok(())
    }
}

/// A process of another tracer, ended with us.
struct Tool(Child);

impl Tool {
    /// Makes the system call that it waits for, until it says `ready`.
    fn until_ready(&mut self) -> Result<()> {
        let out = self.0.stdout.take().context("its output")?;
        let (send, lines) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = String::new();
            while out.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if line.contains("ready") {
                    break;
                }
                line.clear();
            }
            // Nobody waits any more where it took too long.
            let _told = send.send(());
            out.into_inner()
        });
        let begun = Instant::now();
        loop {
            // SAFETY: asks for the group of a process that does not exist.
            unsafe { libc::syscall(libc::SYS_getpgid, 0x4c00_1234_i64) };
            if lines.recv_timeout(Duration::from_millis(20)).is_ok() {
                break;
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "a tracer does not begin"
            );
        }
        self.0.stdout = Some(reader.join().map_err(|_| anyhow::anyhow!("its output"))?);
        Ok(())
    }

    fn interrupt(&mut self) -> Result<String> {
        // SAFETY: our child, which nobody has waited for.
        unsafe { libc::kill(self.0.id().cast_signed(), libc::SIGINT) };
        let mut said = String::new();
        if let Some(out) = &mut self.0.stdout {
            out.read_to_string(&mut said)?;
        }
        self.0.wait()?;
        Ok(said)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// `perf record` of all CPUs.
pub(crate) struct Perf {
    tool: Tool,
    folder: tempfile::TempDir,
}

impl Perf {
    /// Starts it; returns once it records.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn new(event: &str) -> Result<Perf> {
        Perf::with_buffer(event, None)
    }

    /// As [`Perf::new`], with a buffer of so many KiB for each CPU.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn with_buffer(event: &str, kib: Option<u32>) -> Result<Perf> {
        let folder = tempfile::tempdir()?;
        let [orders, answers] = ["orders", "answers"].map(|name| folder.path().join(name));
        for fifo in [&orders, &answers] {
            let status = Command::new("mkfifo").arg(fifo).status()?;
            ensure!(status.success(), "mkfifo: {status}");
        }
        let control = format!("fifo:{},{}", orders.display(), answers.display());
        let child = Command::new("perf")
            .args([
                "record",
                "-a",
                "-D",
                "-1",
                "-N",
                "-B",
                "-e",
                event,
                "--control",
                &control,
                "-o",
            ])
            .arg(folder.path().join("data"))
            .args(kib.map(|kib| format!("-m{kib}K")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("perf is needed: Debian's package linux-perf")?;
        let tool = Tool(child);
        // Neither end blocks: a perf that has ended would let us wait for ever.
        let [mut orders, mut answers] = [
            fs::File::options().read(true).write(true).open(orders)?,
            fs::File::options().read(true).write(true).open(answers)?,
        ];
        orders.write_all(b"enable\n")?;
        let mut byte = [0];
        while byte != *b"\n" {
            answers.read_exact(&mut byte)?;
        }
        Ok(Perf { tool, folder })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.tool.0.id()
    }

    /// Where its file is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it. Returns how many events its file has.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.tool.interrupt()?;
        let report = Command::new("perf")
            .args(["report", "--stats", "--stdio", "-i"])
            .arg(self.folder.path().join("data"))
            .output()?;
        let text = String::from_utf8_lossy(&report.stdout).into_owned();
        let number = |what: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(what));
            line.and_then(|line| {
                line.split_whitespace()
                    .rev()
                    .find_map(|word| word.parse::<u64>().ok())
            })
        };
        number("SAMPLE events:").with_context(|| format!("perf report says {text}"))
    }
}

impl Attached for Perf {
    fn finish(mut self: Box<Self>, _hits: u64) -> Result<()> {
        // What it loses at this pace is its own; that it records at all is seen by the size of its file.
        self.tool.interrupt()?;
        let bytes = fs::metadata(self.folder.path().join("data"))?.len();
        ensure!(bytes > 1 << 20, "perf has written {bytes} bytes");
        Ok(())
    }
}

/// `bpftrace`, which counts.
pub(crate) struct Bpftrace {
    tool: Tool,
}

impl Bpftrace {
    /// Starts it; returns once it counts.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn new(event: &str) -> Result<Bpftrace> {
        let script = format!(
            "tracepoint:{event} {{ @ = count(); }} \
             tracepoint:syscalls:sys_enter_getpgid /args->pid == 0x4c001234/ {{ printf(\"ready\\n\"); }}"
        );
        let child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("bpftrace is needed: Debian's package bpftrace")?;
        let mut tool = Tool(child);
        tool.until_ready()?;
        Ok(Bpftrace { tool })
    }
}

impl Attached for Bpftrace {
    fn finish(mut self: Box<Self>, hits: u64) -> Result<()> {
        let said = self.tool.interrupt()?;
        let line = said.lines().find_map(|line| line.strip_prefix("@: "));
        let counted: u64 = line.with_context(|| said.clone())?.trim().parse()?;
        ensure!(counted >= hits, "{hits} hits, and bpftrace has counted {counted}");
        Ok(())
    }
}

/// `cat per_cpu/cpuN/trace_pipe_raw` into files, one each CPU: the inner loop of trace-cmd.
pub(crate) struct Cats {
    instance: Instance,
    tools: Vec<Tool>,
    folder: tempfile::TempDir,
}

impl Cats {
    /// Starts them.
    ///
    /// # Errors
    /// What tracefs says.
    pub(crate) fn new(lab: &Lab, event: &str, buffer_kib: u32) -> Result<Cats> {
        let (system, name) = event.split_once(':').context("SYSTEM:EVENT")?;
        let instance = Instance::idle(lab, system, name)?;
        instance.no_overwrite(buffer_kib)?;
        let folder = tempfile::tempdir()?;
        let mut tools = Vec::new();
        for cpu in lkst_tests::worker::cpus() {
            let file = fs::File::create(folder.path().join(format!("cpu{cpu}")))?;
            let pipe = instance.folder().join(format!("per_cpu/cpu{cpu}/trace_pipe_raw"));
            // Where tracefs is mounted for this process alone, its path is one of our descriptor's. It has to be cat that opens
            // it: the first who closes what is open there ends the reading.
            let pipe = match pipe.strip_prefix("/proc/self") {
                Ok(ours) => Path::new("/proc").join(std::process::id().to_string()).join(ours),
                Err(_) => pipe,
            };
            let child = Command::new("cat")
                .arg(pipe)
                .stdin(Stdio::null())
                .stdout(file)
                .spawn()?;
            tools.push(Tool(child));
        }
        instance.enable()?;
        Ok(Cats {
            instance,
            tools,
            folder,
        })
    }

    /// Their processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.tools.iter().map(|tool| tool.0.id()).collect()
    }

    /// How many of so many events were not dropped, for want of room.
    ///
    /// # Errors
    /// What tracefs says, or that they have copied nothing.
    pub(crate) fn kept(&self, made: u64) -> Result<u64> {
        /// No event of theirs takes less.
        const EVENT_BYTES: u64 = 16;
        let kept = made.saturating_sub(self.instance.stat(&["dropped events"])?);
        let bytes = self.bytes()?;
        ensure!(
            bytes >= EVENT_BYTES * kept,
            "{kept} events were kept, and cat has copied {bytes} bytes"
        );
        Ok(kept)
    }

    /// Bytes in their files.
    ///
    /// # Errors
    /// They are gone.
    pub(crate) fn bytes(&self) -> Result<u64> {
        bytes_below(self.folder.path())
    }
}

/// Bytes of all files below a folder.
///
/// # Errors
/// It cannot be read.
pub(crate) fn bytes_below(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() {
            bytes_below(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(sum)
}

/// How many records the traces below a folder have.
///
/// # Errors
/// They cannot be read.
pub(crate) fn records_in(folder: &Path) -> Result<u64> {
    let traces = Traces::open(&[folder])?;
    let mut records = traces.records();
    let mut count = 0;
    while records.next_record()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Waits until `value` stays what it is for a while.
///
/// # Errors
/// As `value`.
pub(crate) fn settled<T: PartialEq>(mut value: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = value()?;
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(400) {
        sleep(Duration::from_millis(20));
        let now = value()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// `lkst run` that streams an event to disk.
pub(crate) struct Stream {
    tool: Tool,
    folder: tempfile::TempDir,
}

impl Stream {
    /// Starts it; returns once it records.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn new(lkst: &str, event: &str, buffer_kib: u32) -> Result<Stream> {
        let folder = tempfile::tempdir()?;
        let rules = folder.path().join("stream.lkst");
        let text = format!(
            "buffer main {{ size = {buffer_kib}KiB mode = stream }}\nset s {{ {event} }}\nstart with s\n\
             rule ready {{ when syscalls:sys_enter_getpgid with pid == 0x4c001234 then notify \"ready\" }}"
        );
        fs::write(&rules, text)?;
        let child = Command::new(lkst)
            .arg("run")
            .arg(&rules)
            .arg("-o")
            .arg(folder.path().join("traces"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut tool = Tool(child);
        tool.until_ready()?;
        Ok(Stream { tool, folder })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.tool.0.id()
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it. Returns how many records its traces have.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.tool.interrupt()?;
        records_in(&self.folder.path().join("traces"))
    }
}
