//! How a running instance gets other rules. They are prepared as a whole, and the datapath then decides by them from one
//! packet to the next; flows that were decided before go on by the rules they had, and so do the hooks that those need.

use std::{
    mem,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Attempt, Cgroups, Changes, Instance, InstanceError, announce_absent, announce_no_cgroup, look_around,
    require_interfaces,
};
use crate::{
    config::{Claim, Config},
    generation::{Generation, KeptRule},
    plan::Surroundings,
    policy::{Compiled, Extent},
};

/// For how long a connection that was decided may yet be accepted: longer than the kernel tries to finish a handshake
/// (`net.ipv4.tcp_synack_retries`, by default a minute).
const HANDSHAKE: Duration = Duration::from_secs(120);

/// A generation that decides no more, and may still have flows.
pub(super) struct Superseded {
    number: u32,
    generation: Weak<Generation>,
    pub(super) rules: Arc<[KeptRule]>,
    /// Until then workers may ask for its rules; none when that is over, and only its flows still have them.
    pub(super) until: Option<Instant>,
}

/// Rules that held, as the datapath had them.
#[derive(Debug)]
pub struct Before {
    config: Config,
    cgroups: Cgroups,
    compiled: Arc<Compiled>,
    /// As long as one of its flows it keeps in place what they need on the host.
    _generation: Arc<Generation>,
}

/// A configuration that could take the place of the one that holds.
struct Considered {
    changes: Changes,
    surroundings: Surroundings,
    cgroups: Cgroups,
}

impl Instance {
    /// Has flows that begin from now on go by `config`. Live ones keep their rules.
    ///
    /// # Errors
    /// [`InstanceError`]; everything is then as it was.
    pub fn reload(&mut self, config: Config) -> Result<Changes, InstanceError> {
        let Considered { changes, surroundings, cgroups } = self.consider(&config)?;
        if config == self.config && cgroups.of_rules == self.cgroups.of_rules {
            return Ok(changes);
        }
        announce_absent(&config.rules, &surroundings);
        announce_no_cgroup(&config.rules, &cgroups);
        self.take_over(config, cgroups, surroundings)?;
        if !self.datapath.is_large_enough(&self.config) {
            tracing::warn!(
                "these rules ask for larger tables than were made at the start, which forget sooner: restart tproxy to have them larger"
            );
        }
        Ok(changes)
    }

    /// The rules as they are, to go back to. What they need on the host stays in place for as long as this is kept.
    #[doc(hidden)]
    #[must_use]
    pub fn before(&self) -> Before {
        Before {
            config: self.config.clone(),
            cgroups: self.cgroups.clone(),
            compiled: Arc::clone(&self.compiled),
            _generation: self.generations.latest(),
        }
    }

    /// Has flows that begin from now on go by the rules that there were, as they were: the datapath still has them, unless
    /// interfaces or cgroups have come or gone since, for which it was told of the others anew. Nothing is resolved, so that
    /// nothing can be refused; what is missing on the host by now, or has changed, is seen to afterwards, until it is right.
    #[doc(hidden)]
    pub fn roll_back(&mut self, before: Before) -> Changes {
        let Before { config, cgroups, compiled, _generation } = before;
        let changes = Changes::between(&self.config, &config);
        self.supersede(config, cgroups, self.surroundings.clone());
        // What it fails for is told of, and tried again, where the rest is.
        let switched = self.switch_to(compiled);
        self.convergence.stale = switched.is_err() || *self.compiled != *self.compiled_now();
        self.reconcile();
        changes
    }

    /// Has the rules of a configuration be the latest. What there was is handed back.
    fn supersede(
        &mut self,
        config: Config,
        cgroups: Cgroups,
        surroundings: Surroundings,
    ) -> (Config, Cgroups, Surroundings) {
        let previous = self.generations.latest();
        self.superseded.push(Superseded {
            number: previous.number(),
            generation: Arc::downgrade(&previous),
            rules: Arc::clone(previous.rules()),
            until: Some(Instant::now() + HANDSHAKE.max(self.config.timeouts.udp_stream)),
        });
        self.generations.add(previous.next(&config));
        (
            mem::replace(&mut self.config, config),
            mem::replace(&mut self.cgroups, cgroups),
            mem::replace(&mut self.surroundings, surroundings),
        )
    }

