//! Requests from the control socket → answers, each about the moment in which it is given.

use crate::control::{Done, Refusal, RefusalKind, Request};
use crate::session::orders::OrderError;
use crate::status::{PackPhase, PackStatus, Status};

use super::Agent;

fn refused(error: OrderError) -> Refusal {
    let kind = match &error {
        OrderError::Unknown { .. } => RefusalKind::NotFound,
        OrderError::Kept(_) | OrderError::Stopped(_) => RefusalKind::Conflict,
        OrderError::Save(_) => RefusalKind::Failed,
    };
    Refusal {
        kind,
        message: error.to_string(),
    }
}

fn done(message: String) -> Done {
    Done::Done {
        message,
        traces: Vec::new(),
    }
}

impl Agent {
    pub(super) fn answer(&mut self, request: Request) -> Result<Done, Refusal> {
        match &request {
            Request::Status => return Ok(Done::Status(Box::new(self.status()))),
            Request::Reload => return self.reload_now(),
            Request::Reset { pack } if self.packs.lift(pack) => return self.bring_back(pack),
            _ => {}
        }
        let off = self.off.clone().unwrap_or_else(|| "nothing is loaded".to_owned());
        let Some(session) = &mut self.session else {
            return Err(Refusal {
                kind: RefusalKind::Conflict,
                message: off,
            });
        };
        let mut traces = Vec::new();
        let message = match request {
            Request::Status | Request::Reload => String::new(),
            Request::Save { pack } => {
                traces = session.save_now(pack.as_deref()).map_err(refused)?;
                format!(
                    "{} written",
                    crate::session::counted(traces.len() as u64, "trace")
                )
            }
            Request::Switch { pack, buffer, for_ns } => {
                session.switch(&pack, &buffer, for_ns).map_err(refused)?;
                format!("{pack} records into {buffer}")
            }
            Request::Enable { pack, set, for_ns } => {
                session.enable(&pack, &set, for_ns).map_err(refused)?;
                format!("{pack}/{set} is enabled")
            }
            Request::Disable { pack, set } => {
                session.disable(&pack, &set).map_err(refused)?;
                format!("{pack}/{set} is disabled")
            }
            Request::Reset { pack } => {
                session.reset(&pack).map_err(refused)?;
                format!("{pack} is as it starts")
            }
        };
        if !message.is_empty() {
            tracing::info!("by request: {message}");
        }
        // A buffer that was left is saved now.
        self.fired();
        Ok(match traces.is_empty() {
            true => done(message),
            false => Done::Done { message, traces },
        })
    }

    /// A person wants the rules loaded: also where a person, or the guard, wanted them out.
    fn reload_now(&mut self) -> Result<Done, Refusal> {
        if self.options.boot.is_off() {
            return Err(Refusal {
                kind: RefusalKind::Conflict,
                message: self.off.clone().unwrap_or_default(),
            });
        }
        if self.off.take().is_some()
            && let Err(error) = self.guard.forget()
        {
            tracing::warn!(%error, "the guard's file could not be written");
        }
        self.look_at_rules(true);
        if let Some(trouble) = &self.reload_trouble {
            return Err(Refusal {
                kind: RefusalKind::Failed,
                message: trouble.clone(),
            });
        }
        let wrong: Vec<&str> = self
            .packs
            .iter()
            .filter(|(_, entry)| entry.error.is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        let in_force = self.packs.iter().filter(|(_, entry)| entry.is_in_force()).count();
        let in_force = crate::session::counted(in_force as u64, "pack");
        Ok(done(match wrong.as_slice() {
            [] => format!("{in_force} in force"),
            names => format!(
                "{in_force} in force; wrong, see `lkst status`: {}",
                names.join(", ")
            ),
        }))
    }

    /// A pack that was taken down comes back into force.
    fn bring_back(&mut self, pack: &str) -> Result<Done, Refusal> {
        self.change_rules();
        match &self.reload_trouble {
            Some(trouble) => Err(Refusal {
                kind: RefusalKind::Failed,
                message: trouble.clone(),
            }),
            None => Ok(done(format!("{pack} is in force again, as it starts"))),
        }
    }

    pub(super) fn status(&mut self) -> Status {
        let generation = self
            .session
            .as_mut()
            .map_or(0, |session| session.loaded().generation());
        let statuses = self.session.as_ref().map(|session| session.pack_statuses());
        let mut statuses = statuses.unwrap_or_default();
        let mut packs = Vec::new();
        for (name, entry) in self.packs.iter() {
            let place = statuses.iter().position(|status| status.name == *name);
            let known = place.map(|place| statuses.swap_remove(place));
            let good = entry.good.as_ref().filter(|_| known.is_some());
            packs.push(PackStatus {
                name: name.clone(),
                path: entry.path.clone(),
                phase: match known.as_ref().map(|known| known.phase) {
                    None if entry.down.is_some() => PackPhase::OverBudget,
                    None => PackPhase::Off,
                    Some(PackPhase::Active) if self.options.config.is_observed(name) => PackPhase::Observe,
                    Some(phase) => phase,
                },
                hash: good.map(|good| good.text.hash.clone()),
                since_unix_ns: good.map(|good| good.text.since_unix_ns),
                error: entry.error.clone().or_else(|| entry.down.clone()),
                warnings: good.and_then(|good| good.warnings.clone()),
                ..known.unwrap_or_default()
            });
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_unix_ns: self.started_unix_ns,
            host: self.host.hostname.clone(),
            kernel: self.host.kernel_release.clone(),
            generation,
            rules_dir: self.options.folders.rules.clone(),
            state_dir: self.options.folders.state.clone(),
            pin_dir: self.options.folders.pin.clone(),
            last_reload: self.last_reload.clone(),
            troubles: self.troubles(),
            memory: crate::status::Memory {
                used_bytes: self
                    .session
                    .as_mut()
                    .map_or(0, |session| session.loaded().image.bytes()),
                max_bytes: self.options.config.max_memory.0,
            },
            packs,
        }
    }

    fn troubles(&self) -> Vec<String> {
        let parts = [
            self.off.clone(),
            self.reload_trouble.clone(),
            self.watch_trouble.clone(),
            self.guard.trouble().map(str::to_owned),
        ];
        parts
            .into_iter()
            .flatten()
            .chain(self.packs.troubles())
            .chain(self.disk.troubles().iter().cloned())
            .collect()
    }
}
