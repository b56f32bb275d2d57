//! What the rules need on the host, put in place, and kept so as interfaces, routes and addresses change, and as others
//! take away what is ours.

use std::{sync::Arc, time::Instant};

use super::{
    Cgroups, Instance, InstanceError, announce_no_cgroup,
    health::{Attempt, Health},
    workers::open_black_holes,
};
use crate::{
    config::{Action, Claim, Reach, Scope, Source},
    datapath::{AttachError, DatapathError},
    family::Family,
    host::{
        Change, HostError,
        admission::Admission,
        links::{self, Changed, Link},
        local_table::{self, LocalTable},
        nat,
        policy::{self, Discernment},
    },
    plan::{LandingMark, Plan, Surroundings, follows_routes},
    policy::{CgroupError, Compiled, Extent},
};

impl Instance {
    /// Adapts to what changed on the host. What fails is tried again, as [`Self::unsettled`] says.
    pub fn follow(&mut self, changed: Changed) {
        if (Changed { cgroups: false, ..changed }) != Changed::NOTHING {
            self.routing.changed();
        }
        if self.convergence.hear(changed) {
            self.reconcile();
        }
    }

    /// Completes when [`Self::reconcile`] may have something to do without word of a change.
    pub async fn unsettled(&self) {
        tokio::time::sleep_until(self.convergence.due().into()).await;
    }

    /// Has steered packets accepted where a firewall discards them, although they may be accepted there by what is on record:
    /// others have removed it, or come before it.
    #[doc(hidden)]
    pub fn admit(&mut self, places: Vec<Admission>) {
        for at in places {
            let change = Change::Admit { at };
            let was_there = self.journal.has(&change);
            let mut again = || self.journal.revert(&change).and_then(|()| self.journal.apply(change.clone()));
            match again() {
                Ok(()) if was_there => {
                    tracing::warn!("somebody removed the {change}, or came before it; it is in place again");
                    self.convergence.restored(1);
                }
                Ok(()) => tracing::info!("firewall: added the {change}"),
                Err(error) => tracing::error!("firewall: {error}"),
            }
        }
    }

    /// What is missing of what the rules need.
    #[doc(hidden)]
    #[must_use]
    pub const fn health(&self) -> &Health {
        self.convergence.health()
    }

    /// Makes the host what the rules and the surroundings ask for, as far as it is not so already.
    pub fn reconcile(&mut self) {
        let look = self.convergence.begin(Instant::now());
        let mut attempt = Attempt::default();
        if look.local_table
            && let Err(error) = self.set_host_addresses()
        {
            attempt.pending.local_table = true;
            attempt.errors.push(error);
        }
        if look.local_table
            && let Err(error) = self.look_for_addresses()
        {
            attempt.pending.local_table = true;
            attempt.errors.push(error.into());
        }
        if look.ours {
            self.nat.look();
        }
        let before = self.surroundings.clone();
        match self.look_again(look) {
            Ok(()) => {}
            Err(error) => {
                (attempt.pending.links, attempt.pending.routes) = (look.links, look.routes);
                attempt.errors.push(error.into());
            }
        }
        if (look.cgroups || look.ours)
            && let Err(error) = self.find_cgroups()
        {
            attempt.pending.cgroups = true;
            attempt.errors.push(error.into());
        }
        let plan = self.plan.clone();
        self.converge(&mut attempt);
        self.report_interfaces(&before, &plan);
        self.convergence.end(Instant::now(), &attempt);
    }

    fn look_again(&mut self, look: Changed) -> Result<(), HostError> {
        let needs_routes = follows_routes(self.claims().map(|claim| claim.reach));
        let links = if look.links { links::snapshot()? } else { self.surroundings.links.clone() };
        let routed = match (look.links || look.routes, needs_routes) {
            (true, true) => local_table::routed_interfaces()?,
            (false, true) => self.surroundings.routed.clone(),
            (_, false) => Default::default(),
        };
        let now = Surroundings { links, routed, families: Family::available().collect() };
        if now != self.surroundings {
            self.surroundings = now;
            self.convergence.stale = true;
        }
        Ok(())
    }