    fn take_over(
        &mut self,
        config: Config,
        cgroups: Cgroups,
        surroundings: Surroundings,
    ) -> Result<(), InstanceError> {
        let before = self.supersede(config, cgroups, surroundings);
        let plan = self.surroundings.plan(self.claims());
        let mut attempt = Attempt::default();
        self.prepare(&plan, &mut attempt);
        let outcome = attempt.errors.into_iter().next().map_or(Ok(()), Err).and_then(|()| self.switch());
        if outcome.is_err() {
            self.generations.remove(self.generations.latest().number());
            self.superseded.pop();
            (self.config, self.cgroups, self.surroundings) = before;
        }
        // The rules hold, these or those, whatever of it is left to be done.
        self.reconcile();
        outcome
    }

    /// What [`Self::reload`] would change. Nothing is.
    ///
    /// # Errors
    /// Why it would be refused, as far as that can be found out before anything is changed.
    pub fn would_change(&self, config: &Config) -> Result<Changes, InstanceError> {
        let Considered { changes, surroundings, cgroups } = self.consider(config)?;
        let compiled = Compiled::new(&config.rules, |reach| surroundings.limit(reach), &cgroups.of_rules);
        self.datapath.require_room(&compiled)?;
        Ok(changes)
    }

    fn consider(&self, config: &Config) -> Result<Considered, InstanceError> {
        let fixed = fixed(&self.config, config);
        if !fixed.is_empty() {
            return Err(InstanceError::Fixed(fixed));
        }
        let surroundings =
            look_around(config.rules.iter().map(Claim::from).chain(self.claims()).map(|claim| claim.reach))?;
        require_interfaces(&config.rules, &surroundings)?;
        let cgroups = Cgroups::find(&config.rules)?;
        Ok(Considered { changes: Changes::between(&self.config, config), surroundings, cgroups })
    }

    /// The configuration by which flows are decided.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Completes when [`Self::retire`] may have something to do.
    pub async fn outlived(&self) {
        let next = self.superseded.iter().filter_map(|superseded| superseded.until).min();
        let deadline = async {
            match next {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.ended.notified() => {}
            () = deadline => {}
        }
    }

    /// Gives up what only rules needed that have no flow any more.
    pub fn retire(&mut self) {
        let now = Instant::now();
        for superseded in &mut self.superseded {
            if superseded.until.take_if(|until| *until <= now).is_some() {
                self.generations.remove(superseded.number);
            }
        }
        let before = self.extent();
        self.superseded.retain(|superseded| superseded.generation.strong_count() > 0);
        if self.extent() != before {
            self.convergence.stale = true;
        } else if self.surroundings.plan(self.claims()) == self.plan {
            return;
        }
        self.reconcile();
    }

    fn extent(&self) -> Extent {
        let earlier = self.superseded.iter().map(|superseded| Extent::of(&*superseded.rules));
        earlier.fold(Extent::of(&self.config.rules), Extent::and)
    }
}

/// The keys of what differs and is made at the start.
fn fixed(now: &Config, next: &Config) -> Vec<&'static str> {
    let differ = [
        ("name", now.name != next.name),
        ("metrics", now.metrics != next.metrics),
        ("mark", now.mark != next.mark),
        ("table", now.table != next.table),
        ("priority", now.priority != next.priority),
        ("steer", now.steer != next.steer),
        ("admit", now.firewall != next.firewall),
        ("on_exit", now.on_exit != next.on_exit),
        ("workers", now.workers != next.workers),
        // For so long the datapath remembers a flow.
        ("timeouts.udp_stream", now.timeouts.udp_stream != next.timeouts.udp_stream),
    ];
    differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
