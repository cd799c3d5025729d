//! The names of threads: of the living by `/proc`, of the dead by a map that a program of its own fills when they end
//! (`lower/names.rs`), for as long as anything is traced.
//!
//! In: where a task has its name. Out: the name that a thread has or had, asked for one by one: the table is never
//! copied.
//!
//! INVARIANT: names are a help to whoever reads a trace. Where they cannot be had, tracing goes on without.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapError};
use lkst_probes::asm::MapRef;
use lkst_probes::image::Attach;
use lkst_probes::layout::name;
use lkst_probes::lower::{NAMES_EVENT, NamesPaths, names};
use lkst_rules::schema::{PathStep, Recipe, Schema};

use super::btf::Btf;
use super::generation::map_name;
use super::link::attach_typed;
use super::load::{Environment, LoadError, load_code};
use super::loaded::Loaded;
use super::pins::{Handle, LINK, Pins};
use crate::trace::escape::lossless;
use crate::trace::names::Thread;

/// `BPF_MAP_TYPE_LRU_HASH` of include/uapi/linux/bpf.h.
const LRU_HASH: u32 = 9;

/// The map and the link of what fills it.
pub struct KernelNames {
    map: HashMap<MapData, u32, [u8; name::BYTES]>,
    _link: Handle,
}

/// Where tasks have their names, by the kernel's types; `None` where these do not say.
#[must_use]
pub fn names_paths(schema: &dyn Schema) -> Option<NamesPaths> {
    let (system, name) = NAMES_EVENT;
    let event = schema.event(system, name)?;
    let path = |member: &str| {
        let steps = ["p", member].map(|step| PathStep::Name(step.to_owned()));
        match schema.argument(&event, &steps).map(|resolved| resolved.recipe) {
            Ok(Recipe::Path(path)) => Some(path),
            other => {
                tracing::debug!(member, ?other, "no way to the names of threads");
                None
            }
        }
    };
    Some(NamesPaths {
        tid: path("pid")?,
        pid: path("tgid")?,
        comm: path("comm")?,
    })
}

/// The names of the map and of the link in a bpffs.
pub(super) fn pinned() -> [String; 2] {
    [map_name(MapRef::Names), format!("{LINK}{}", NAMES_EVENT.1)]
}

impl KernelNames {
    /// Makes the map and attaches the program. `None` where the kernel's types do not say where names are.
    ///
    /// # Errors
    /// See [`LoadError`]; then nothing of it stays in the kernel.
    pub(super) fn new(env: &Environment<'_>) -> Result<Option<KernelNames>, LoadError> {
        let (Some(paths), Some(btf)) = (&env.features.names, env.btf) else {
            return Ok(None);
        };
        let made = KernelNames::attached(env, paths, btf);
        if let (Err(_), Some(pins)) = (&made, &env.pins) {
            unpin(pins);
        }
        made.map(Some)
    }

    fn attached(env: &Environment<'_>, paths: &NamesPaths, btf: &Btf) -> Result<KernelNames, LoadError> {
        let map_error = |error| LoadError::Map {
            map: MapRef::Names.to_string(),
            error,
        };
        let pin_error = |error| LoadError::Pin {
            name: MapRef::Names.to_string(),
            error,
        };
        let map = aya_obj::Map::new_from_params(LRU_HASH, 4, name::BYTES as u32, name::ENTRIES, 0);
        let map = MapData::create(map, &format!("lkst_{}", MapRef::Names), None).map_err(map_error)?;
        let [map_pin, link_pin] = pinned();
        if let Some(pins) = &env.pins {
            pins.pin(&map_pin, map.fd().as_fd()).map_err(pin_error)?;
        }
        let fd = map.fd().as_fd().as_raw_fd();
        // The verifier of another kernel may refuse a plain load that BTF lets us expect.
        let program = match load(env, paths, btf, fd, true) {
            Err(error @ LoadError::Program { .. }) => {
                tracing::debug!(%error, "plain loads refused, using probe reads");
                load(env, paths, btf, fd, false)
            }
            loaded => loaded,
        }?;
        let fail = |error: io::Error| LoadError::Attach {
            event: format!("{}:{}", NAMES_EVENT.0, NAMES_EVENT.1),
            error: error.to_string(),
        };
        let mut link = Handle::Held(attach_typed(program.as_fd()).map_err(fail)?);
        if let Some(pins) = &env.pins {
            link = link.into_named(pins, link_pin).map_err(pin_error)?;
        }
        KernelNames::of(map, link).map_err(map_error)
    }

    fn of(map: MapData, link: Handle) -> Result<KernelNames, MapError> {
        let map = Map::LruHashMap(map);
        Ok(KernelNames {
            map: HashMap::try_from(map)?,
            _link: link,
        })
    }