    /// Reads what the routing rules of others mean to what is relayed.
    fn discern(&mut self) -> Result<(), HostError> {
        let follows = |Claim { reach, treatment }: Claim<'_>| {
            treatment.action == Action::Direct && matches!(reach.scope, Scope::Forwarded | Scope::Outbound)
        };
        let mark = self.config.mark;
        let chosen = self.claims().any(|claim| claim.treatment.egress.chooses());
        self.discerning = if chosen || self.claims().any(follows) {
            let rules = policy::rules()?;
            Family::BOTH.map(|family| Discernment::of(&rules, family, mark, chosen))
        } else {
            Default::default()
        };
        Ok(())
    }

    /// Those that the rules name may be made anew, as that of a service that is restarted: the kernel's number is another.
    fn find_cgroups(&mut self) -> Result<(), CgroupError> {
        let now = Cgroups::find(&self.config.rules)?;
        if now.of_rules != self.cgroups.of_rules {
            tracing::info!("cgroups that rules name came or went");
            announce_no_cgroup(&self.config.rules, &now);
            self.convergence.stale = true;
        }
        self.cgroups = now;
        Ok(())
    }

    pub(super) fn set_host_addresses(&mut self) -> Result<(), InstanceError> {
        let local = LocalTable::load(self.config.table)?;
        self.datapath.set_host_addresses(local.prefixes())?;
        self.routing.host_addresses().set(local);
        Ok(())
    }

    /// Makes hooks, rules and tables what the surroundings ask for. First what delivers, then what steers: one interface
    /// that refuses must not keep the rules from the others.
    pub(super) fn converge(&mut self, attempt: &mut Attempt) {
        let plan = self.surroundings.plan(self.claims());
        let detached = self.datapath.give_up_detached().unwrap_or_else(|error| {
            attempt.errors.push(error.into());
            Vec::new()
        });
        self.prepare(&plan, attempt);
        for (link, hook) in detached {
            if plan.hooks.contains(&(link.index, hook)) && self.is_hooked(&link, hook) {
                tracing::warn!(interface = link.name, "somebody detached tc {hook}; it is attached again");
                attempt.restored += 1;
            }
        }
        if self.convergence.stale {
            attempt.note(self.switch());
        }
        attempt.note(self.tidy(plan));
        if !attempt.errors.is_empty() {
            attempt.pending.ours = true;
        }
    }

    fn is_hooked(&self, link: &Link, hook: crate::host::Direction) -> bool {
        self.datapath.attached().iter().any(|(attached, at)| attached.index == link.index && *at == hook)
    }

    /// What the rules ask for, and those of earlier generations that still have flows.
    pub(super) fn claims(&self) -> impl Iterator<Item = Claim<'_>> {
        let earlier = self.superseded.iter().flat_map(|superseded| &*superseded.rules);
        self.config.rules.iter().map(Claim::from).chain(earlier.map(Claim::from))
    }

    /// Adds what `plan` needs, and puts back what of it is there no more.
    pub(super) fn prepare(&mut self, plan: &Plan, attempt: &mut Attempt) {
        // What ends there: flows, or first packets of which user space has a copy.
        let discards = |claim: Claim<'_>| {
            let ends_flows = matches!(claim.treatment.action, Action::Drop | Action::Reject);
            match claim.reach.scope {
                Scope::Inbound => ends_flows || claim.may_hold(),
                Scope::Forwarded => ends_flows && self.nat.redirects(),
                Scope::Outbound => false,
            }
        };
        if self.black_holes.is_empty() && self.claims().any(discards) {
            match open_black_holes(self.config.mark, &mut self.datapath) {
                Ok(holes) => self.black_holes = holes,
                Err(error) => attempt.errors.push(error),
            }
        }
        self.landing = Self::landing_mark(plan);
        attempt.note(self.discern());
        let publishing =
            self.nat.redirects() && (!plan.delivering.contains("lo") || self.marks_are_harmless(plan));
        attempt.note(self.datapath.expect_nat(self.nat.redirects(), publishing));
        let keeps_ports = |claim: Claim<'_>| claim.treatment.source == Source::ClientPort;
        if self.routing.set_translating(self.nat.translates_sources()) && self.claims().any(keeps_ports) {
            tracing::warn!(
                "source = \"client-port\" is as \"client\" where NAT of this host may change sources (a nat chain in POSTROUTING has rules): with the client's port, connection tracking would take what is sent for the client's connection to us, and leave the client's address as it is"
            );
        }
        match self.changes(plan) {
            Ok(changes) => {
                let ensured = self.journal.ensure(changes);
                for change in &ensured.restored {
                    tracing::warn!("somebody removed the {change}; it is in place again");
                }
                attempt.restored += ensured.restored.len();
                attempt.errors.extend(ensured.failures.into_iter().map(InstanceError::from));
            }
            Err(error) => attempt.errors.push(error.into()),
        }
        // The rule for it is there, and those of before are until `tidy`.
        attempt.note(self.datapath.set_landing(self.landing == LandingMark::Own));
        // Only now is there what the user ids mean that sockets are given.
        self.routing.set(&self.discerning);
        self.attach(plan, attempt);
        if self.is_steering && !self.datapath.looks_up() {
            match self.datapath.attach_lookup() {
                Ok(()) => {
                    tracing::warn!("somebody detached the listener lookup; it is attached again");
                    attempt.restored += 1;
                }
                Err(error) => attempt.errors.push(error.into()),
            }
        }
    }

    fn marks_are_harmless(&self, plan: &Plan) -> bool {
        let is_hooked = |link: &&Link| plan.hooks.iter().any(|(index, _)| *index == link.index);
        nat::marks_are_harmless(
            self.surroundings.links.iter().filter(is_hooked).map(|link| link.name.as_str()),
        )
    }

    /// Whether the steer mark does on `lo`.
    fn landing_mark(plan: &Plan) -> LandingMark {
        let counts = |name: &String| nat::validates_by_mark("all") || nat::validates_by_mark(name);
        let others = plan.delivering.iter().filter(|name| *name != "lo");
        if plan.delivering.contains("lo") && others.into_iter().any(counts) {
            LandingMark::Own
        } else {
            LandingMark::Steer
        }
    }

    fn changes(&self, plan: &Plan) -> Result<Vec<Change>, HostError> {
        let mut changes = plan.changes(&self.surroundings, self.datapath.attachment(), self.landing)?;
        for family in self.surroundings.families.iter().copied() {
            let tables = self.discerning[family as usize].tables.iter().copied();
            changes.extend(tables.map(|table| Change::Way { family, table }));
        }
        Ok(changes)
    }

    /// Has the datapath decide by the latest rules, given the surroundings.
    pub(super) fn switch(&mut self) -> Result<(), InstanceError> {
        self.switch_to(self.compiled_now())?;
        self.convergence.stale = false;
        Ok(())
    }

    /// The latest rules, given the surroundings.
    pub(super) fn compiled_now(&self) -> Arc<Compiled> {
        let surroundings = &self.surroundings;
        Compiled::new(&self.config.rules, |reach| surroundings.limit(reach), &self.cgroups.of_rules).into()
    }

    /// Has the datapath decide by these, which are the latest.
    pub(super) fn switch_to(&mut self, compiled: Arc<Compiled>) -> Result<(), InstanceError> {
        let extents = self.superseded.iter().map(|superseded| Extent::of(&*superseded.rules));
        let lasting = extents.fold(Extent::default(), Extent::and);
        let generation = self.generations.latest().number();
        self.datapath.install(&compiled, generation, lasting)?;
        self.generations.decider().set_rules(generation, Arc::clone(&compiled));
        self.compiled = compiled;
        Ok(())
    }

    /// Removes what `plan` does not need.
    pub(super) fn tidy(&mut self, plan: Plan) -> Result<(), InstanceError> {
        let mut outcome = Ok(());
        for (link, hook) in self.datapath.attached() {
            if !plan.hooks.contains(&(link.index, hook)) {
                outcome = outcome.and(self.datapath.detach_from(link.index, hook));
            }
        }
        let changes = self.changes(&plan)?;
        self.plan = plan;
        outcome?;
        Ok(self.journal.give_up_all_but(&changes)?)
    }

    fn attach(&mut self, plan: &Plan, attempt: &mut Attempt) {
        for (index, hook) in &plan.hooks {
            let Some(link) = self.surroundings.links.iter().find(|link| link.index == *index) else {
                continue;
            };
            match self.datapath.attach(link, *hook) {
                // Word of its end is on the way.
                Err(DatapathError::Attach(AttachError::Gone(_))) => attempt.pending.links = true,
                Err(
                    error @ DatapathError::Attach(
                        AttachError::OnlyIngress(_) | AttachError::NoClassifier { .. },
                    ),
                ) if plan.dispensable.contains(&(*index, *hook)) => {
                    tracing::debug!("{error}");
                }
                Err(error) => attempt.errors.push(error.into()),
                Ok(()) => {}
            }
        }
    }

    /// Says which of the interfaces that mattered do so no longer, and which do now.
    fn report_interfaces(&self, before: &Surroundings, plan: &Plan) {
        let hooked = |plan: &Plan, link: &Link| plan.hooks.iter().any(|(index, _)| *index == link.index);
        for link in before.links.iter().filter(|link| hooked(plan, link) && !hooked(&self.plan, link)) {
            if self.surroundings.links.iter().any(|now| now.index == link.index) {
                // Such as one that lost its routes.
                tracing::info!(
                    interface = link.name,
                    "no rule is about the interface any more: steering ended on it"
                );
            } else {
                tracing::warn!(interface = link.name, "interface disappeared");
            }
        }
        for link in &self.surroundings.links {
            if hooked(&self.plan, link) && !hooked(plan, link) {
                tracing::info!(interface = link.name, "interface appeared: steering is in place on it");
            }
        }
    }
}

/// What there is for these rules.
pub(super) fn look_around<'a>(rules: impl IntoIterator<Item = &'a Reach>) -> Result<Surroundings, HostError> {
    let routed = if follows_routes(rules) { local_table::routed_interfaces()? } else { Default::default() };
    Ok(Surroundings { links: links::snapshot()?, routed, families: Family::available().collect() })
}
