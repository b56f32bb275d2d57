//! What the rules need on the host, put in place, and kept so as interfaces, routes and addresses change.

use std::mem;

use super::{Instance, InstanceError, workers::open_black_holes};
use crate::{
    config::{Action, Rule, Scope},
    datapath::{AttachError, Attachment, DatapathError},
    family::Family,
    host::{
        Change, Direction, HostError,
        links::{self, Changed, Link},
        local_table::{self, LocalTable},
        sysctl::Sysctl,
    },
    plan::{Plan, Surroundings},
    policy::{Compiled, Extent},
};

impl Instance {
    /// Adapts to what changed on the host.
    ///
    /// # Errors
    /// When the host or the kernel refuses; what was in place before still is.
    pub fn follow(&mut self, changed: Changed) -> Result<(), InstanceError> {
        if changed.local_table {
            self.set_host_addresses()?;
        }
        if changed.links || changed.routes {
            let now = look_around()?;
            if now == self.surroundings {
                return Ok(());
            }
            let before = mem::replace(&mut self.surroundings, now);
            let plan = self.plan.clone();
            self.carry_out()?;
            self.report_interfaces(&before, &plan);
        }
        Ok(())
    }

    pub(super) fn set_host_addresses(&mut self) -> Result<(), InstanceError> {
        let local = LocalTable::load(self.config.table)?;
        Ok(self.datapath.set_host_addresses(local.prefixes())?)
    }

    /// Makes hooks, rules and tables what the surroundings ask for. First what delivers, then what steers.
    pub(super) fn carry_out(&mut self) -> Result<(), InstanceError> {
        let plan = self.surroundings.plan(self.rules());
        // One interface that refuses must not keep the rules from the others.
        let prepared = self.prepare(&plan);
        self.switch()?;
        self.tidy(plan)?;
        prepared
    }

    /// The rules, and those of earlier generations that still have flows.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.config.rules.iter().chain(self.superseded.iter().flat_map(|superseded| &*superseded.rules))
    }

    /// Adds what `plan` needs.
    pub(super) fn prepare(&mut self, plan: &Plan) -> Result<(), InstanceError> {
        let drops = |rule: &Rule| rule.scope == Scope::Inbound && rule.action == Action::Drop;
        if self.black_holes.is_empty() && self.rules().any(drops) {
            self.black_holes = open_black_holes(self.config.mark, &mut self.datapath)?;
        }
        for sysctl in &plan.loopback {
            let sysctl = Sysctl::new("lo", Family::V4, sysctl.key())?;
            self.journal.apply(Change::Sysctl { sysctl, value: "1".into() })?;
        }
        for iif in &plan.delivering {
            for change in rules_for(iif) {
                self.journal.apply(change)?;
            }
        }
        self.attach(plan)
    }

    /// Has the datapath decide by the latest rules, given the surroundings.
    pub(super) fn switch(&mut self) -> Result<(), InstanceError> {
        let surroundings = &self.surroundings;
        let compiled = Compiled::new(&self.config.rules, |rule| surroundings.limit(rule), &self.cgroups);
        let extents = self.superseded.iter().map(|superseded| Extent::of(&superseded.rules));
        let lasting = extents.fold(Extent::default(), Extent::and);
        Ok(self.datapath.install(&compiled, self.generations.latest().number(), lasting)?)
    }

    /// Removes what `plan` does not need.
    pub(super) fn tidy(&mut self, plan: Plan) -> Result<(), InstanceError> {
        for (link, hook) in self.datapath.attached() {
            if !plan.hooks.contains(&(link.index, hook)) {
                self.datapath.detach_from(link.index, hook)?;
                self.journal.revert(&tc_filter(&link, hook))?;
            }
        }
        let was = mem::replace(&mut self.plan, plan);
        for iif in was.delivering.difference(&self.plan.delivering) {
            for change in rules_for(iif) {
                self.journal.revert(&change)?;
            }
        }
        Ok(())
    }

    fn attach(&mut self, plan: &Plan) -> Result<(), InstanceError> {
        let mut outcome = Ok(());
        for (index, hook) in &plan.hooks {
            let Some(link) = self.surroundings.links.iter().find(|link| link.index == *index) else {
                continue;
            };
            if self.datapath.attachment() == Attachment::Clsact {
                self.journal.apply(tc_filter(link, *hook))?;
            }
            match self.datapath.attach(link, *hook) {
                // Word of its end is on the way.
                Err(DatapathError::Attach(AttachError::Gone(_))) => {}
                Err(error) => outcome = Err(error.into()),
                Ok(()) => {}
            }
        }
        outcome
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

pub(super) fn look_around() -> Result<Surroundings, HostError> {
    Ok(Surroundings { links: links::snapshot()?, routed: local_table::routed_interfaces()? })
}

fn tc_filter(link: &Link, hook: Direction) -> Change {
    Change::TcFilter { interface: link.name.clone(), index: link.index, direction: hook }
}

fn rules_for(iif: &str) -> impl Iterator<Item = Change> {
    Family::available().map(|family| Change::Rule { family, iif: iif.to_owned() })
}
