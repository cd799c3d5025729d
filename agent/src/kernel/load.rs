//! One map or program at a time: out of an image, into the kernel. Nothing is attached here.
//!
//! `generation.rs` puts them together.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use aya::maps::{MapData, MapError};
use lkst_probes::asm::{Code, MapRef};
use lkst_probes::features::Features;
use lkst_probes::image::{Attach, BuildError, MapImage, MapKind};

use super::bpf_syscall::{self, Functions, Instruction, ProgramType, Refused};
use super::btf::{Btf, Kind};
use super::btf_write;
use super::pins::Pins;
use super::tracefs::Tracefs;

/// Why nothing is traced.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The code generator cannot do it.
    #[error("{}", .0.error)]
    Build(BuildError),
    /// All packs together want more than the host lets them have.
    #[error(
        "the buffers and maps of all packs would have {} together, and `max_memory` in lkst.toml is {}: {}",
        megabytes(*bytes), megabytes(*most), shares(packs)
    )]
    TooMuchMemory {
        /// What they want.
        bytes: u64,
        /// What they may have.
        most: u64,
        /// What the buffers of each pack want.
        packs: Vec<(String, u64)>,
    },
    /// A map could not be made.
    #[error("cannot make the map `{map}`: {error}")]
    Map {
        /// Which.
        map: String,
        /// Why.
        error: MapError,
    },
    /// A map could not be mapped into memory, or filled.
    #[error("cannot use the map `{map}`: {error}")]
    Memory {
        /// Which.
        map: String,
        /// Why.
        error: io::Error,
    },
    /// The kernel refused a program.
    #[error("the kernel refuses the program for `{}:{}`: {}", attach.system, attach.name, refusal(error))]
    Program {
        /// Of which event.
        attach: Box<Attach>,
        /// Why; the verifier's words.
        error: Box<Refused>,
    },
    /// The program could not be put together.
    #[error("cannot load the program for `{event}`: {error}")]
    Object {
        /// Of which event.
        event: String,
        /// Why.
        error: String,
    },
    /// A program could not be attached.
    #[error("cannot attach to `{event}`: {error}")]
    Attach {
        /// To which event.
        event: String,
        /// Why.
        error: String,
    },
    /// Something could not be given a name, under which it would stay in the kernel.
    #[error("cannot pin `{name}`: {error}")]
    Pin {
        /// What.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// What waits for running programs could not be made.
    #[error("cannot make what waits for running programs: {0}")]
    Grace(io::Error),
}

/// Rounded up, so that what is over a limit never looks like the limit.
fn megabytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The largest first; not all of 64.
fn shares(packs: &[(String, u64)]) -> String {
    let mut packs: Vec<&(String, u64)> = packs.iter().collect();
    packs.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let shown = packs
        .iter()
        .take(5)
        .map(|(name, bytes)| format!("{name} {}", megabytes(*bytes)));
    shown.collect::<Vec<_>>().join(", ")
}

/// What the kernel said, without the thousands of lines that led to it.
fn refusal(refused: &Refused) -> String {
    if refused.error.raw_os_error() == Some(libc::E2BIG) {
        return "it is too complex for the verifier: let fewer rules, sets or packs name this event, or a glob that \
                matches fewer system calls"
            .to_owned();
    }
    let tail: Vec<&str> = refused
        .log
        .lines()
        .filter(|line| !line.trim().is_empty())
        .rev()
        .take(4)
        .collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    match tail.is_empty() {
        true => refused.error.to_string(),
        false => format!("{}\n{}", refused.error, tail.join("\n")),
    }
}

/// What is needed beside the plans.
pub struct Environment<'e> {
    /// What the kernel can do.
    pub features: Features,
    /// The kernel's types, in which typed programs are told where they belong; `None` where there are none.
    pub btf: Option<&'e Btf>,
    /// Where the tracepoints' numbers are.
    pub tracefs: &'e Tracefs,
    /// Identifies this session in every page.
    pub uuid: [u8; 16],
    /// Where everything gets a name, under which it stays in the kernel when we are gone. `None`: it goes with us.
    pub pins: Option<Arc<Pins>>,
    /// The most bytes that all maps may have together.
    pub max_bytes: u64,
    /// What whoever adopts this generation is to be told, beside what it finds.
    pub memo: &'e str,
}

/// Makes a map.
///
/// # Errors
/// [`LoadError::Map`]
pub(super) fn make_map(image: &MapImage) -> Result<MapData, LoadError> {
    const MMAPABLE: u32 = 1 << 10;
    // Types by include/uapi/linux/bpf.h.
    let (kind, key, flags) = match image.kind {
        MapKind::Array => (2, 4, MMAPABLE),
        MapKind::Scratch => (2, 4, 0),
        MapKind::Hash => (1, 4, 0),
        MapKind::Ring => (27, 0, 0),
        MapKind::Programs => (3, 4, 0),
    };
    let map = aya_obj::Map::new_from_params(kind, key, image.value_bytes, image.entries, flags);
    // The kernel keeps 15 bytes, and refuses more: BPF_OBJ_NAME_LEN of include/uapi/linux/bpf.h.
    let mut name = format!("lkst_{}", image.map);
    name.truncate(15);
    MapData::create(map, &name, None).map_err(|error| LoadError::Map {
        map: image.map.to_string(),
        error,
    })
}

/// Loads one program, which is in no use yet.
///
/// Not by aya: to find the number of one type it reads all types of the kernel into objects of its own, which takes
/// 40 MB and 30 ms at each change of rules, while [`Btf`] has an index.
pub(super) fn load_code(
    attach: &Attach,
    code: &Code,
    fd: impl Fn(MapRef) -> Option<i32>,
    btf: Option<&Btf>,
) -> Result<OwnedFd, LoadError> {
    let object_error = |error: &str| LoadError::Object {
        event: event_name(attach),
        error: error.to_owned(),
    };
    let bytes = code
        .bytes(fd)
        .map_err(|map| object_error(&format!("no map `{map}`")))?;
    let instructions: Vec<Instruction> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| Instruction::from_ne_bytes(*bytes))
        .collect();
    let kind = match attach.typed {
        false => ProgramType::Tracepoint,
        true => {
            let name = format!("btf_trace_{}", attach.name);
            let ty = btf.and_then(|btf| btf.find(Kind::Typedef, &name));
            let ty = ty.ok_or_else(|| object_error("the kernel's types do not have its arguments"))?;
            ProgramType::RawTracepointBtf(ty.id)
        }
    };
    let symbol = attach.symbol();
    let functions = match code.functions.as_slice() {
        [] => None,
        functions => {
            let (types, info) = btf_write::of_functions(&symbol, functions);
            let types = bpf_syscall::load_types(&types)
                .map_err(|error| object_error(&format!("the types of its functions: {error}")))?;
            Some(Functions { types, info })
        }
    };
    bpf_syscall::load(kind, &instructions, functions.as_ref(), &symbol).map_err(|error| LoadError::Program {
        attach: Box::new(attach.clone()),
        error: Box::new(error),
    })
}

pub(super) fn event_name(attach: &Attach) -> String {
    format!("{}:{}", attach.system, attach.name)
}

pub(super) fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}