    /// Takes over what an agent before us has left. Where that is not whole it goes: then `None`.
    pub(super) fn adopt(pins: &Arc<Pins>) -> Option<KernelNames> {
        let adopted = KernelNames::opened(pins);
        if adopted.is_none() {
            unpin(pins);
        }
        adopted
    }

    fn opened(pins: &Arc<Pins>) -> Option<KernelNames> {
        let there = pins.names().ok()?;
        let [map, link] = pinned();
        if !there.contains(&link) {
            return None;
        }
        let opened = pins
            .get(&map)
            .map_err(MapError::IoError)
            .and_then(MapData::from_fd);
        let link = Handle::Named(pins.clone(), link);
        // Entries of another size were made by another version.
        let names = opened.and_then(|map| KernelNames::of(map, link));
        names
            .map_err(|error| tracing::debug!(%error, "names of threads could not be taken over"))
            .ok()
    }

    fn entry(&self, tid: u32) -> Option<Thread> {
        let entry = self.map.get(&tid, 0).ok()?;
        let (number, text) = entry.split_at(name::COMM);
        let pid = u32::from_le_bytes(number.try_into().ok()?);
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Thread {
            pid,
            comm: lossless(text),
        })
    }

    /// The name that a thread has, or had when it ended; `None` where that is too long ago. `pid` is its process.
    #[must_use]
    pub fn of_thread(&self, tid: u32, pid: u32) -> Option<Thread> {
        // The dead one was entered before `/proc` forgot it. Another process may have had a thread of that number: better
        // no name than its.
        proc_name(tid, pid).or_else(|| self.entry(tid).filter(|thread| thread.pid == pid))
    }
}

/// Takes their names out of a bpffs, which ends the program.
pub(super) fn unpin(pins: &Pins) {
    // The link first, as `Pins::clear`.
    for name in pinned().iter().rev() {
        if let Err(error) = pins.remove(name) {
            tracing::warn!(name, %error, "a name could not be removed");
        }
    }
}

fn load(
    env: &Environment<'_>,
    paths: &NamesPaths,
    btf: &Btf,
    map: i32,
    direct: bool,
) -> Result<OwnedFd, LoadError> {
    let code = names(&env.features, paths, direct).map_err(|error| LoadError::Object {
        event: MapRef::Names.to_string(),
        error: error.to_string(),
    })?;
    let attach = Attach {
        system: NAMES_EVENT.0.to_owned(),
        name: NAMES_EVENT.1.to_owned(),
        typed: true,
        calls: false,
    };
    load_code(&attach, &code, |_| Some(map), Some(btf))
}

/// The name that a living thread has, by `/proc`.
#[must_use]
pub fn proc_name(tid: u32, pid: u32) -> Option<Thread> {
    let comm = comm_of(tid, pid)?;
    Some(Thread {
        pid,
        comm: lossless(&comm),
    })
}

/// The numbers of all threads, those of their processes, and their names, by `/proc`.
pub fn all_threads() -> impl Iterator<Item = (u32, u32, Vec<u8>)> {
    numbered("/proc").flat_map(|pid| {
        let threads = numbered(&format!("/proc/{pid}/task"));
        // One that has ended meanwhile has none.
        threads.filter_map(move |tid| Some((tid, pid, comm_of(tid, pid)?)))
    })
}

fn comm_of(tid: u32, pid: u32) -> Option<Vec<u8>> {
    let mut comm = fs::read(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    comm.pop_if(|last| *last == b'\n');
    // What a worker works at, which the kernel adds here alone (kernel/workqueue.c, `wq_worker_comm`); in the name of
    // a rescuer, `kworker/R-NAME`, the dash is its own.
    if comm.starts_with(b"kworker/")
        && !comm.starts_with(b"kworker/R-")
        && let Some(end) = comm.iter().position(|byte| matches!(byte, b'-' | b'+'))
    {
        comm.truncate(end);
    }
    Some(comm)
}

/// The entries of a folder whose names are numbers.
fn numbered(folder: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

impl Loaded {
    /// Keeps the names of threads from now on, as far as this kernel lets us; `traces` says whether anything is traced.
    pub fn keep_names(&mut self, env: &Environment<'_>, traces: bool) {
        if self.names.is_some() || !traces {
            return;
        }
        match KernelNames::new(env) {
            Ok(Some(names)) => self.names = Some(names),
            Ok(None) => {
                tracing::debug!("the kernel's types do not say where names are: they come from /proc alone")
            }
            Err(error) => tracing::debug!(%error, "names of threads come from /proc alone"),
        }
    }

    /// Ends what keeps the names of threads, where nothing is traced any more.
    pub fn end_idle_names(&mut self) {
        if self.image.packs.is_empty()
            && self.names.take().is_some()
            && let Some(pins) = &self.pins
        {
            unpin(pins);
        }
    }

    /// The names of threads, where the kernel keeps them.
    #[must_use]
    pub fn names(&self) -> Option<&KernelNames> {
        self.names.as_ref()
    }
}
